"""Poses against half-maps, half-maps and noise from poses: what a round of the refinement is made of.

No particle of one half is ever compared with a map that holds particles of the other, once the first poses are
given by a map that both halves share. Beyond that map's shells the halves share a few numbers only: the noise
spectrum, the mask, the FSC that filters their references, and the list of near-symmetries.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int

from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.image_formation import form_images_quickly, residual_power
from cryoai.physics.insertion import Inserter
from cryoai.physics.slicing import VolumeAccumulator
from cryoai.physics.symmetrize import symmetrize
from cryoai.poses.local import pose_standard_deviations, refine_poses
from cryoai.refinement.halfmaps import HalfMaps, make_half_maps
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState

# Particles whose residuals give the noise spectrum of a half.
_NOISE_PARTICLES = 1500
_ITERATIONS = 4


def reconstruct_halves(
    data: ParticleData,
    state: RefinementState,
    radius: float,
    diameter_px: float | None,
    on_chunk: OnChunk = lambda done: None,
    symmetry: str = "C1",
) -> HalfMaps:
    """Half-maps from the current poses.

    Parameters
    ----------
    data, state
        Particles and their poses.
    radius
        Largest shell inserted.
    diameter_px
        Of the particle, if known.
    on_chunk
        Called with the particles done so far.
    symmetry
        That the maps are given, with RELION's axes.
    """
    first, second = insert_particles(data, state, radius, on_chunk=on_chunk)
    both = (symmetrize(first, symmetry), symmetrize(second, symmetry))
    return make_half_maps(both, radius, data.pixel_size, diameter_px)


def insert_particles(
    data: ParticleData,
    state: RefinementState,
    radius: float,
    rows: Int[np.ndarray, " m"] | None = None,
    on_chunk: OnChunk = lambda done: None,
) -> tuple[VolumeAccumulator, VolumeAccumulator]:
    """What the particles of each half add up to at their current poses.

    Each counts for what its pose is certain, where it may be elsewhere its noise would be sharpened, and for how
    likely it is there at all.

    Parameters
    ----------
    data, state
        Particles and their poses.
    radius
        Largest shell inserted.
    rows
        Which particles; by default all that take part.
    on_chunk
        Called with the particles done so far.
    """
    counts_for = state.certainty * state.presence
    inserters = [Inserter(data.disk.box_size, radius, device=data.device) for _ in (0, 1)]

    def insert(portion: Portion) -> None:
        inserters[portion.map_index].add(
            portion.batch, state.rotation[portion.rows], state.translation[portion.rows], state.noise_power,
            portion.image_of, counts_for[portion.rows],
        )  # fmt: skip

    map_particles(data, References(state.half), insert, rows, radius, on_chunk, state.rotation)
    return inserters[0].result(), inserters[1].result()


def update_noise(
    data: ParticleData, state: RefinementState, references: References, radius: float
) -> RefinementState:
    """Noise spectrum from the residuals of some particles; beyond ``radius`` shells the old one is kept."""
    shells = data.disk.prefix(radius).shell_count
    power, count = torch.zeros(shells), 0

    def add_residuals(portion: Portion) -> None:
        nonlocal count
        batch, at = portion.own_batch, portion.rows
        model = form_images_quickly(
            portion.volume, state.rotation[at], state.translation[at], batch.ctf, batch.disk, batch.pixel_size
        )
        power.add_(residual_power(batch, model) * len(at))
        count += len(at)

    for half in (0, 1):
        map_particles(
            data,
            references,
            add_residuals,
            sample_rows(np.intersect1d(state.present, state.rows(half)), _NOISE_PARTICLES),
            radius,
        )
    measured = power / max(1, count)
    noise = state.noise_power.clone()
    noise[1 : len(measured)] = measured[1:].clamp(min=1e-12)
    return replace(state, noise_power=noise)


def refine_locally(
    data: ParticleData,
    state: RefinementState,
    references: References,
    radius: float,
    iterations: int = _ITERATIONS,
    on_chunk: OnChunk = lambda done: None,
) -> RefinementState:
    """Gauss-Newton on every particle against its own half's map; with 0 iterations only its standard deviations."""
    rotation, translation = state.rotation.clone(), state.translation.clone()
    rotation_std, translation_std = state.rotation_std.clone(), state.translation_std.clone()

    def refine(portion: Portion) -> None:
        at = portion.rows
        found = refine_poses(
            portion.batch, portion.volume, state.noise_power, rotation[at], translation[at], portion.image_of,
            iterations,
        )  # fmt: skip
        rotation[at], translation[at] = found.rotation, found.translation
        stds = pose_standard_deviations(found.hessian)
        rotation_std[at], translation_std[at] = stds[0].float(), stds[1].float()

    map_particles(data, references, refine, radius=radius, on_chunk=on_chunk, views=state.rotation)
    return replace(
        state,
        rotation=rotation,
        translation=translation,
        rotation_std=rotation_std,
        translation_std=translation_std,
    )
