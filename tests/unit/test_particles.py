"""Judging images, caching coefficients, and serving batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoai.geometry.fourier import images_to_disk, make_fourier_disk, resample
from cryoai.io import read_particles
from cryoai.particles.cache import CoefficientCache
from cryoai.particles.dataset import ParticleData
from cryoai.particles.judge import Judge, Judgement
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_cache_returns_rows_in_any_order(memory_limit: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(50, 7)) + 1j * rng.normal(size=(50, 7))).astype(np.complex64)
    cache = CoefficientCache(50, 7, memory_limit, tmp_path)
    cache.append(rows[:20])
    cache.append(rows[20:])
    for order in (np.arange(50), np.array([3, 4, 5, 40, 2, 2]), rng.permutation(50)):
        np.testing.assert_array_equal(cache.read(order), rows[order])
        np.testing.assert_array_equal(cache.read(order, 3), rows[order, :3])
    cache.close()
    assert not list(tmp_path.iterdir())


def judged(images: torch.Tensor, invert: str = "auto", stated: int | None = None) -> Judgement:
    box = images.shape[-1]
    disk = make_fourier_disk(box)
    judge = Judge(box)
    kept = judge.look(images)
    judge.compare_with_blob(images_to_disk(kept, disk), torch.ones(len(images), len(disk)), disk)
    return judge.verdict(invert, stated)


def noisy_blobs(count: int, sign: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    axis = torch.arange(32) - 16.0
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * 4.0**2))
    return sign * blob + torch.randn(count, 32, 32, generator=generator)


def test_unusable_images_are_found() -> None:
    images = noisy_blobs(40, 1.0)
    images[3, 5, 5] = torch.nan
    images[7] = 12.5
    images[9, 0, 0] = torch.inf
    images[11] = 0.0
    verdict = judged(images)
    assert np.flatnonzero(~verdict.usable).tolist() == [3, 7, 9, 11]
    assert (verdict.scale[~verdict.usable] == 0).all() and (verdict.scale[verdict.usable] > 0).all()


@pytest.mark.parametrize(("sign", "contrast"), [(1.0, 1), (-1.0, -1)])
def test_contrast_is_told_from_the_images(sign: float, contrast: int) -> None:
    verdict = judged(noisy_blobs(100, sign))
    assert verdict.contrast == contrast and verdict.contrast_is_sure


def test_contrast_of_pure_noise_is_not_guessed() -> None:
    verdict = judged(noisy_blobs(100, 0.0))
    assert verdict.contrast == 1 and not verdict.contrast_is_sure


def test_stated_contrast_and_the_users_word_take_precedence() -> None:
    assert judged(noisy_blobs(100, 1.0), stated=-1).contrast == -1
    assert judged(noisy_blobs(100, 1.0), "no", -1).contrast == 1
    assert judged(noisy_blobs(100, 1.0), "yes").contrast == -1


def test_noise_levels_are_equalised_only_where_they_differ() -> None:
    images = noisy_blobs(200, 1.0)
    even = judged(images).scale
    assert even.std() / even.mean() < 0.01
    images[::2] *= 3
    uneven = judged(images).scale
    assert uneven[1::2].mean() / uneven[::2].mean() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("box", [24, 21])
def test_cropped_coefficients_are_those_of_the_resampled_images(box: int, tmp_path: Path) -> None:
    write_simulation(make_phantom(32, 6.0), SimulationSettings(20, shift_sigma=6.0, seed=2), tmp_path)
    particles = read_particles(tmp_path / "particles.star")
    data = ParticleData(particles, 6.0, box, memory_limit=2**30, scratch=tmp_path, invert_contrast="no")
    assert data.pixel_size == pytest.approx(6.0 * 32 / box)
    batch = data.batch(np.arange(20))
    from cryoai.particles.stack import ParticleImages

    images = torch.from_numpy(ParticleImages(particles).read(np.arange(20)))
    expected = images_to_disk(resample(images, box, 2), data.disk)
    scale = float(data.judgement.scale[0])
    torch.testing.assert_close(batch.images, expected * scale, atol=1e-4, rtol=1e-3)
    part = data.batch(np.array([5, 3]), radius=6)
    torch.testing.assert_close(part.images, batch.images[[5, 3], : len(part.disk)])
    data.close()
