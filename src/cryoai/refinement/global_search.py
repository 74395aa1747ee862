"""Searching particles over all poses against their half's map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import full_radius
from cryoai.geometry.rotations import rotation_angle
from cryoai.particles.dataset import ParticleData
from cryoai.physics.kernels import runs_kernels
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.local import refine_poses
from cryoai.poses.posterior import MASK_MARGIN, direction_spacing
from cryoai.poses.pruned_search import PrunedSearch
from cryoai.poses.search import make_search_grid, search_poses, translation_step
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState
from cryoai.tensors import ParticleBatch, PoseHypotheses

BASIN_RADIANS = 0.17
"""A pose this close (10°) to a better one is as good as right where that one is."""

# Two refined hypotheses closer than this are the same pose.
_SAME_POSE_RADIANS = 0.05
_ITERATIONS = 4


@dataclass(frozen=True)
class GlobalSearch:
    """How particles are searched globally: a funnel from many poses at low resolution to one at high.

    Attributes
    ----------
    radius
        Shells at which the grid is scored.
    reach
        Largest translation tried, box lengths.
    support
        Radius of the particle, box lengths.
    keep
        Views kept per particle.
    stages
        (radius, hypotheses) of each round of local refinement; after each, that many of the likeliest distinct
        hypotheses go on. Radii grow because a pose that is off by δ can only be pulled in by frequencies whose
        phase δ turns by less than a quarter period.
    finer
        How many times closer views lie than the radius needs.
    seed
        Turns the grid; None leaves it.
    symmetry
        Of the maps, with RELION's axes: only an asymmetric unit is searched.
    """

    radius: int
    reach: float
    support: float
    keep: int
    stages: tuple[tuple[float, int], ...]
    finer: float = 1.0
    seed: int | None = None
    symmetry: str = "C1"

    def candidates(
        self, batch: ParticleBatch, volume: FourierVolume, noise_power: Float[Tensor, " shells"]
    ) -> PoseHypotheses:
        """The best poses of the grid: by angular modes where the kernels run, elsewhere as a plain product."""
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        if runs_kernels(volume.device):
            views = _make_views(
                batch.disk.box_size, batch.pixel_size, self.radius, self.support, self.reach, self.finer,
                self.symmetry,
            )  # fmt: skip
            return views(batch, volume, noise_power, self.keep, generator)
        # As many rotations as directions this far apart call for.
        spacing = direction_spacing(self.radius, self.support, self.finer)
        reach, step = self.reach * batch.box_length, translation_step(self.radius, batch.box_length)
        grid = make_search_grid(round(8 * math.pi**2 / spacing**3), reach, step, generator, self.symmetry)
        return search_poses(batch.prefix(self.radius + 0.01), volume, noise_power, grid, self.keep)


@lru_cache(maxsize=4)
def _make_views(
    box_size: int, pixel_size: float, radius: int, support: float, reach: float, finer: float, symmetry: str
) -> PrunedSearch:
    return PrunedSearch(box_size, pixel_size, radius, support, reach, finer, symmetry)


def search_globally(
    data: ParticleData,
    state: RefinementState,
    references: References,
    rows: Int[np.ndarray, " m"],
    search: GlobalSearch,
    keep_current: bool = True,
    on_chunk: OnChunk = lambda done: None,
    mates: Float[Tensor, "g 3 3"] | None = None,
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
        Let the current pose compete; how certain the winner is then, and whether it is the current one, is kept.
    on_chunk
        Called with the particles done so far.
    mates
        Rotations to poses that count as the same, `Mates.rotations`, between the near ones of which `try_mates`
        decides.

    Returns
    -------
    tuple
        The new state, and which of ``rows`` changed to another pose.
    """
    rotation, translation, certainty = state.rotation.clone(), state.translation.clone(), state.certainty.clone()

    def find(portion: Portion) -> None:
        at = portion.rows
        current = (state.rotation[at], state.translation[at]) if keep_current else None
        rotation[at], translation[at], sure = search_batch(
            portion.own_batch, portion.volume, state.noise_power, search, current, mates
        )
        if keep_current:
            certainty[at] = sure

    radius = max(search.radius + MASK_MARGIN, *(radius for radius, _ in search.stages))
    map_particles(data, references, find, rows, min(radius, full_radius(data.disk.box_size)), on_chunk)
    moved = (rotation_angle(rotation[rows], state.rotation[rows]) > _SAME_POSE_RADIANS).numpy()
    is_confirmed = state.is_confirmed.copy()
    is_confirmed[rows] = keep_current & ~moved
    found = replace(
        state, rotation=rotation, translation=translation, certainty=certainty, is_confirmed=is_confirmed
    )
    return found, moved


def search_batch(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    search: GlobalSearch,
    current: tuple[Tensor, Tensor] | None,
    mates: Float[Tensor, "g 3 3"] | None = None,
) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"], Float[Tensor, " batch"]]:
    """The funnel for a batch: the best rotation, translation (Å) and certainty of each particle.

    The grid of ``search`` is scored; what it keeps goes through `refine_in_stages`, whose parameters these are. A
    pose's certainty is the share that it, its neighbours and, with ``mates`` as of `search_globally`, those have
    in the posterior over all hypotheses that come to the last stage.
    """
    hypotheses = search.candidates(batch, volume, noise_power)
    *stages, (last, _) = search.stages
    count = hypotheses.log_weight.shape[1] if not stages else stages[-1][1]
    found = refine_in_stages(batch, volume, noise_power, hypotheses, (*stages, (last, count)), current)
    share = found.log_weight.softmax(1)
    best = found.rotation[:, :1]
    alike = best if mates is None else mates.to(best) @ best
    shape = (*share.shape, alike.shape[1], 3, 3)
    near = rotation_angle(found.rotation[:, :, None].expand(shape), alike[:, None].expand(shape)) < BASIN_RADIANS
    return best[:, 0], found.translation[:, 0], (share * near.any(2)).sum(1)


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
