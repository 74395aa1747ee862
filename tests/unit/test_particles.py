"""Judging images, caching coefficients, and serving batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoai import Map
from cryoai.geometry.fourier import images_to_disk, make_fourier_disk, resample
from cryoai.io import read_particles
from cryoai.particles.cache import CoefficientCache
from cryoai.particles.contrast import contrast_of_map
from cryoai.particles.dataset import ParticleData
from cryoai.particles.judge import Judge, Judgement
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings, Simulator
from cryoai.particles.write_simulation import write_simulation
from cryoai.physics.ctf import compute_ctf


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
    judge.look_at_contrast(images_to_disk(kept, disk), torch.ones(len(images), len(disk)), disk)
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


def shell_map(inner: float, outer: float) -> Map:
    """A hollow sphere, Å, with the texture of a protein; solid where ``inner`` is negative."""
    axis = 4.0 * (np.arange(48) - 24)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    density = 1 + 0.5 * np.random.default_rng(0).normal(size=radius.shape)
    density /= (1 + np.exp((radius - outer) / 4)) * (1 + np.exp((inner - radius) / 4))
    return Map(density.astype(np.float32), 4.0)


MOLECULES = {
    "phantom": make_phantom(48, 4.0),
    "small": make_phantom(48, 8.0),
    "ferritin": shell_map(32, 50),
    "ball": shell_map(-50, 50),
    "bead": shell_map(-50, 25),
    "capsid that fills the image": shell_map(70, 88),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("snr_db", [-10.0, None])
@pytest.mark.parametrize("use_ctf", [True, False])
@pytest.mark.parametrize("name", MOLECULES)
def test_contrast_of_hollow_and_solid_particles_is_never_sure_and_wrong(
    name: str, use_ctf: bool, snr_db: float | None, sign: int
) -> None:
    settings = SimulationSettings(300, snr_db=snr_db, shift_sigma=12.0, use_ctf=use_ctf, seed=5)
    disk, judge = make_fourier_disk(48), Judge(48)
    for chunk in Simulator(MOLECULES[name], settings).chunks():
        images = judge.look(torch.from_numpy(sign * chunk.images))
        ctf = torch.ones(len(images), len(disk)) if chunk.ctf is None else compute_ctf(chunk.ctf, disk, 4.0)
        judge.look_at_contrast(images_to_disk(images, disk), ctf, disk)
    verdict = judge.verdict()
    if name == "capsid that fills the image":
        assert not verdict.contrast_is_sure
    else:
        assert verdict.contrast_is_sure and verdict.contrast == sign


@pytest.mark.parametrize(
    ("file", "contrast"),
    [
        ("apoferritin_64/apoferritin.star", 1),
        ("unnamed_17x200/sample_particles_relion31.star", 1),
        ("empiar10076_7x320/empiar_10076_7.star", -1),
        ("class_averages_100x96/mixture_2D.mrcs", 1),
    ],
)
def test_contrast_of_real_particles(shared_data: Path, tmp_path: Path, file: str, contrast: int) -> None:
    particles = read_particles(shared_data / "particles" / file)
    if len(particles) > 500:
        particles = particles.select(np.arange(0, len(particles), 4))
    box = particles.box_size or 64
    data = ParticleData(particles, particles.pixel_size or 3.0, box, memory_limit=2**30, scratch=tmp_path)
    assert data.judgement.contrast == contrast and data.judgement.contrast_is_sure
    data.close()


@pytest.mark.parametrize("name", MOLECULES)
@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_of_a_map(name: str, sign: int) -> None:
    density = sign * torch.from_numpy(MOLECULES[name].density)
    assert contrast_of_map(density) == contrast_of_map(density + 7.0) == sign


def test_contrast_of_a_map_of_noise_is_not_told() -> None:
    noise = torch.randn(48, 48, 48, generator=torch.Generator().manual_seed(2))
    assert contrast_of_map(noise) == 0


@pytest.mark.parametrize("height", [1e4, -1e4, 40.0, 1e12])
def test_hot_pixels_take_the_values_around_them(height: float) -> None:
    images = noisy_blobs(40, 1.0)
    clean = images.clone()
    images[5, 3, 30] = images[5, 0, 0] = images[9, 31, 31] = height
    judge = Judge(32)
    kept = judge.look(images)
    verdict = judge.verdict()
    assert np.flatnonzero(verdict.clipped).tolist() == [5, 9] and verdict.usable.all()
    assert (kept - clean).abs().max() < 6
    torch.testing.assert_close(kept[[0, 6]], clean[[0, 6]])
    assert "2 of 40 images have hot pixels" in verdict.warnings()[0] and "particles 6, 10" in verdict.warnings()[0]


@pytest.mark.parametrize("name", ["phantom", "small", "ferritin", "bead"])
def test_peaks_of_noise_free_images_are_not_hot(name: str) -> None:
    settings = SimulationSettings(50, snr_db=None, shift_sigma=0.0, use_ctf=False)
    images = torch.from_numpy(next(Simulator(MOLECULES[name], settings).chunks()).images)
    judge = Judge(48)
    torch.testing.assert_close(judge.look(images), images, rtol=0, atol=0)
    assert judge.verdict().warnings() == []


@pytest.mark.parametrize("value", [3e38, -3e38, torch.inf, torch.nan, 1e20])
def test_numbers_that_overflow_are_not_finite(value: float) -> None:
    images = noisy_blobs(40, 1.0)
    images[3, 5, 5] = images[8] = value
    verdict = judged(images)
    assert np.flatnonzero(verdict.empty).tolist() == [3, 8]
    assert np.isfinite(verdict.scale).all() and "particles 4, 9" in verdict.warnings()[0]


@pytest.mark.parametrize("factor", [100.0, 0.005, 1e10])
def test_images_out_of_all_proportion_are_left_out_and_named(factor: float) -> None:
    images = noisy_blobs(60, 1.0)
    images[[4, 50]] *= factor
    verdict = judged(images)
    assert np.flatnonzero(verdict.wild).tolist() == [4, 50]
    assert (verdict.scale[verdict.wild] == 0).all() and not verdict.usable[verdict.wild].any()
    assert "2 of 60" in verdict.warnings()[0] and "5, 51" in verdict.warnings()[0]


def test_micrographs_of_different_brightness_are_all_kept() -> None:
    images = noisy_blobs(60, 1.0) * torch.tensor([1.0, 3.0, 6.0]).repeat_interleave(20)[:, None, None]
    assert judged(images).usable.all()
