"""Masks, confidence, near-symmetries and half-maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cryoai.geometry.rotations import random_rotations, rotation_from_vector
from cryoai.metrics.near_symmetry import find_near_symmetries
from cryoai.particles.phantom import make_phantom
from cryoai.refinement.confidence import (
    FitScale,
    doubtful_rows,
    estimate_confidence,
    fit_quality,
    measure_fit_scale,
    noise_quality,
)
from cryoai.refinement.global_search import _distinct
from cryoai.tensors import PoseHypotheses

EXPECTED = 150.0
"""The gain of an image at -10 dB in a box of 64 px, nats."""


def confidence_of(*populations: np.ndarray, expected: float = EXPECTED) -> list[np.ndarray]:
    quality = torch.from_numpy(np.concatenate(populations)).float()
    confidence = estimate_confidence(quality, torch.full((len(quality),), expected)).numpy()
    assert np.all(np.diff(confidence[np.argsort(quality.numpy())]) >= 0)
    return np.split(confidence, np.cumsum([len(p) for p in populations])[:-1])


def test_confidence_tells_two_populations_apart() -> None:
    rng = np.random.default_rng(0)
    right, wrong = confidence_of(rng.normal(0.3, 1.1, 950), rng.normal(-7, 2, 50))
    assert (right > 0.5).mean() > 0.99
    assert (wrong < 0.5).mean() > 0.95


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_images_of_nothing_are_not_believed_however_many_they_are(share: float) -> None:
    rng = np.random.default_rng(1)
    count = int(2000 * share)
    level = float(noise_quality(torch.tensor([EXPECTED])))
    right, nothing = confidence_of(rng.normal(-0.5, 1.2, 2000 - count), rng.normal(level, 1.0, count))
    assert (right > 0.5).mean() > 0.97
    assert (nothing < 0.5).mean() > 0.99


def test_a_set_in_which_nothing_fits_is_not_believed() -> None:
    rng = np.random.default_rng(2)
    (nothing,) = confidence_of(rng.normal(float(noise_quality(torch.tensor([EXPECTED]))), 1.0, 1000))
    assert (nothing < 0.5).mean() > 0.99


def test_a_fit_that_noise_would_reach_says_nothing() -> None:
    """With a gain of some 12 nats the best of many poses fits an image of nothing as well as the right one."""
    (any_image,) = confidence_of(np.random.default_rng(3).normal(0.0, 1.0, 1000), expected=12.0)
    assert (any_image <= 0.5).all()


def test_the_scale_of_a_good_fit_is_that_of_the_good_ones() -> None:
    rng = np.random.default_rng(4)
    quality = torch.from_numpy(np.concatenate((rng.normal(-0.4, 1.3, 800), rng.normal(-13, 1, 1200)))).float()
    scale = measure_fit_scale(quality, torch.full((2000,), EXPECTED))
    assert abs(scale.centre + 0.4) < 0.15 and abs(scale.spread - 1.3) < 0.15


def test_one_population_is_believed() -> None:
    (right,) = confidence_of(np.random.default_rng(5).normal(0, 1, 2000))
    assert (right > 0.5).mean() > 0.99


def test_fit_quality_is_standard_normal_at_the_right_pose() -> None:
    expected = torch.full((20_000,), 150.0)
    gain = 150 + math.sqrt(300) * torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    quality = fit_quality(gain, expected)
    assert quality.mean().abs() < 0.03 and abs(quality.std() - 1) < 0.03


def test_doubtful_rows_are_the_worst_and_bounded() -> None:
    quality = torch.cat((torch.linspace(-1, 1, 90), torch.full((10,), -8.0)))
    used = np.arange(100) * 2
    assert doubtful_rows(used, quality, 3.0, FitScale(0.0, 0.7)).tolist() == list(range(180, 200, 2))
    assert len(doubtful_rows(used, -(torch.arange(100.0) ** 3), 0.0, FitScale())) <= 30


def test_near_symmetry_of_a_threefold_with_one_odd_arm() -> None:
    axis = torch.arange(40) - 20.0
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")

    def ball(centre: tuple[float, float, float], size: float) -> torch.Tensor:
        return torch.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2) / (2 * size**2))

    density = ball((0, 0, -8), 3.0) + ball((0, 0, 4), 2.0)
    for arm in range(3):
        angle = 2 * math.pi * arm / 3
        reach = 8.0 if arm else 9.5
        density += ball((reach * math.cos(angle), reach * math.sin(angle), 2.0), 2.0)
        density += 0.7 * ball((5 * math.cos(angle + 0.7), 5 * math.sin(angle + 0.7), -3.0), 1.5)
    found = find_near_symmetries(density)
    angles = sorted(math.degrees(math.acos((np.trace(mate.rotation) - 1) / 2)) for mate in found[:2])
    assert len(found) >= 2
    np.testing.assert_allclose(angles, 120, atol=3)


def test_an_asymmetric_map_has_no_near_symmetry() -> None:
    assert find_near_symmetries(torch.from_numpy(make_phantom(40, 6.0).density.copy())) == []


def test_distinct_hypotheses_drop_copies_of_better_ones() -> None:
    base = random_rotations(3, torch.Generator().manual_seed(0))
    nudge = rotation_from_vector(torch.tensor([0.01, 0.0, 0.0]))
    rotation = torch.stack((base[0], nudge @ base[0], base[1], base[2]))[None]
    weight = torch.tensor([[5.0, 4.9, 3.0, 1.0]])
    kept = _distinct(PoseHypotheses(rotation, torch.zeros(1, 4, 2), weight), 3)
    assert kept.log_weight.tolist() == [[5.0, 3.0, 1.0]]
