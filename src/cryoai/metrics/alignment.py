"""Rigid alignment of one map onto another, over both hands.

One equation fixes every sign. With ``S = diag(1, 1, −1)``, x measured from the box centre, and m = 1 for a
mirrored pair, 0 otherwise::

    reference(x) ≈ map(Q Sᵐ x + shift)

What it means for poses, with ``projection(u) = ∫ V(R [u, z]) dz``: particles whose rotations in the
reference are ``R`` have ``R_map = Q Sᵐ R Sᵐ`` in the map (the change of variable z → −z of the line integral
turns the mirrored volume's ``S R S`` back into ``R``), and their translations become
``t_map = t − ([R_mapᵀ shift]_x, [R_mapᵀ shift]_y)``; the mirror alone leaves translations as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from scipy.ndimage import map_coordinates
from torch import Tensor

from cryoai.geometry.fourier import crop_or_pad, fft3, ifft3, largest_radius, radial_distance, resample
from cryoai.geometry.rotations import nearest_rotation, rotation_angle, rotation_from_vector
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.metrics.fsc import half_space_radius, make_soft_sphere

MIRROR = np.diag([1.0, 1.0, -1.0])
"""S, the reflection z → −z that stands for the other hand."""

_PAD = 2
_SEARCH_RADIUS = 7
_SEARCH_ROTATIONS = 13824
# (Fourier radius in shells, candidates kept per hand and in all, Gauss-Newton steps); then the full radius.
_STAGES = ((8, 64, 10), (14, 24, 8), (24, 10, 6))
_FINAL_CANDIDATES, _FINAL_STEPS, _POLISH_STEPS = 5, 6, 2


@dataclass(frozen=True)
class MapAlignment:
    """How a map lies on a reference: ``reference(x) ≈ map(Q Sᵐ x + shift)`` (see the module's page).

    Attributes
    ----------
    rotation
        Q, (3, 3), proper, xyz.
    shift
        (3,), xyz, px of the aligned maps; where the reference's centre lies in the map.
    mirrored
        m: whether the map has the other hand.
    correlation
        Mean FSC over all shells, −1 to 1; every shell counts the same, so that middle frequencies decide.
    """

    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, " 3"]
    mirrored: bool
    correlation: float

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """``Q Sᵐ``, from reference coordinates to map coordinates."""
        return self.rotation @ MIRROR if self.mirrored else self.rotation


def mirror_volume(volume: Float[Tensor, "box box box"]) -> Float[Tensor, "box box box"]:
    """Reflect a map, ``V'(x, y, z) = V(x, y, −z)``, about its centre voxel.

    The first plane of an even box has no partner and stays where it is (it is its own image in the periodic
    box). Projections of ``V'`` at ``S R S`` equal those of ``V`` at ``R``; translations do not change.
    """
    flipped = volume.flip(0)
    return flipped.roll(1, 0) if volume.shape[0] % 2 == 0 else flipped


def mirror_rotation(rotation: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3 3"]:
    """``S R S``: the rotations that give the mirrored volume the same projections."""
    return MIRROR @ rotation @ MIRROR


def apply_alignment(density: Float[Tensor, "box box box"], alignment: MapAlignment) -> Float[Tensor, "box box box"]:
    """Resample a map into the reference's frame: ``result(x) = map(Q Sᵐ x + shift)``.

    Cubic splines on the map oversampled twice in Fourier space. What comes from outside the box is 0, and
    what lies beyond the largest usable shell is lost.

    Parameters
    ----------
    density
        The map (z, y, x) that was aligned.
    alignment
        Its shift in px of ``density``.
    """
    box = density.shape[-1]
    # The corners of Fourier space would be turned past Nyquist and alias back into the shells that count.
    beyond = half_space_radius(box).round() > largest_radius(box)
    ball = ifft3(fft3(density.detach().cpu()).masked_fill(beyond, 0), box)
    fine = resample(ball, _PAD * box, 3).numpy()
    axis = np.arange(box) - box // 2
    matrix = alignment.matrix[::-1, ::-1]  # arrays are zyx
    offset = alignment.shift[::-1]
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    places = (matrix @ grid + offset[:, None]) * _PAD + (_PAD * box) // 2
    values = map_coordinates(fine, places, order=3, mode="constant", output=np.float64)
    return torch.from_numpy(values.reshape(box, box, box)).to(density)


def align_maps(
    density: Float[Tensor, "box box box"],
    reference: Float[Tensor, "box box box"],
    *,
    try_mirror: bool = True,
    largest_box: int = 128,
) -> MapAlignment:
    """Find the rotation, shift and hand that lay a map on a reference.

    Every rotation of an even grid and every shift within a quarter of the box are scored at low resolution by
    the mean FSC; the best distinct ones are refined by Gauss–Newton with a growing Fourier radius, which
    keeps the mates of a nearly symmetric molecule in play until the resolution can tell them apart. The
    derivatives are those of the reference, known exactly and once (Baker and Matthews' inverse compositional
    scheme, IJCV 56, 2004), and shells are weighted by what they tell, ``FSC / (1 − FSC²)``. The last steps
    use `apply_alignment`'s accurate interpolation.

    Parameters
    ----------
    density, reference
        Maps (z, y, x) of the same box and voxel size, any scale; protein positive in both or in neither.
        Only density inside the sphere inscribed in the box counts.
    try_mirror
        Try the other hand as well.
    largest_box
        px; larger maps are Fourier cropped to this box for the alignment, to bound time and memory.

    Returns
    -------
    MapAlignment
        ``reference(x) ≈ map(Q Sᵐ x + shift)``.
    """
    box = density.shape[-1]
    if box > largest_box:
        density, reference = (resample(v, largest_box, 3) for v in (density, reference))
        small = align_maps(density, reference, try_mirror=try_mirror)
        return MapAlignment(small.rotation, small.shift * (box / largest_box), small.mirrored, small.correlation)
    sphere = make_soft_sphere(box).to(density)
    density, reference = (density * sphere).float(), (reference * sphere).float()
    spectrum = _padded_spectrum(density)
    hands = (False, True) if try_mirror else (False,)
    targets = [_make_target(mirror_volume(reference) if mirrored else reference) for mirrored in hands]
    candidates = _search(spectrum, targets, density)
    for radius, keep, steps in _STAGES:
        candidates = _refine(spectrum, targets, candidates.distinct(keep), radius, steps)
    full = largest_radius(box)
    candidates = _refine(spectrum, targets, candidates.distinct(_FINAL_CANDIDATES), full, _FINAL_STEPS)
    best = candidates.distinct(1)
    return _polish(density, targets[int(best.hand[0])], best)


def find_near_symmetries(
    density: Float[Tensor, "box box box"],
    *,
    radius: int = 10,
    at_least: float = 0.75,
    smallest_angle: float = math.radians(25),
    keep: int = 8,
) -> list[MapAlignment]:
    """Rotations about any axis that leave a map nearly as it is, found from its own correlation.

    A particle posed at ``R`` looks almost the same at ``Q R``; a search at low resolution cannot tell them
    apart.

    Parameters
    ----------
    density
        The map (z, y, x).
    radius
        Shells up to which likeness is judged.
    at_least
        Smallest mean FSC of the map with its rotated self.
    smallest_angle
        Radians; smaller rotations are the map's own smoothness.
    keep
        At most this many, the most alike first.

    Returns
    -------
    list
        ``density(x) ≈ density(Q x + shift)``, the identity left out.
    """
    density = (density * make_soft_sphere(density.shape[-1]).to(density)).float()
    spectrum, targets = _padded_spectrum(density), [_make_target(density)]
    candidates = _refine(spectrum, targets, _search(spectrum, targets, density).distinct(40), radius, 8)
    found: list[MapAlignment] = []
    candidates = candidates.distinct(40)
    angles = rotation_angle(candidates.rotation, torch.eye(3, dtype=torch.float64).expand_as(candidates.rotation))
    for rotation, shift, score, angle in zip(
        candidates.rotation, candidates.shift, candidates.score.tolist(), angles.tolist(), strict=True
    ):
        if score >= at_least and angle > smallest_angle:
            found.append(MapAlignment(rotation.numpy(), shift.numpy(), False, score))
    return found[:keep]


@dataclass(frozen=True, eq=False)
class _Target:
    """The reference's half-space coefficients in one hand, by ascending radius, whitened shell by shell.

    ``frequency`` (n, 3) are shell indices xyz; ``shell`` counts from 0 for radius 1; ``jacobian`` holds the
    derivatives of ``coefficient`` with respect to δ and τ of ``reference(exp(δ) x + τ)``.
    """

    box_size: int
    frequency: Float[Tensor, "n 3"]
    place: Int[Tensor, " n"]
    shell: Int[Tensor, " n"]
    coefficient: Complex[Tensor, " n"]
    jacobian: Complex[Tensor, "6 n"]

    def prefix(self, radius: int) -> _Target:
        """Keep the coefficients up to and including shell ``radius``."""
        n = int((self.shell < radius).sum())
        return _Target(
            self.box_size,
            self.frequency[:n],
            self.place[:n],
            self.shell[:n],
            self.coefficient[:n],
            self.jacobian[:, :n],
        )


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Poses of the map under trial; ``hand`` is the index of the target."""

    rotation: Float[Tensor, "n 3 3"]
    shift: Float[Tensor, "n 3"]
    hand: Int[Tensor, " n"]
    score: Float[Tensor, " n"]

    def distinct(self, keep: int) -> _Candidates:
        """Keep the ``keep`` best that lie farther apart than the search grid's spacing, best first."""
        spacing = so3_grid_spacing(_SEARCH_ROTATIONS)
        order = torch.argsort(self.score, descending=True)
        chosen: list[int] = []
        while len(order) and len(chosen) < keep:
            first = order[0]
            chosen.append(int(first))
            angle = rotation_angle(self.rotation[order], self.rotation[first].expand(len(order), 3, 3))
            away = (angle > spacing) | (self.hand[order] != self.hand[first])
            away[0] = False
            order = order[away]
        rows = torch.tensor(chosen)
        return _Candidates(self.rotation[rows], self.shift[rows], self.hand[rows], self.score[rows])


def _make_target(reference: Float[Tensor, "box box box"]) -> _Target:
    """Transform a reference and its derivatives."""
    box = reference.shape[-1]
    axis = (torch.arange(box, dtype=torch.float32) - box // 2).to(reference)
    kz, ky, kx = torch.meshgrid(axis, axis, axis.new_tensor(range(box // 2 + 1)), indexing="ij")
    radius = half_space_radius(box).to(reference)
    once = (kx > 0) | (ky > 0) | ((ky == 0) & (kz > 0))  # one of each Friedel pair
    chosen = (once & (radius.round() >= 1) & (radius.round() <= largest_radius(box))).flatten().nonzero()[:, 0]
    place = chosen[torch.argsort(radius.flatten()[chosen], stable=True)]
    frequency = torch.stack([k.flatten()[place] for k in (kx, ky, kz)], -1)
    shell = radius.flatten()[place].round().long() - 1
    coefficient = fft3(reference).flatten()[place]
    x, y, z = axis[None, None, :], axis[None, :, None], axis[:, None, None]
    moment = torch.stack([fft3(reference * r).flatten()[place] for r in (x, y, z)], -1)
    turn = -2j * math.pi / box
    # V̂(exp(δ) k) ≈ V̂ + (δ × k)·∇V̂ = V̂ + δ·(k × ∇V̂), and ∇V̂ is the transform of −2πi x V / box.
    jacobian = torch.cat(
        (torch.linalg.cross(frequency + 0j, moment * turn), -turn * frequency * coefficient[:, None]), -1
    )
    size = _shell_rms(coefficient[None], shell)[0][shell]
    return _Target(box, frequency, place, shell, coefficient / size, (jacobian / size[:, None]).mT.contiguous())


def _shell_sum(values: Float[Tensor, "c n"], shell: Int[Tensor, " n"]) -> Float[Tensor, "c shells"]:
    total = values.new_zeros(len(values), int(shell[-1]) + 1)
    return total.index_add_(1, shell, values)


def _shell_rms(values: Complex[Tensor, "c n"], shell: Int[Tensor, " n"]) -> Float[Tensor, "c shells"]:
    count = torch.bincount(shell)
    return (_shell_sum(values.abs() ** 2, shell) / count).sqrt().clamp(min=1e-20)


def _padded_spectrum(density: Float[Tensor, "box box box"]) -> Complex[Tensor, "z y half"]:
    """Transform on a finer Fourier grid, corrected for the roll-off of trilinear interpolation in it."""
    box = density.shape[-1]
    axis = (torch.arange(box, dtype=torch.float32) - box // 2).to(density) / (_PAD * box)
    roll_off = torch.sinc(axis) ** 2
    corrected = density / (roll_off[:, None, None] * roll_off[:, None] * roll_off)
    return fft3(crop_or_pad(corrected, _PAD * box, (0, 1, 2)))


def _crop_spectrum(spectrum: Complex[Tensor, "z y half"], radius: int) -> Float[Tensor, "2 d d w"]:
    """Cut out the part needed inside ``radius`` shells, as real and imaginary channels."""
    reach = min(_PAD * (radius + 1) + 1, spectrum.shape[-1] - 1)
    cropped = crop_or_pad(spectrum, 2 * reach + 1, (0, 1))[..., : reach + 1]
    return torch.stack((cropped.real, cropped.imag))


def _sample(channels: Float[Tensor, "2 d d w"], points: Float[Tensor, "c n 3"]) -> Complex[Tensor, "c n"]:
    """Trilinear interpolation of a half-space spectrum at frequencies (shells, xyz)."""
    # Points in the missing half are read at their Friedel mate and conjugated.
    mate = points[..., :1] < 0
    places = torch.where(mate, -points, points) * _PAD
    reach = channels.shape[-1] - 1
    places = places / reach - places.new_tensor([1.0, 0.0, 0.0]) * (1 - places / reach)
    values = torch.nn.functional.grid_sample(
        channels[None], places.reshape(1, 1, 1, -1, 3), align_corners=True
    ).reshape(2, *points.shape[:2])
    return torch.complex(values[0], torch.where(mate[..., 0], -values[1], values[1]))


def _search(
    spectrum: Complex[Tensor, "z y half"], targets: list[_Target], density: Float[Tensor, "box box box"]
) -> _Candidates:
    """Score the whole rotation grid, each at its best shift, at low resolution."""
    box = density.shape[-1]
    radius = min(_SEARCH_RADIUS, largest_radius(box))
    targets = [target.prefix(radius) for target in targets]
    frequency, shell = targets[0].frequency, targets[0].shell
    channels = _crop_spectrum(spectrum, radius)
    # A rotation keeps the power of a shell, so the FSC's norm is the same for all of them.
    rms = _shell_rms(fft3(density).flatten()[targets[0].place][None], shell)[0]
    weight = 1 / (rms * torch.bincount(shell) * radius)[shell]
    # Shifts up to a quarter of the box, at a little over the Nyquist step of the search radius.
    steps = radial_distance(11, 3) <= 5
    shifts = (steps.nonzero().flip(-1) - 5).to(density) * (box / 20)
    phase = torch.exp(2j * math.pi / box * (frequency @ shifts.T))
    grid = make_so3_grid(_SEARCH_ROTATIONS).to(density)
    parts = []
    for rotation in grid.split(1024):
        values = _sample(channels, torch.einsum("cij,nj->cni", rotation, frequency)) * weight
        for hand, target in enumerate(targets):
            product = values * target.coefficient.conj()
            score = product.real @ phase.real - product.imag @ phase.imag
            best, index = score.max(1)
            # exp(2πi (Qk)·s) with s = Q u is exp(2πi k·u): one table of u serves all rotations.
            shift = torch.einsum("cij,cj->ci", rotation, shifts[index])
            parts.append((rotation, shift, torch.full_like(index, hand), best))
    rotation, shift, hand, score = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    best = torch.argsort(score, descending=True)[:4096]
    rotation = nearest_rotation(rotation[best].double())
    return _Candidates(rotation, shift[best].double(), hand[best], score[best].double())


def _refine(
    spectrum: Complex[Tensor, "z y half"],
    targets: list[_Target],
    candidates: _Candidates,
    radius: int,
    steps: int,
) -> _Candidates:
    """Gauss–Newton from each candidate inside ``radius`` shells; keeps the best pose each one passed."""
    radius = min(radius, largest_radius(targets[0].box_size))
    channels = _crop_spectrum(spectrum, radius)
    rotation, shift = candidates.rotation.clone(), candidates.shift.clone()
    score = torch.full_like(candidates.score, -math.inf)
    for i, hand in enumerate(candidates.hand.tolist()):
        target = targets[hand].prefix(radius)
        pose = (rotation[i], shift[i])
        for _ in range(steps + 1):
            points = target.frequency @ pose[0].to(target.frequency).T
            values = _sample(channels, points[None])[0]
            values = values * torch.exp(2j * math.pi / target.box_size * (points @ pose[1].to(points)))
            value, update = _gauss_newton(target, values)
            if value > score[i]:
                rotation[i], shift[i], score[i] = pose[0], pose[1], value
            pose = _compose(*pose, update)
    return _Candidates(rotation, shift, candidates.hand, score)


def _polish(density: Float[Tensor, "box box box"], target: _Target, best: _Candidates) -> MapAlignment:
    """Take the last Gauss–Newton steps, free of the error of trilinear interpolation."""
    rotation, shift = best.rotation[0], best.shift[0]
    alignments = []
    for _ in range(_POLISH_STEPS + 1):
        alignment = MapAlignment(rotation.numpy(), shift.numpy(), False, 0.0)
        values = fft3(apply_alignment(density, alignment)).flatten()[target.place]
        score, update = _gauss_newton(target, values)
        alignments.append(MapAlignment(alignment.rotation, alignment.shift, bool(best.hand[0] == 1), float(score)))
        rotation, shift = _compose(rotation, shift, update)
    return max(alignments, key=lambda alignment: alignment.correlation)


def _gauss_newton(target: _Target, values: Complex[Tensor, " n"]) -> tuple[float, Float[Tensor, " 6"]]:
    """Mean FSC of the map's coefficients with the target, and the (δ, τ) that explains their difference.

    Fits ``values ≈ FSC · reference(exp(δ) x + τ)``, both whitened; the residual's variance is 1 − FSC².
    """
    values = values / _shell_rms(values[None], target.shell)[0][target.shell]
    product = (values * target.coefficient.conj()).real
    fsc = _shell_sum(product[None], target.shell)[0] / torch.bincount(target.shell)
    bounded = fsc.clamp(0.02, 0.98)
    weight = bounded / (1 - bounded**2)
    # Where the FSC is low because the pose is off, dividing by it would overshoot: 0.5 at least.
    gain = (weight * bounded.clamp(min=0.5))[target.shell]
    flat = torch.cat((target.jacobian.real, target.jacobian.imag), 1)
    normal = (flat * gain.repeat(2)) @ flat.T
    weighted = values * weight[target.shell]
    right = flat @ torch.cat((weighted.real, weighted.imag))
    normal, right = normal.double().cpu(), right.double().cpu()
    scale = normal.diagonal().clamp(min=1e-12).rsqrt()  # radians and px differ in size
    ridge = 1e-9 * torch.eye(6, dtype=torch.float64)
    update = scale * torch.linalg.solve(scale[:, None] * normal * scale + ridge, scale * right)
    angle = float(update[:3].norm())
    largest = 1.2 / int(target.shell[-1] + 1)  # radians; farther than this the linear model means nothing
    return float(fsc.mean()), update * min(1.0, largest / max(angle, 1e-12))


def _compose(
    rotation: Float[Tensor, "3 3"], shift: Float[Tensor, " 3"], update: Float[Tensor, " 6"]
) -> tuple[Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
    """Undo the reference's (δ, τ) in the map's pose: ``Q exp(−δ)`` and ``shift − Q exp(−δ) τ``."""
    rotation = nearest_rotation(rotation @ rotation_from_vector(-update[:3]))
    return rotation, shift - rotation @ update[3:]
