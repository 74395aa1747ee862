"""Gold-standard refinement: poses against half-maps, half-maps from poses, until their agreement stops growing.

No particle of one half is ever compared with a map that holds particles of the other, once the bootstrap's
low-resolution map has given the first poses. What the halves share are a few numbers: the noise spectrum, the
mask, the FSC that filters their references, and the list of near-symmetries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoai.geometry.rotations import rotation_angle
from cryoai.metrics.alignment import MapAlignment
from cryoai.particles.dataset import ParticleData
from cryoai.physics.insertion import Inserter, slice_quickly
from cryoai.physics.slicing import FourierVolume, VolumeAccumulator
from cryoai.physics.translation import compute_shift
from cryoai.poses.local import pose_standard_deviations, refine_poses
from cryoai.poses.search import SearchGrid, search_poses
from cryoai.reconstruction.halfmaps import HalfMaps, make_half_maps
from cryoai.tensors import ParticleBatch, PoseHypotheses

_CHUNK = 1000
# Particles whose residuals give the noise spectrum of a half.
_NOISE_PARTICLES = 1500
# Two refined hypotheses closer than this are the same pose.
_SAME_POSE_RADIANS = 0.05

OnChunk = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class RefinementState:
    """Everything a refinement carries from round to round; one entry per particle of the set.

    Attributes
    ----------
    rotation
        (n, 3, 3).
    translation
        (n, 2), Å.
    half
        (n,) 0 or 1; -1 for particles left out.
    noise_power
        ``E|noise|²`` per shell.
    confidence
        (n,) probability that the pose is in the right basin; 0 for particles left out.
    rotation_std, translation_std
        (n,) radians and Å, from the Gauss-Newton Hessian.
    """

    rotation: Float[Tensor, "n 3 3"]
    translation: Float[Tensor, "n 2"]
    half: Int[np.ndarray, " n"]
    noise_power: Float[Tensor, " shells"]
    confidence: Float[Tensor, " n"]
    rotation_std: Float[Tensor, " n"]
    translation_std: Float[Tensor, " n"]

    def rows(self, half: int) -> Int[np.ndarray, " m"]:
        """The particles of one half."""
        return np.flatnonzero(self.half == half)

    @property
    def used(self) -> Int[np.ndarray, " m"]:
        """The particles that take part."""
        return np.flatnonzero(self.half >= 0)


def start_refinement(data: ParticleData, noise_power: Tensor, seed: int) -> RefinementState:
    """Split the usable particles in two at random; poses are still to be found."""
    n = len(data)
    half = np.full(n, -1)
    shuffled = np.random.default_rng(seed).permutation(data.usable_rows)
    half[shuffled[0::2]], half[shuffled[1::2]] = 0, 1
    return RefinementState(
        torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 2), half, noise_power,
        torch.zeros(n), torch.full((n,), np.nan), torch.full((n,), np.nan),
    )  # fmt: skip


def reconstruct_halves(
    data: ParticleData,
    state: RefinementState,
    radius: float,
    diameter: float | None,
    on_chunk: OnChunk = lambda done: None,
) -> HalfMaps:
    """Half-maps from the current poses.

    Parameters
    ----------
    data, state
        Particles and their poses.
    radius
        Largest shell inserted.
    diameter
        px of the particle, if known.
    on_chunk
        Called with the particles done so far.
    """
    inserters = [Inserter(data.disk.box_size, radius, device=data.device) for _ in (0, 1)]
    used = state.used
    done = 0
    for rows, batch in data.batches(used, _CHUNK, radius):
        for half, inserter in enumerate(inserters):
            mine = np.flatnonzero(state.half[rows] == half)
            if len(mine) == 0:
                continue
            inserter.add(
                batch, state.rotation[rows[mine]], state.translation[rows[mine]], state.noise_power,
                torch.from_numpy(mine),
            )  # fmt: skip
        done += len(rows)
        on_chunk(done)
    accumulators: tuple[VolumeAccumulator, VolumeAccumulator] = tuple(i.result() for i in inserters)  # type: ignore[assignment]
    return make_half_maps(accumulators, radius, data.pixel_size, diameter)


def update_noise(
    data: ParticleData, state: RefinementState, references: Sequence[FourierVolume], radius: float
) -> RefinementState:
    """Noise spectrum from the residuals of some particles; beyond ``radius`` shells the old one is kept."""
    shells = data.disk.prefix(radius).shell_count
    power, count = torch.zeros(shells), 0
    for half, volume in enumerate(references):
        rows = state.rows(half)
        for part, batch in data.batches(rows[:: max(1, len(rows) // _NOISE_PARTICLES)], _CHUNK, radius):
            model = slice_quickly(volume, state.rotation[part], batch.disk) * batch.ctf
            model = model * compute_shift(state.translation[part], batch.disk, batch.pixel_size)
            residual = batch.images - model
            power += batch.disk.mean_per_shell((residual.abs() ** 2).sum(0))
            count += len(part)
    measured = power / max(1, count)
    noise = state.noise_power.clone()
    noise[1 : len(measured)] = measured[1:].clamp(min=1e-12)
    return replace(state, noise_power=noise)


def refine_locally(
    data: ParticleData,
    state: RefinementState,
    references: Sequence[FourierVolume],
    radius: float,
    iterations: int = 4,
    on_chunk: OnChunk = lambda done: None,
) -> RefinementState:
    """Gauss-Newton on every particle against its own half's map."""
    rotation, translation = state.rotation.clone(), state.translation.clone()
    rotation_std, translation_std = state.rotation_std.clone(), state.translation_std.clone()
    used = state.used
    done = 0
    for rows, batch in data.batches(used, _CHUNK, radius):
        for half, volume in enumerate(references):
            mine = np.flatnonzero(state.half[rows] == half)
            if len(mine) == 0:
                continue
            at = rows[mine]
            found = refine_poses(
                batch,
                volume,
                state.noise_power,
                rotation[at],
                translation[at],
                torch.from_numpy(mine),
                iterations,
            )
            rotation[at], translation[at] = found.rotation, found.translation
            stds = pose_standard_deviations(found.hessian)
            rotation_std[at], translation_std[at] = stds[0].float(), stds[1].float()
        done += len(rows)
        on_chunk(done)
    return replace(
        state,
        rotation=rotation,
        translation=translation,
        rotation_std=rotation_std,
        translation_std=translation_std,
    )


@dataclass(frozen=True)
class GlobalSearch:
    """How particles are searched globally: a funnel from many poses at low resolution to one at high.

    Attributes
    ----------
    grid
        Rotations and translations.
    radius
        Shells at which the grid is scored.
    keep
        Grid poses kept per particle.
    stages
        (radius, hypotheses) of each round of local refinement; after each, that many of the likeliest distinct
        hypotheses go on. Radii grow because a pose that is off by δ can only be pulled in by frequencies whose
        phase δ turns by less than a quarter period.
    """

    grid: SearchGrid
    radius: float
    keep: int
    stages: tuple[tuple[float, int], ...]


def search_globally(
    data: ParticleData,
    state: RefinementState,
    references: Sequence[FourierVolume],
    rows: Int[np.ndarray, " m"],
    search: GlobalSearch,
    keep_current: bool = True,
    on_chunk: OnChunk = lambda done: None,
) -> tuple[RefinementState, Bool[np.ndarray, " m"]]:
    """Search some particles over all poses; the best refined hypothesis wins.

    Parameters
    ----------
    data, state
        Particles and their poses.
    references
        One map per half.
    rows
        The particles.
    search
        The grid and the radii.
    keep_current
        Let the current pose compete.
    on_chunk
        Called with the particles done so far.

    Returns
    -------
    tuple
        The new state, and which of ``rows`` changed to another pose.
    """
    rotation, translation = state.rotation.clone(), state.translation.clone()
    moved = np.zeros(len(rows), bool)
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        batch = data.batch(part, max(search.radius, *(radius for radius, _ in search.stages)))
        for half, volume in enumerate(references):
            mine = np.flatnonzero(state.half[part] == half)
            if len(mine) == 0:
                continue
            at = part[mine]
            current = (state.rotation[at], state.translation[at]) if keep_current else None
            best_r, best_t = _search_batch(
                batch[torch.from_numpy(mine)], volume, state.noise_power, search, current
            )
            if keep_current:
                moved[start + mine] = (rotation_angle(best_r, state.rotation[at]) > _SAME_POSE_RADIANS).numpy()
            rotation[at], translation[at] = best_r, best_t
        on_chunk(start + len(part))
    return replace(state, rotation=rotation, translation=translation), moved


def _search_batch(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Tensor,
    search: GlobalSearch,
    current: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The funnel for particles of one half; returns their rotations and translations."""
    hypotheses = search_poses(batch.prefix(search.radius), volume, noise_power, search.grid, search.keep)
    for stage, (radius, keep) in enumerate(search.stages):
        if current is not None and stage == len(search.stages) - 1:
            hypotheses = _append(hypotheses, *current)
        hypotheses = _refine_hypotheses(batch.prefix(radius), volume, noise_power, hypotheses)
        hypotheses = _distinct(hypotheses, keep)
    return hypotheses.rotation[:, 0], hypotheses.translation[:, 0]


def _refine_hypotheses(
    batch: ParticleBatch, volume: FourierVolume, noise_power: Tensor, hypotheses: PoseHypotheses
) -> PoseHypotheses:
    """All hypotheses refined locally, and weighed at this batch's radius."""
    shape = hypotheses.log_weight.shape
    image_of = torch.arange(shape[0]).repeat_interleave(shape[1])
    rotation, translation = hypotheses.rotation.flatten(0, 1), hypotheses.translation.flatten(0, 1)
    local = refine_poses(batch, volume, noise_power, rotation, translation, image_of, 4)
    return PoseHypotheses(
        local.rotation.unflatten(0, shape),
        local.translation.unflatten(0, shape),
        -local.cost.float().view(shape),
    )


def _distinct(hypotheses: PoseHypotheses, keep: int) -> PoseHypotheses:
    """The best hypotheses that are not the same pose as a better one; duplicates fill up if there are too few."""
    ordered = hypotheses.sorted()
    trace = torch.einsum("bhij,bkij->bhk", ordered.rotation, ordered.rotation)
    same = (trace > 1 + 2 * math.cos(_SAME_POSE_RADIANS)).tril(-1).any(2)
    demoted = ordered.log_weight - torch.where(same, 1e9, 0.0)
    unique = PoseHypotheses(ordered.rotation, ordered.translation, demoted)
    return unique.sorted(keep)


def _append(hypotheses: PoseHypotheses, rotation: Tensor, translation: Tensor) -> PoseHypotheses:
    return PoseHypotheses(
        torch.cat((hypotheses.rotation, rotation[:, None]), 1),
        torch.cat((hypotheses.translation, translation[:, None]), 1),
        torch.nn.functional.pad(hypotheses.log_weight, (0, 1)),
    )


def try_mates(
    data: ParticleData,
    state: RefinementState,
    references: Sequence[FourierVolume],
    mates: Sequence[MapAlignment],
    radius: float,
    on_chunk: OnChunk = lambda done: None,
) -> tuple[RefinementState, Float[Tensor, " n"]]:
    """Try every particle at the mates of its pose under the map's near-symmetries; the likeliest pose wins.

    Parameters
    ----------
    data, state
        Particles and their poses.
    references
        One map per half.
    mates
        ``map(x) ≈ map(Q x + shift)``, shifts in px.
    radius
        Shells at which the mates compete; only high resolution can tell them apart.
    on_chunk
        Called with the particles done so far.

    Returns
    -------
    tuple
        The new state, and the posterior weight of each particle's new pose among its mates.
    """
    rotation, translation = state.rotation.clone(), state.translation.clone()
    weight = torch.ones(len(data))
    used, done = state.used, 0
    for rows, batch in data.batches(used, _CHUNK, radius):
        for half, volume in enumerate(references):
            mine = np.flatnonzero(state.half[rows] == half)
            if len(mine) == 0:
                continue
            at = rows[mine]
            poses = [(rotation[at], translation[at])]
            poses += [_apply_mate(mate, *poses[0], data.pixel_size) for mate in mates]
            image_of = torch.from_numpy(mine).repeat(len(poses))
            local = refine_poses(
                batch, volume, state.noise_power,
                torch.cat([r for r, _ in poses]), torch.cat([t for _, t in poses]), image_of, 4,
            )  # fmt: skip
            cost = local.cost.view(len(poses), len(mine))
            best = cost.argmin(0)
            pick = best * len(mine) + torch.arange(len(mine))
            rotation[at], translation[at] = local.rotation[pick], local.translation[pick]
            weight[at] = torch.softmax(-cost, 0).amax(0).float()
        done += len(rows)
        on_chunk(done)
    return replace(state, rotation=rotation, translation=translation), weight


def _apply_mate(
    mate: MapAlignment, rotation: Tensor, translation: Tensor, pixel_size: float
) -> tuple[Tensor, Tensor]:
    """The pose at which the nearly symmetric map looks the same: ``Q R``, and the shift seen in its plane."""
    turned = torch.from_numpy(mate.rotation).to(rotation) @ rotation
    shift = torch.from_numpy(mate.shift).to(translation) * pixel_size
    return turned, translation - (shift @ turned)[:, :2]


def score_all(
    data: ParticleData,
    state: RefinementState,
    references: Sequence[FourierVolume],
    radius: float,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-likelihood gain of each particle over no particle at all, and its expectation at the right pose.

    For a right pose and a perfect map the gain is Gaussian around the expectation E with variance 2 E.
    """
    n = len(data)
    gain, expected = torch.zeros(n), torch.zeros(n)
    for rows, batch in data.batches(state.used, _CHUNK, radius):
        precision = 1 / state.noise_power[batch.disk.shell]
        for half, volume in enumerate(references):
            mine = np.flatnonzero(state.half[rows] == half)
            if len(mine) == 0:
                continue
            at = rows[mine]
            model = slice_quickly(volume, state.rotation[at], batch.disk) * batch.ctf[mine]
            model = model * compute_shift(state.translation[at], batch.disk, batch.pixel_size)
            power = ((model.real**2 + model.imag**2) * precision).sum(1)
            product = batch.images[mine] * model.conj()
            expected[at] = power
            gain[at] = 2 * (product.real * precision).sum(1) - power
    return gain, expected
