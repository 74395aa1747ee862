"""Gold-standard refinement: poses against half-maps, half-maps from poses, until their agreement stops growing.

No particle of one half is ever compared with a map that holds particles of the other, once the bootstrap's
low-resolution map has given the first poses. What the halves share are a few numbers: the noise spectrum, the
mask, the FSC that filters their references, and the list of near-symmetries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.metrics.alignment import MapAlignment
from cryoai.particles.dataset import ParticleData
from cryoai.physics.image_formation import form_images_quickly, residual_power
from cryoai.physics.insertion import Inserter
from cryoai.physics.slicing import FourierVolume, VolumeAccumulator
from cryoai.poses.local import pose_standard_deviations, refine_poses
from cryoai.refinement.halfmaps import HalfMaps, make_half_maps
from cryoai.tensors import ParticleBatch

CHUNK = 1000
"""Particles worked on at once."""
# Particles whose residuals give the noise spectrum of a half.
_NOISE_PARTICLES = 1500

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


def _chunks_by_half(
    data: ParticleData, state: RefinementState, radius: float, on_chunk: OnChunk = lambda done: None
) -> Iterator[tuple[int, Int[np.ndarray, " m"], Tensor, ParticleBatch]]:
    """All particles, a chunk of one half at a time: the half, their rows, their places in the batch, the batch."""
    used = state.used
    done = 0
    for rows, batch in data.batches(used, CHUNK, radius):
        for half in (0, 1):
            mine = np.flatnonzero(state.half[rows] == half)
            if len(mine):
                yield half, rows[mine], torch.from_numpy(mine), batch
        done += len(rows)
        on_chunk(done)


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
    for half, at, image_of, batch in _chunks_by_half(data, state, radius, on_chunk):
        inserters[half].add(batch, state.rotation[at], state.translation[at], state.noise_power, image_of)
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
        for part, batch in data.batches(rows[:: max(1, len(rows) // _NOISE_PARTICLES)], CHUNK, radius):
            model = form_images_quickly(
                volume, state.rotation[part], state.translation[part], batch.ctf, batch.disk, batch.pixel_size
            )
            power += residual_power(batch, model) * len(part)
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
    for half, at, image_of, batch in _chunks_by_half(data, state, radius, on_chunk):
        found = refine_poses(
            batch, references[half], state.noise_power, rotation[at], translation[at], image_of, iterations
        )
        rotation[at], translation[at] = found.rotation, found.translation
        stds = pose_standard_deviations(found.hessian)
        rotation_std[at], translation_std[at] = stds[0].float(), stds[1].float()
    return replace(
        state,
        rotation=rotation,
        translation=translation,
        rotation_std=rotation_std,
        translation_std=translation_std,
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
    for half, at, image_of, batch in _chunks_by_half(data, state, radius, on_chunk):
        poses = [(rotation[at], translation[at])]
        poses += [_apply_mate(mate, *poses[0], data.pixel_size) for mate in mates]
        local = refine_poses(
            batch, references[half], state.noise_power,
            torch.cat([r for r, _ in poses]), torch.cat([t for _, t in poses]), image_of.repeat(len(poses)), 4,
        )  # fmt: skip
        cost = local.cost.view(len(poses), len(at))
        pick = cost.argmin(0) * len(at) + torch.arange(len(at))
        rotation[at], translation[at] = local.rotation[pick], local.translation[pick]
        weight[at] = torch.softmax(-cost, 0).amax(0).float()
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
    for half, at, image_of, batch in _chunks_by_half(data, state, radius):
        gain[at], expected[at] = fit_gain(
            batch[image_of], references[half], state.noise_power, state.rotation[at], state.translation[at]
        )
    return gain, expected


def fit_gain(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """`score_all` for a batch: what each particle gains over no particle at all, and what it should.

    Parameters
    ----------
    batch
        The particles.
    volume
        Their map.
    noise_power
        ``E|noise|²`` per shell.
    rotation, translation
        Their poses; Å.
    """
    precision = 1 / noise_power[batch.disk.shell]
    model = form_images_quickly(volume, rotation, translation, batch.ctf, batch.disk, batch.pixel_size)
    power = ((model.real**2 + model.imag**2) * precision).sum(1)
    product = batch.images * model.conj()
    return 2 * (product.real * precision).sum(1) - power, power
