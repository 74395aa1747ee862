"""Finding poses of a map on a reference: a grid of rotations at low resolution, then Gauss–Newton.

`alignment` and `near_symmetry` are made of these parts; the signs are those of `alignment`'s page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import crop_or_pad, fft3, largest_radius
from cryoai.geometry.half_space import read_half_space
from cryoai.geometry.rotations import nearest_rotation, rotation_angle, rotation_from_vector
from cryoai.geometry.shells import half_space_axes, half_space_radius, mean_per_shell, radial_distance
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.physics.slicing import gridding_correction

# Fourier points per shell, for interpolation.
_PAD = 2
_SEARCH_RADIUS = 7
_SEARCH_ROTATIONS = 13824
# Coefficients of turned maps at once.
_POINTS_AT_ONCE = 2**19


@dataclass(frozen=True, eq=False)
class Target:
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

    @cached_property
    def products(self) -> Float[Tensor, "36 n"]:
        """Real parts of each derivative times the conjugate of each: sums of them are normal equations."""
        return (self.jacobian[:, None] * self.jacobian.conj()).real.flatten(0, 1)

    def prefix(self, radius: int) -> Target:
        """Keep the coefficients up to and including shell ``radius``."""
        n = int((self.shell < radius).sum())
        return Target(
            self.box_size,
            self.frequency[:n],
            self.place[:n],
            self.shell[:n],
            self.coefficient[:n],
            self.jacobian[:, :n],
        )


@dataclass(frozen=True, eq=False)
class Candidates:
    """Poses of the map under trial; ``hand`` is the index of the target."""

    rotation: Float[Tensor, "n 3 3"]
    shift: Float[Tensor, "n 3"]
    hand: Int[Tensor, " n"]
    score: Float[Tensor, " n"]

    def distinct(self, keep: int) -> Candidates:
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
        return Candidates(self.rotation[rows], self.shift[rows], self.hand[rows], self.score[rows])


def make_target(reference: Float[Tensor, "box box box"]) -> Target:
    """Transform a reference and its derivatives."""
    box = reference.shape[-1]
    half_space = (box, box, box // 2 + 1)
    kz, ky, kx = torch.broadcast_tensors(*(k.to(reference) for k in half_space_axes(half_space)))
    radius = half_space_radius(half_space).to(reference)
    once = (kx > 0) | (ky > 0) | ((ky == 0) & (kz > 0))  # one of each Friedel pair
    chosen = (once & (radius.round() >= 1) & (radius.round() <= largest_radius(box))).flatten().nonzero()[:, 0]
    place = chosen[torch.argsort(radius.flatten()[chosen], stable=True)]
    frequency = torch.stack([k.flatten()[place] for k in (kx, ky, kz)], -1)
    shell = radius.flatten()[place].round().long() - 1
    coefficient = fft3(reference).flatten()[place]
    axis = (torch.arange(box, dtype=torch.float32) - box // 2).to(reference)
    x, y, z = axis[None, None, :], axis[None, :, None], axis[:, None, None]
    moment = torch.stack([fft3(reference * r).flatten()[place] for r in (x, y, z)], -1)
    turn = -2j * math.pi / box
    # V̂(exp(δ) k) ≈ V̂ + (δ × k)·∇V̂ = V̂ + δ·(k × ∇V̂), and ∇V̂ is the transform of −2πi x V / box.
    jacobian = torch.cat(
        (torch.linalg.cross(frequency + 0j, moment * turn), -turn * frequency * coefficient[:, None]), -1
    )
    size = _shell_rms(coefficient[None], shell)[0][shell]
    return Target(box, frequency, place, shell, coefficient / size, (jacobian / size[:, None]).mT.contiguous())


def _shell_rms(values: Complex[Tensor, "c n"], shell: Int[Tensor, " n"]) -> Float[Tensor, "c shells"]:
    return mean_per_shell(values.abs() ** 2, shell).sqrt().clamp(min=1e-20)


def padded_spectrum(density: Float[Tensor, "box box box"]) -> Complex[Tensor, "z y half"]:
    """Transform on a finer Fourier grid, corrected for the roll-off of trilinear interpolation in it."""
    box = density.shape[-1]
    corrected = density / gridding_correction(box, _PAD, density.device)
    return fft3(crop_or_pad(corrected, _PAD * box, (0, 1, 2)))


def _crop_spectrum(spectrum: Complex[Tensor, "z y half"], radius: int) -> Float[Tensor, "2 d d w"]:
    """Cut out the part needed inside ``radius`` shells, as real and imaginary channels."""
    reach = min(_PAD * (radius + 1) + 1, spectrum.shape[-1] - 1)
    cropped = crop_or_pad(spectrum, 2 * reach + 1, (0, 1))[..., : reach + 1]
    return torch.stack((cropped.real, cropped.imag))


def search_rotations(
    spectrum: Complex[Tensor, "z y half"], targets: list[Target], density: Float[Tensor, "box box box"]
) -> Candidates:
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
        values = read_half_space(channels, torch.einsum("cij,nj->cni", rotation, frequency) * _PAD) * weight
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
    return Candidates(rotation, shift[best].double(), hand[best], score[best].double())


def refine_candidates(
    spectrum: Complex[Tensor, "z y half"],
    targets: list[Target],
    candidates: Candidates,
    radius: int,
    steps: int,
) -> Candidates:
    """Gauss–Newton from each candidate inside ``radius`` shells; keeps the best pose each one passed."""
    radius = min(radius, largest_radius(targets[0].box_size))
    channels = _crop_spectrum(spectrum, radius)
    rotation, shift = candidates.rotation.clone(), candidates.shift.clone()
    score = torch.full_like(candidates.score, -math.inf)
    for hand, target in enumerate(target.prefix(radius) for target in targets):
        of_hand = (candidates.hand == hand).nonzero()[:, 0]
        for rows in of_hand.split(max(1, _POINTS_AT_ONCE // len(target.place))):
            pose = (rotation[rows], shift[rows])
            for _ in range(steps + 1):
                value, update = gauss_newton(target, _turned(channels, target, *pose))
                better = value > score[rows]
                for best, new in ((rotation, pose[0]), (shift, pose[1]), (score, value)):
                    best[rows[better]] = new[better]
                pose = compose(*pose, update)
    return Candidates(rotation, shift, candidates.hand, score)


def _turned(
    channels: Float[Tensor, "2 d d w"],
    target: Target,
    rotation: Float[Tensor, "c 3 3"],
    shift: Float[Tensor, "c 3"],
) -> Complex[Tensor, "c n"]:
    """The map's coefficients at each pose, where the target's are."""
    points = torch.einsum("cij,nj->cni", rotation.to(target.frequency), target.frequency)
    phase = torch.einsum("cni,ci->cn", points, shift.to(points)) * (2 * math.pi / target.box_size)
    return read_half_space(channels, points * _PAD) * torch.polar(torch.ones_like(phase), phase)


def gauss_newton(
    target: Target, values: Complex[Tensor, "c n"]
) -> tuple[Float[Tensor, " c"], Float[Tensor, "c 6"]]:
    """Mean FSC of the map's coefficients with the target, and the (δ, τ) that explains their difference.

    Fits ``values ≈ FSC · reference(exp(δ) x + τ)``, both whitened; the residual's variance is 1 − FSC². Each
    row is a pose of its own; results are in the host's memory.
    """
    values = values / _shell_rms(values, target.shell)[:, target.shell]
    product = (values * target.coefficient.conj()).real
    fsc = mean_per_shell(product, target.shell)
    bounded = fsc.clamp(0.02, 0.98)
    weight = bounded / (1 - bounded**2)
    # Where the FSC is low because the pose is off, dividing by it would overshoot: 0.5 at least.
    gain = (weight * bounded.clamp(min=0.5))[:, target.shell]
    normal = (gain @ target.products.T).unflatten(1, (6, 6))
    weighted = values * weight[:, target.shell]
    right = weighted.real @ target.jacobian.real.T + weighted.imag @ target.jacobian.imag.T
    normal, right = normal.double().cpu(), right.double().cpu()
    scale = normal.diagonal(dim1=1, dim2=2).clamp(min=1e-12).rsqrt()  # radians and px differ in size
    ridge = 1e-9 * torch.eye(6, dtype=torch.float64)
    update = scale * torch.linalg.solve(scale[:, :, None] * normal * scale[:, None] + ridge, scale * right)
    angle = update[:, :3].norm(dim=1, keepdim=True)
    largest = 1.2 / int(target.shell[-1] + 1)  # radians; farther than this the linear model means nothing
    return fsc.mean(1).double().cpu(), update * (largest / angle.clamp(min=largest))


def compose(
    rotation: Float[Tensor, "c 3 3"], shift: Float[Tensor, "c 3"], update: Float[Tensor, "c 6"]
) -> tuple[Float[Tensor, "c 3 3"], Float[Tensor, "c 3"]]:
    """Undo the reference's (δ, τ) in the map's poses: ``Q exp(−δ)`` and ``shift − Q exp(−δ) τ``."""
    rotation = nearest_rotation(rotation @ rotation_from_vector(-update[:, :3]))
    return rotation, shift - (rotation @ update[:, 3:, None])[..., 0]
