"""How far estimated poses are from true ones, after the best global rotation, shift and hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from cryoai.errors import InputError
from cryoai.metrics.alignment import MapAlignment, mirror_rotation
from cryoai.metrics.symmetry import MapSymmetry, standard_symmetry
from cryoai.types import Pose

_CANDIDATES = 200
_SCORED_PARTICLES = 2000
_ITERATIONS = 20
# A polish that moves farther than this has left the basin of the maps' alignment (a pseudo-symmetric mate).
_LARGEST_POLISH = math.radians(3.0)
_TEN_DEGREES = 4 * (1 - math.cos(math.radians(10.0)))


@dataclass(frozen=True)
class PoseErrors:
    """Errors of each particle's pose, and the global transform they were measured after.

    Of a symmetric molecule's equal true poses, each particle's is the one nearest to its estimate.

    Attributes
    ----------
    rotation_error
        ``‖R_est − Q Sᵐ R_true Sᵐ‖²_F``, which is ``4 (1 − cos θ)`` for an error of θ; 0 to 8.
    translation_error_px2
        ``‖t_est − (t_true − P R_estᵀ T)‖²``, px², where P keeps x and y.
    rotation
        Q.
    shift_px
        T, px, xyz: where the true map's centre lies in the estimated map.
    hand
        ``"same"`` (m = 0) or ``"mirrored"`` (m = 1).
    """

    rotation_error: Float[np.ndarray, " n"]
    translation_error_px2: Float[np.ndarray, " n"]
    rotation: Float[np.ndarray, "3 3"]
    shift_px: Float[np.ndarray, " 3"]
    hand: str

    @property
    def rotation_error_median(self) -> float:
        """The median, the figure of Levy et al. 2022."""
        return float(np.median(self.rotation_error))

    @property
    def rotation_error_mean(self) -> float:
        """The mean."""
        return float(np.mean(self.rotation_error))

    @property
    def rotation_error_quartiles(self) -> tuple[float, float]:
        """The 25th and the 75th percentile."""
        return _quartiles(self.rotation_error)

    @property
    def rotation_error_median_deg(self) -> float:
        """The median as an angle, degrees."""
        return math.degrees(math.acos(max(-1.0, 1 - self.rotation_error_median / 4)))

    @property
    def fraction_rotation_above_10deg(self) -> float:
        """Share of the particles whose rotation is wrong by more than 10°."""
        return float(np.mean(self.rotation_error > _TEN_DEGREES))

    @property
    def translation_error_median_px2(self) -> float:
        """The median, px²."""
        return float(np.median(self.translation_error_px2))

    @property
    def translation_error_mean_px2(self) -> float:
        """The mean, px²."""
        return float(np.mean(self.translation_error_px2))

    @property
    def translation_error_quartiles_px2(self) -> tuple[float, float]:
        """The 25th and the 75th percentile, px²."""
        return _quartiles(self.translation_error_px2)


def compute_pose_errors(
    estimated: Pose,
    true: Pose,
    alignment: MapAlignment | None = None,
    *,
    pixel_size: float,
    symmetry: MapSymmetry | None = None,
    seed: int = 0,
) -> PoseErrors:
    """Errors of estimated poses against true ones.

    Particles of one and the same image satisfy ``R_est = Q Sᵐ R_true Sᵐ`` and
    ``t_est = t_true − P R_estᵀ T`` (see `cryoai.metrics.alignment`). With the maps' alignment, its hand is
    kept and its Q is polished on the poses by a robust Procrustes fit that may move it by 3° at most; without
    one, both are chosen among the relative rotations of 200 random particles by the smallest median error,
    which a nearly symmetric molecule can mislead.

    Under a symmetry, ``G R_true`` is as true as ``R_true``, for each G that leaves the true map as it is
    (`cryoai.metrics.symmetry`, also for the translation): each particle is compared with the nearest of them.

    Parameters
    ----------
    estimated, true
        Poses of the same particles in the same order.
    alignment
        Of the estimated map on the true one, from `align_maps`.
    pixel_size
        Å, of the images.
    symmetry
        Of the true map, in the frame of the true poses; default: none.
    seed
        For the choice of particles.
    """
    if len(estimated) != len(true) or len(true) == 0:
        raise InputError(
            f"{len(estimated)} estimated poses cannot be compared with {len(true)} true ones",
            advice="give the poses of the same particles, one at least",
        )
    symmetry = standard_symmetry("C1") if symmetry is None else symmetry
    r_est, r_true = estimated.rotation.astype(np.float64), true.rotation.astype(np.float64)
    hands = {
        False: _TruePoses(r_true, symmetry.rotations),
        True: _TruePoses(mirror_rotation(r_true), mirror_rotation(symmetry.rotations)),
    }
    if alignment is None:
        mirrored, start = _choose_rotation(r_est, hands, seed)
        rotation = _polish_rotation(r_est, hands[mirrored], start)
    else:
        mirrored, start = alignment.mirrored, alignment.rotation.astype(np.float64)
        rotation = _polish_rotation(r_est, hands[mirrored], start)
        if _angle(_squared_distance(rotation, start)) > _LARGEST_POLISH:
            rotation = start
    mate = hands[mirrored].nearest(r_est, rotation)
    rotation_error = _squared_distance(r_est, rotation @ hands[mirrored].posed(mate))
    # How far the symmetry moves the box centre, seen in the image; the mirror leaves translations alone.
    moved = symmetry.centre - symmetry.rotations @ symmetry.centre
    t_true = true.translation + _shift_effect(symmetry.rotations[mate] @ r_true, moved[mate])
    difference = (estimated.translation.astype(np.float64) - t_true) / pixel_size
    shift = _fit_shift(r_est, difference, _inliers(rotation_error))
    translation_error = np.sum((difference - _shift_effect(r_est, shift)) ** 2, -1)
    return PoseErrors(rotation_error, translation_error, rotation, shift, "mirrored" if mirrored else "same")


@dataclass(frozen=True, eq=False)
class _TruePoses:
    """True rotations in one hand, and the rotations that leave the true map of that hand as it is."""

    rotation: Float[np.ndarray, "n 3 3"]
    group: Float[np.ndarray, "mates 3 3"]

    def posed(self, mate: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 3 3"]:
        """Each rotation, turned by its element of the group."""
        return self.group[mate] @ self.rotation

    def nearest(
        self, r_est: Float[np.ndarray, "n 3 3"], rotation: Float[np.ndarray, "3 3"]
    ) -> Int[np.ndarray, " n"]:
        """The element of the group for which ``Q G R_true`` comes closest to ``R_est``."""
        if len(self.group) == 1:
            return np.zeros(len(r_est), np.int64)
        # ‖R_est − Q G R_true‖² = 6 − 2 tr(G R_true R_estᵀ Q)
        back = self.rotation @ r_est.transpose(0, 2, 1) @ rotation
        return (back.reshape(-1, 9) @ self.group.transpose(0, 2, 1).reshape(-1, 9).T).argmax(1)

    def of(self, rows: Int[np.ndarray, " m"]) -> _TruePoses:
        """Those of some particles."""
        return _TruePoses(self.rotation[rows], self.group)


def _squared_distance(
    a: Float[np.ndarray, "*#batch 3 3"], b: Float[np.ndarray, "*#batch 3 3"]
) -> Float[np.ndarray, "*batch"]:
    """Squared Frobenius distance; by differences, since 4(1 − cos) loses small angles to rounding."""
    return np.asarray(np.sum((a - b) ** 2, axis=(-2, -1)))


def _angle(squared_distance: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    """Solve for the angle θ of ``4 (1 − cos θ) = 8 sin²(θ/2)``, radians."""
    return np.asarray(2 * np.arcsin(np.sqrt(np.clip(squared_distance / 8, 0, 1))))


def _quartiles(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    low, high = np.percentile(values, (25, 75))
    return float(low), float(high)


def _choose_rotation(
    r_est: Float[np.ndarray, "n 3 3"], hands: dict[bool, _TruePoses], seed: int
) -> tuple[bool, Float[np.ndarray, "3 3"]]:
    """Hand and relative rotation with the smallest median error."""
    order = np.random.default_rng(seed).permutation(len(r_est))
    proposers, scored = order[:_CANDIDATES], order[:_SCORED_PARTICLES]
    best = (math.inf, False, np.eye(3))
    for mirrored, true in hands.items():
        judged, r_judged = true.of(scored), r_est[scored]
        for i in proposers:
            rotation = r_est[i] @ true.rotation[i].T
            nearest = judged.posed(judged.nearest(r_judged, rotation))
            median = float(np.median(_squared_distance(r_judged, rotation @ nearest)))
            if median < best[0]:
                best = (median, mirrored, rotation)
    return best[1], best[2]


def _inliers(rotation_error: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Particles posed about as well as the better half of them: within 4 lower quartiles (of the angle)."""
    angle = _angle(rotation_error)
    return angle <= max(4 * float(np.percentile(angle, 25)), 1e-5)


def _polish_rotation(
    r_est: Float[np.ndarray, "n 3 3"], true: _TruePoses, rotation: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3 3"]:
    """Procrustes fit to the inliers, repeated until they stay the same."""
    previous = None
    for _ in range(_ITERATIONS):
        r_true = true.posed(true.nearest(r_est, rotation))
        chosen = _inliers(_squared_distance(r_est, rotation @ r_true))
        if previous is not None and np.array_equal(chosen, previous):
            break
        u, _, vt = np.linalg.svd((r_est @ r_true.transpose(0, 2, 1))[chosen].mean(0))
        rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
        previous = chosen
    return rotation


def _shift_effect(
    rotation: Float[np.ndarray, "n 3 3"], shift: Float[np.ndarray, "*#n 3"]
) -> Float[np.ndarray, "n 2"]:
    """``−P Rᵀ T``: what a map whose density sits at T does to the translations."""
    return -(rotation.transpose(0, 2, 1) @ shift[..., None])[:, :2, 0]


def _fit_shift(
    r_est: Float[np.ndarray, "n 3 3"],
    difference: Float[np.ndarray, "n 2"],
    inliers: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " 3"]:
    """T of ``t_est − t_true = −P R_estᵀ T``: least absolute residuals by iterated reweighting."""
    design = -r_est[inliers].transpose(0, 2, 1)[:, :2]
    observed = difference[inliers]
    weight = np.ones(len(design))
    shift = np.zeros(3)
    for _ in range(_ITERATIONS):
        root = np.sqrt(weight)[:, None]
        # lstsq: a few particles, or all of one view, leave a direction of T open; it then stays 0.
        shift = np.linalg.lstsq((design * root[..., None]).reshape(-1, 3), (observed * root).ravel(), rcond=1e-9)[0]
        residual = np.linalg.norm(observed - design @ shift, axis=-1)
        weight = 1 / np.maximum(residual, 1e-3 + 0.1 * float(np.median(residual)))
    return shift
