"""Exhaustive pose searches: what they cost, and how often the true pose is among what they keep.

To compare another one, add it to `SEARCHES`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import TestSet
from ladder_truth import fit_scale

from cryoai.geometry.rotations import rotation_angle
from cryoai.geometry.so3_grid import so3_grid_spacing
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.poses.posterior import MASK_MARGIN, PosteriorSearch
from cryoai.poses.search import SearchGrid, make_search_grid, search_poses, translation_step
from cryoai.poses.view_search import search_views
from cryoai.run.config import RefineSettings
from cryoai.tensors import ParticleBatch, PoseHypotheses
from cryoai.types import Pose

KEPT = 32
# Particles that are searched at once, as map_particles hands them over, and images that come before the clock.
_BATCH, _WARM_UP = 1000, 20


@dataclass(frozen=True, eq=False)
class SearchProblem:
    """Images with known poses, the map that they show, on their scale, and the grid that they are searched on."""

    batch: ParticleBatch
    pose: Pose
    volume: FourierVolume
    noise_power: torch.Tensor
    grid: SearchGrid
    radius: float
    support: float


Search = Callable[[SearchProblem, ParticleBatch, int], PoseHypotheses]
"""The problem, some of its images, hypotheses kept per image; the best first."""


def by_product(
    problem: SearchProblem, batch: ParticleBatch, keep: int, dtype: torch.dtype = torch.float32
) -> PoseHypotheses:
    """Every rotation and shift of the grid as one matrix product."""
    batch = batch.prefix(problem.radius)
    return search_poses(batch, problem.volume, problem.noise_power, problem.grid, keep, dtype)


def by_angular_modes(problem: SearchProblem, batch: ParticleBatch, keep: int) -> PoseHypotheses:
    """As the refinement does: views on rings, as far apart as the radius asks for."""
    reach = float(problem.grid.translation.norm(dim=1).max()) / batch.box_length
    views = PosteriorSearch(
        batch.disk.box_size, batch.pixel_size, int(problem.radius), problem.support, reach
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return search_views(views, batch, problem.volume, problem.noise_power, keep, generator)


SEARCHES: dict[str, Search] = {
    "product in float32": by_product,
    "product in bfloat16": partial(by_product, dtype=torch.bfloat16),
    "angular modes": by_angular_modes,
}
# What the product's grid is, as the refinement searched before it searched by angular modes.
_ROTATIONS, _RADIUS = 18_432, 12.0


def make_problem(
    test: TestSet, snr_db: float, images: int, settings: RefineSettings | None = None
) -> SearchProblem:
    """A search as the refinement makes it for doubtful particles, against the true map.

    Parameters
    ----------
    test
        Images of unit variance.
    snr_db
        Theirs, with white noise.
    images
        How many of them.
    settings
        Of the refinement; default: its own.
    """
    settings, data = settings or RefineSettings(), test.data
    box_length = data.disk.box_size * data.pixel_size
    radius = min(_RADIUS, data.disk.box_size // 2 - 1 - MASK_MARGIN)
    rows = np.arange(min(images, len(data)))
    batch, pose = data.batch(rows, radius + MASK_MARGIN), test.pose(rows)
    volume = volume_from_map(test.true_map, radius + MASK_MARGIN)
    volume = FourierVolume(volume.values * fit_scale(batch, volume, pose), volume.box_size, volume.padding)
    noise = torch.full((data.disk.shell_count,), 1 / (1 + 10 ** (snr_db / 10)))
    reach, step = settings.max_shift_box_lengths * box_length, translation_step(radius, box_length)
    grid = make_search_grid(_ROTATIONS, reach, step, torch.Generator().manual_seed(0))
    return SearchProblem(batch, pose, volume, noise, grid, radius, data.support())


def time_searches(problem: SearchProblem, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """Of each search: seconds per 1000 images, how often the true pose is kept, and how often it is the best."""
    figures: dict[str, dict[str, float]] = {}
    for name in names:
        search = partial(SEARCHES[name], problem, keep=KEPT)
        search(batch=problem.batch[:_WARM_UP])
        start = time.perf_counter()
        found = [
            search(batch=problem.batch[i : i + _BATCH]) for i in range(0, len(problem.batch), _BATCH)
        ]  # fmt: skip
        seconds = time.perf_counter() - start
        true = torch.cat([
            are_true(part, problem.pose[np.arange(i * _BATCH, i * _BATCH + len(part))], problem.grid)
            for i, part in enumerate(found)
        ])  # fmt: skip
        figures[name] = {
            "seconds_per_1000": 1000 * seconds / len(problem.batch), "recall": float(true.any(1).float().mean()),
            "best_is_true": float(true[:, 0].float().mean()),
        }  # fmt: skip
    return figures


def are_true(found: PoseHypotheses, true: Pose, grid: SearchGrid) -> torch.Tensor:
    """(batch, hypotheses) whether each has the true rotation and translation, each within the grid's spacing."""
    rotation, translation = (
        torch.from_numpy(np.asarray(a, np.float32)) for a in (true.rotation, true.translation)
    )  # fmt: skip
    away = rotation_angle(found.rotation, rotation[:, None].expand_as(found.rotation))
    moved = (found.translation - translation[:, None]).norm(dim=-1)
    return (away <= so3_grid_spacing(len(grid.rotation))) & (moved <= spacing_of(grid.translation))


def spacing_of(translation: torch.Tensor) -> float:
    """Å, the step of a lattice of translations that holds the origin; infinite for the origin alone."""
    length = translation.norm(dim=1)
    return float(length[length > 0].min()) if (length > 0).any() else float("inf")


def describe_problem(problem: SearchProblem) -> dict[str, Any]:
    return {
        "images": len(problem.batch), "rotations": len(problem.grid.rotation),
        "shifts": len(problem.grid.translation), "radius": problem.radius, "kept": KEPT,
    }  # fmt: skip
