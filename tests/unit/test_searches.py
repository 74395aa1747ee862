"""How exhaustive searches are compared (benchmarks/searches.py)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from scenes import Scene

from cryoai.tensors import PoseHypotheses
from cryoai.types import Pose


@pytest.fixture
def searches(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("searches")


def test_a_pose_is_true_that_is_within_the_spacing_of_rotations_and_of_translations(
    searches: ModuleType,
) -> None:
    grid = searches.make_search_grid(4608, 12.0, 4.0)
    assert searches.spacing_of(grid.translation) == pytest.approx(4.0)
    spacing = searches.so3_grid_spacing(4608)

    def about_z(angle: float) -> torch.Tensor:
        c, s = np.cos(angle), np.sin(angle)
        return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float32)

    true = Pose(np.broadcast_to(np.eye(3), (4, 3, 3)).copy(), np.zeros((4, 2)))
    far = about_z(3.0)
    rotation = torch.stack([
        torch.stack((far, about_z(angle))) for angle in (0.9 * spacing, 1.1 * spacing, 0.0, 0.0)
    ])  # fmt: skip
    translation = torch.tensor([0.0, 0.0, 3.9, 4.1])[:, None, None] * torch.tensor([1.0, 0.0])
    found = PoseHypotheses(rotation, translation.expand(-1, 2, -1), torch.zeros(4, 2))
    assert searches.are_true(found, true, grid).any(1).tolist() == [True, False, True, False]


def test_every_search_finds_the_true_poses_of_easy_images(searches: ModuleType, scene: Scene) -> None:
    grid = searches.make_search_grid(4608, 20.0, 10.0)
    images = np.arange(30)
    problem = searches.SearchProblem(
        scene.data.batch(images, 11.0),
        scene.true_pose[images],
        scene.volume,
        scene.noise_power,
        grid,
        8.0,
        scene.data.support(),
    )
    figures = searches.time_searches(problem, searches.SEARCHES)
    assert set(figures) == set(searches.SEARCHES)
    for found in figures.values():
        assert found["seconds_per_1000"] > 0
        assert 0.7 <= found["best_is_true"] <= found["recall"]
        assert found["recall"] >= 0.9
