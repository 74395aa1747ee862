"""The pose of each particle that a step learns from: found by scoring, without gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.rotations import random_rotations
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.local import refine_poses, score_hypotheses
from cryoai.poses.search import SearchGrid, make_translation_grid, search_poses, translation_step
from cryoai.tensors import ParticleBatch, PoseHypotheses

_HYPOTHESES = 16
_REFINEMENT_STEPS = 3


@dataclass(frozen=True, eq=False)
class Scorer:
    """What hypotheses are scored with during a step; nothing in it is trained.

    Attributes
    ----------
    volume
        The volume, rendered on a grid.
    noise_power
        ``E|noise|²`` per shell, the volume's own errors included: while it is bad, it is not believed.
    radius, search_radius
        Shells of the loss, and of the search over the grid.
    max_shift
        Å.
    sample
        Draw the winner from the posterior instead of taking the best.
    generator
        For that.
    """

    volume: FourierVolume
    noise_power: Float[Tensor, " shells"]
    radius: float
    search_radius: float
    max_shift: float
    sample: bool
    generator: torch.Generator


@dataclass(frozen=True, eq=False)
class Winners:
    """One pose per particle.

    Attributes
    ----------
    rotation
        (batch, 3, 3).
    translation
        (batch, 2), Å.
    """

    rotation: Float[Tensor, "batch 3 3"]
    translation: Float[Tensor, "batch 2"]


def random_winners(count: int, generator: torch.Generator) -> Winners:
    """Poses for the first steps, when there is nothing to score against: any rotation, no translation."""
    return Winners(random_rotations(count, generator), torch.zeros(count, 2))


@torch.no_grad()
def winners_on_grid(batch: ParticleBatch, scorer: Scorer, anchors: Float[Tensor, "rotations 3 3"]) -> Winners:
    """The winner among all rotations of a grid and a lattice of translations: one matrix product; then refined."""
    radius = min(scorer.search_radius, scorer.radius)
    grid = SearchGrid(anchors, make_translation_grid(scorer.max_shift, translation_step(radius, batch.box_length)))
    keep = min(_HYPOTHESES, len(anchors))
    found = search_poses(batch.prefix(radius), scorer.volume, scorer.noise_power, grid, keep)
    return _refine(batch, scorer, _choose(found, scorer))


@torch.no_grad()
def winners_among(batch: ParticleBatch, scorer: Scorer, hypotheses: PoseHypotheses) -> Winners:
    """The winner among given hypotheses, then refined."""
    inside = batch.prefix(min(scorer.search_radius, scorer.radius))
    scored = score_hypotheses(inside, scorer.volume, scorer.noise_power, hypotheses)
    return _refine(batch, scorer, _choose(scored.sorted(), scorer))


def _choose(found: PoseHypotheses, scorer: Scorer) -> Winners:
    """The first hypothesis, or one drawn from the posterior."""
    rows = torch.arange(len(found))
    pick: Int[Tensor, " batch"] = torch.zeros(len(found), dtype=torch.long)
    if scorer.sample:
        # A particle that is not finite has no posterior; its batch is skipped when the loss is seen.
        posterior = found.posterior().cpu().nan_to_num(1.0)
        pick = torch.multinomial(posterior, 1, generator=scorer.generator)[:, 0]
    return Winners(found.rotation[rows, pick], found.translation[rows, pick])


def _refine(batch: ParticleBatch, scorer: Scorer, winners: Winners) -> Winners:
    """A few Gauss-Newton steps: the grid's spacing would blur the volume."""
    if scorer.sample:
        return winners
    found = refine_poses(
        batch, scorer.volume, scorer.noise_power, winners.rotation.contiguous(),
        winners.translation.contiguous(), iterations=_REFINEMENT_STEPS,
    )  # fmt: skip
    return Winners(found.rotation, found.translation)
