"""How evenly particles see the molecule, and how much of Fourier space their views fill."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import root_scalar
from scipy.spatial import KDTree

Axis = tuple[float, float, float]

# Half-sphere grids: views are gathered at points 1.6° apart and looked at along axes 3.2° apart.
_VIEW_POINTS, _AXES = 8000, 2000
# Shares of what uniform views would give: below them a cone counts as empty, and a Fourier direction as not filled.
_EMPTY, _FILLED = 1 / 20, 0.05
# Few particles fill no high shell. They are judged at the shell where so many of n uniform views see a direction.
_VIEWS_PER_DIRECTION = 8.0
_NARROWEST_SLAB, _WIDEST_SLAB = 0.02, 0.5
# SCF*: a direction that no view sees counts as seen by 2 views where 100 would see it on average.
_UNSEEN = 0.02
# Bins of sqrt(1 - cos(angle)), which are nearly even in the angle.
_CONE_BINS = 200
# Axes whose angles to all views are in memory together.
_AXES_AT_ONCE = 200

LACKING_FILLED_SHARE = 0.9
"""Less of Fourier space is a serious gap: a missing cone of 26° half-angle, or views within 61° of one axis."""
LACKING_SCF = 0.1
"""Filled, but so unevenly that the same particles with uniform views would have ten times the signal to noise."""


@dataclass(frozen=True)
class ViewCoverage:
    """How evenly particles see the molecule; NaN where there are no particles.

    Opposite views are mirror images of each other and count as one.

    Attributes
    ----------
    particles
        Effective number of particles, ``(Σ w)² / Σ w²``.
    evenness
        Three times the smallest eigenvalue of ``Σ w d dᵀ / Σ w`` over viewing directions d: 1 for uniform views,
        0 where all lie in one plane.
    emptiest_cone_deg
        Half-angle, degrees, of the largest cone of viewing directions that holds less than a twentieth of what
        uniform views would put there. Known to about 2°.
    emptiest_axis
        Its axis in the map (xyz), z ≥ 0.
    filled_share
        Share of the directions in Fourier space that get at least a twentieth of what uniform views would give.
    scf_star
        The sampling compensation factor SCF*, 1 for uniform views, 0.81 for side views only, near 0 where
        directions are missing; see `measure_views`.
    weakest_axis
        The axis in the map (xyz), z ≥ 0, around which Fourier space is emptiest; the map is smeared along it.
    """

    particles: float
    evenness: float
    emptiest_cone_deg: float
    emptiest_axis: Axis
    filled_share: float
    scf_star: float
    weakest_axis: Axis

    @property
    def expected_cone_deg(self) -> float:
        """Half-angle of the emptiest cone that as many uniform, random views would leave (median), degrees."""
        return expected_cone_deg(self.particles)

    @property
    def is_lacking(self) -> bool:
        """Whether so much of Fourier space is missing that the map cannot be trusted in some direction.

        The emptiest cone does not decide: side views alone leave a wide one and fill all of Fourier space.
        """
        return self.filled_share < LACKING_FILLED_SHARE or self.scf_star < LACKING_SCF

    def numbers(self) -> str:
        """The measures in words, without a subject."""
        if not self.particles > 0:
            return "no particles"
        # Rounded down: what is not all there must not read as 100 %.
        filled = math.floor(100 * self.filled_share + 1e-9)
        return (
            f"SCF* {self.scf_star:.2f}, emptiest cone {self.emptiest_cone_deg:.0f}°, "
            f"Fourier space {filled} % filled"
        )

    def sentence(self) -> str:
        """One plain sentence, for a terminal or a report."""
        return f"views: {self.numbers()}"

    def warning(self) -> str:
        """What is missing and what it does to the map, where views are lacking; otherwise empty."""
        if not self.is_lacking:
            return ""
        missing = 100 * (1 - self.filled_share)
        gap = (
            f"{missing:.0f} % of Fourier space is empty"
            if missing >= 1
            else "Fourier space is filled very unevenly"
        )
        return (
            f"views are missing: hardly any particle is seen within {self.emptiest_cone_deg:.0f}° of "
            f"({_named(self.emptiest_axis)}); {gap} (SCF* {self.scf_star:.2f}), and the map is smeared along "
            f"({_named(self.weakest_axis)}), in its x, y, z: either the particles lie in few orientations, "
            "or their poses are wrong"
        )


def measure_views(
    rotation: Float[np.ndarray, "n 3 3"],
    weight: Float[np.ndarray, " n"] | None = None,
    radius: float = 10,
    group: Float[np.ndarray, "g 3 3"] | None = None,
) -> ViewCoverage:
    """Measure how evenly particles see the molecule.

    A particle sees it along ``d = R [0, 0, 1]``, and its slice fills the directions of Fourier space at right
    angles to d: within ``|u · d| < 0.5 / radius`` at a given shell. The sampling s(u) is the weight of the views
    that see u, 1 on average. With s, the sampling compensation factor is ``SCF = 1 / <1/s>`` over the directions
    with s > 0 (Baldwin & Lyumkis, Prog. Biophys. Mol. Biol. 150 (2020) 160). SCF* also counts those with s = 0,
    as seen by two views: ``1/SCF* = <1/s> + (Q/P) S/2``, Q and P the shares of directions not seen and seen, and
    S the mean number of views that see one (as in the authors' program of 2022). S is 100 here, which are their
    10,000 views at shell 50, so that SCF* tells the shape of the distribution and not the number of particles.

    Parameters
    ----------
    rotation
        Maps image coordinates to volume coordinates.
    weight
        Confidence of each particle, ≥ 0; all alike where None or where all are 0.
    radius
        Shell at which Fourier space is looked at; lower where there are too few particles to fill it, and 25 at
        most.
    group
        Of a symmetry, whose mates are views as well.

    Raises
    ------
    ValueError
        Weights are negative, not finite, or not one per rotation.
    """
    weight = _checked_weight(weight, len(rotation))
    direction = np.asarray(rotation, np.float64).reshape(-1, 3, 3)[:, :, 2]
    total = weight.sum()
    if total <= 0:
        nothing = (math.nan, math.nan, math.nan)
        return ViewCoverage(0.0, math.nan, math.nan, nothing, math.nan, math.nan, nothing)
    group = np.eye(3)[None] if group is None else group
    particles = len(group) * float(total**2 / (weight**2).sum())
    spread = np.einsum("n,ni,nj->ij", weight / total, direction, direction)
    spread = (group @ spread @ group.mT).mean(0)
    points, share = _gather(direction, weight / total)
    if len(group) > 1:
        points, share = _gather(np.concatenate(points @ group.mT), np.tile(share, len(group)) / len(group))
    slab = min(max(0.5 / radius, _VIEWS_PER_DIRECTION / particles, _NARROWEST_SLAB), _WIDEST_SLAB)
    axes = make_half_sphere(_AXES)
    sampling, cone = _look_along(axes, points, share, slab)
    emptiest = int(cone.argmax())
    lack = np.maximum(1 - sampling, 0)
    weakest = np.linalg.eigh(np.einsum("n,ni,nj->ij", lack, axes, axes))[1][:, -1]
    return ViewCoverage(
        particles=particles,
        evenness=float(3 * np.linalg.eigvalsh(spread)[0].clip(0)),
        emptiest_cone_deg=math.degrees(float(cone[emptiest])),
        emptiest_axis=_upwards(axes[emptiest]),
        filled_share=float((sampling >= _FILLED).mean()),
        scf_star=_scf_star(sampling),
        weakest_axis=_upwards(weakest),
    )


def expected_cone_deg(particles: float) -> float:
    """Half-angle of the largest empty cone that uniform, random views leave (median), degrees.

    n views and their opposites leave on average ``(n-1) (n y^(n-2) - (n-2) y^n)`` empty caps (opposites being
    one) through three of them that are wider than the angle of cosine y: the circumcap of three uniform points
    has the density sin³ of its angle. Half of these are the widest in their neighbourhood, as half of all random
    Delaunay triangles are acute (Miles, Math. Biosci. 6 (1970) 85), and the widest of all is beyond y with even
    odds where ln 2 such are expected.

    Parameters
    ----------
    particles
        Number of views; 90° for fewer than 3.
    """
    n = particles
    if not n >= 3:
        return 90.0 if n >= 0 else math.nan

    def excess(y: float) -> float:
        return math.log((n - 1) * (n - (n - 2) * y**2) / 2) + (n - 2) * math.log(y) - math.log(math.log(2))

    return math.degrees(math.acos(root_scalar(excess, bracket=(1e-9, 1.0)).root))


def make_half_sphere(count: int) -> Float[np.ndarray, "count 3"]:
    """``count`` unit vectors (xyz) spread evenly over the half sphere z > 0, on a Fibonacci spiral."""
    z = (np.arange(count) + 0.5) / count
    longitude = math.pi * (3 - math.sqrt(5)) * np.arange(count)
    level = np.sqrt(1 - z**2)
    return np.stack((level * np.cos(longitude), level * np.sin(longitude), z), 1)


def _checked_weight(weight: Float[np.ndarray, " n"] | None, count: int) -> Float[np.ndarray, " n"]:
    if weight is None:
        return np.ones(count)
    weight = np.asarray(weight, np.float64)
    if weight.shape != (count,) or not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError(f"weights must be {count} finite numbers of at least 0")
    return weight if weight.any() else np.ones(count)


def _gather(
    direction: Float[np.ndarray, "n 3"], share: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "m 3"], Float[np.ndarray, " m"]]:
    """Views at the nearest points of a fixed grid, and their shares; what follows costs the same for any n."""
    grid = make_half_sphere(_VIEW_POINTS)
    nearest = KDTree(np.concatenate((grid, -grid))).query(direction)[1] % _VIEW_POINTS
    gathered = np.bincount(nearest, share, _VIEW_POINTS)
    occupied = gathered > 0
    return grid[occupied], gathered[occupied]


def _look_along(
    axes: Float[np.ndarray, "a 3"], points: Float[np.ndarray, "m 3"], share: Float[np.ndarray, " m"], slab: float
) -> tuple[Float[np.ndarray, " a"], Float[np.ndarray, " a"]]:
    """For each axis: the Fourier sampling along it, and the half-angle (radians) of the emptiest cone around it."""
    edge = np.arange(1, _CONE_BINS + 1) / _CONE_BINS
    uniform = edge**2  # share of uniform views within the angle: 1 - cos
    sampling, cone = [], []
    for start in range(0, len(axes), _AXES_AT_ONCE):
        some = axes[start : start + _AXES_AT_ONCE]
        cosine = np.abs(some.astype(np.float32) @ points.T.astype(np.float32))
        sampling.append((cosine < slab) @ share)
        bins = (np.sqrt(np.maximum(1 - cosine, 0)) * _CONE_BINS).astype(np.int64).clip(max=_CONE_BINS - 1)
        bins += _CONE_BINS * np.arange(len(some))[:, None]
        counts = np.bincount(bins.ravel(), np.broadcast_to(share, bins.shape).ravel(), some.shape[0] * _CONE_BINS)
        held = np.cumsum(counts.reshape(len(some), _CONE_BINS), 1)
        # The widest angle at which the cone still counts as empty; 0 where there is none.
        empty = held < _EMPTY * uniform
        cone.append(np.where(empty, edge, 0.0).max(1))
    sampled = np.concatenate(sampling)
    # The mean is 1 but for the grids.
    return sampled / sampled.mean(), 2 * np.arcsin(np.concatenate(cone) / math.sqrt(2))


def _scf_star(sampling: Float[np.ndarray, " a"]) -> float:
    seen = sampling[sampling > _UNSEEN]
    unseen = len(sampling) - len(seen)
    return float(1 / ((1 / seen).mean() + unseen / len(seen) / _UNSEEN))


def _upwards(axis: Float[np.ndarray, " 3"]) -> Axis:
    x, y, z = (float(value) for value in (axis if axis[2] >= 0 else -axis))
    return (x, y, z)


def _named(axis: Axis) -> str:
    # Zero has no sign.
    return ", ".join(f"{round(value, 2) + 0.0:.2f}" for value in axis)
