"""Searching particles over all poses against their half's map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoai.geometry.rotations import rotation_angle
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.local import refine_poses
from cryoai.poses.search import SearchGrid, search_poses
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState
from cryoai.tensors import ParticleBatch, PoseHypotheses

# Two refined hypotheses closer than this are the same pose.
_SAME_POSE_RADIANS = 0.05
_ITERATIONS = 4


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
    references: References,
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
        Which map is whose.
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

    def find(portion: Portion) -> None:
        at = portion.rows
        current = (state.rotation[at], state.translation[at]) if keep_current else None
        rotation[at], translation[at] = search_batch(
            portion.own_batch, portion.volume, state.noise_power, search, current
        )

    radius = max(search.radius, *(radius for radius, _ in search.stages))
    map_particles(data, references, find, rows, radius, on_chunk)
    moved = rotation_angle(rotation[rows], state.rotation[rows]) > _SAME_POSE_RADIANS
    return replace(state, rotation=rotation, translation=translation), moved.numpy()


def search_batch(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    search: GlobalSearch,
    current: tuple[Tensor, Tensor] | None,
) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"]]:
    """The funnel for a batch: the best rotation and translation (Å) of each particle.

    The grid of ``search`` is scored; what it keeps goes through `refine_in_stages`, whose parameters these are.
    """
    hypotheses = search_poses(batch.prefix(search.radius), volume, noise_power, search.grid, search.keep)
    best = refine_in_stages(batch, volume, noise_power, hypotheses, search.stages, current)
    return best.rotation[:, 0], best.translation[:, 0]


def refine_in_stages(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    hypotheses: PoseHypotheses,
    stages: Sequence[tuple[float, int]],
    current: tuple[Tensor, Tensor] | None = None,
) -> PoseHypotheses:
    """The second part of the funnel: hypotheses refined locally at growing radii, fewer each time.

    Parameters
    ----------
    batch
        The particles.
    volume
        What they are compared with.
    noise_power
        ``E|noise|²`` per shell.
    hypotheses
        Of each particle.
    stages
        As in `GlobalSearch`.
    current
        Rotation and translation that compete in the last stage.
    """
    for stage, (radius, keep) in enumerate(stages):
        if current is not None and stage == len(stages) - 1:
            hypotheses = _append(hypotheses, *current)
        hypotheses = _refine_hypotheses(batch.prefix(radius), volume, noise_power, hypotheses)
        hypotheses = _distinct(hypotheses, keep)
    return hypotheses


def _refine_hypotheses(
    batch: ParticleBatch, volume: FourierVolume, noise_power: Tensor, hypotheses: PoseHypotheses
) -> PoseHypotheses:
    """All hypotheses refined locally, and weighed at this batch's radius."""
    shape = hypotheses.log_weight.shape
    image_of = torch.arange(shape[0]).repeat_interleave(shape[1])
    rotation, translation = hypotheses.rotation.flatten(0, 1), hypotheses.translation.flatten(0, 1)
    local = refine_poses(batch, volume, noise_power, rotation, translation, image_of, _ITERATIONS)
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
