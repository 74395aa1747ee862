"""The whole posterior on rings: its algebra, the kernel and its reference, its likelihood and the plain one."""

import math

import numpy as np
import pytest
import torch
from three_balls import PIXEL_SIZE, SHELLS, SUPPORT, generator, make_batch, make_density

from cryoai.ab_initio.excluded import exclude_poses
from cryoai.geometry.fourier import images_to_disk, make_fourier_disk
from cryoai.geometry.rotations import random_rotations
from cryoai.particles.extent import measure_support
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.noise import estimate_noise_outside, make_coloured_noise, make_shell_noise
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.polar_grid import make_polar_grid, rotations_to, spread_directions
from cryoai.poses.posterior import PosteriorSearch
from cryoai.tensors import ParticleBatch


def make_search(box: int) -> PosteriorSearch:
    return PosteriorSearch(box, PIXEL_SIZE, SHELLS, SUPPORT, 0.1)


def test_rings_hold_a_hermitian_function() -> None:
    grid = make_polar_grid(5, 0.3, 0.4)
    half = torch.complex(*torch.randn(2, 3, 5 * grid.angles // 2, generator=generator()))
    rings = grid.to_rings(half)
    assert rings.shape == (3, 5, grid.angles)
    torch.testing.assert_close(grid.from_rings(rings), half)
    whole = (half.unflatten(1, (5, -1)).abs() ** 2).sum(2) * 2
    torch.testing.assert_close((rings**2).sum(2), whole)


def test_a_correlation_over_rings_is_one_product_per_mode() -> None:
    grid = make_polar_grid(4, 0.2, 0.3)
    angle = torch.arange(grid.angles) * 2 * math.pi / grid.angles
    turned = 7.5 * 2 * math.pi / grid.angles
    wave = lambda at: torch.stack([torch.cos(2 * at) + k * torch.sin(at) for k in range(1, 5)])  # noqa: E731
    slices, images = wave(angle), wave(angle + math.pi / grid.angles - turned)
    product = grid.spectrum(images, True) * grid.spectrum(slices, False).conj() * grid.correlation_weight()
    phase = torch.polar(torch.ones(len(grid.term)), grid.term[:, 0] * turned)
    torch.testing.assert_close((product * phase).real.sum(), (slices**2).sum())
    assert float((product * phase.conj()).real.sum()) < 0.9 * float((slices**2).sum())


def test_directions_cover_half_a_sphere_evenly() -> None:
    direction = spread_directions(200)
    rotation = rotations_to(direction)
    torch.testing.assert_close(rotation[:, :, 2], direction)
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).expand(200, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(200))
    second_moment = 3 * direction.T @ direction / len(direction)
    torch.testing.assert_close(second_moment, torch.eye(3), atol=0.02, rtol=0)


@pytest.mark.parametrize("box", [24, 25])
def test_the_kernel_does_what_its_reference_does(box: int) -> None:
    batch, _, _ = make_batch(box, 5, noise=30.0)
    volume, noise = volume_from_map(make_density(box)), torch.full((20,), 30.0)
    search = make_search(box)
    kernel, plain = (
        search(batch, volume, noise, 20_000, generator(3), reference=reference) for reference in (False, True)
    )
    torch.testing.assert_close(kernel.gain, plain.gain, atol=2e-3, rtol=0)
    torch.testing.assert_close(kernel.effective_poses, plain.effective_poses, rtol=5e-3, atol=0)
    assert kernel.residual_power is not None and plain.residual_power is not None
    torch.testing.assert_close(kernel.residual_power, plain.residual_power, rtol=0.01, atol=0)
    size = float(plain.sums[0].numerator.abs().max())
    torch.testing.assert_close(kernel.sums[0].numerator, plain.sums[0].numerator, atol=0.03 * size, rtol=0)
    torch.testing.assert_close(kernel.sums[0].weight.sum(), plain.sums[0].weight.sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("noise", [1.0, 5.0])
def test_the_likelihood_is_that_of_cartesian_coefficients(box: int, noise: float) -> None:
    """Of the grid by rings, against the plain formula at the very poses that the images have."""
    batch, rotation, translation = make_batch(box, 40, noise)
    volume = volume_from_map(make_density(box))
    search = make_search(box)
    found = search(batch, volume, torch.full((20,), noise))
    inside = batch.prefix(SHELLS + 0.5)
    model = form_images_quickly(volume, rotation, translation, inside.ctf, inside.disk, PIXEL_SIZE)
    gain = (2 * (model.conj() * inside.images).real.sum(1) - (model.abs() ** 2).sum(1)) / noise
    # The truth's share of the posterior is about that of one of the poses that it is spread over.
    share = gain - (found.gain + math.log(search.poses))
    assert abs(float((share + found.effective_poses.log()).median())) < 1.0


@pytest.mark.parametrize("box", [24, 25])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_pure_noise_gains_nothing(box: int, strength: float) -> None:
    """The mean of exp(gain) over noise is 1: a noise that is taken for less than it is would be fitted."""
    noise = torch.full((20,), 1.0)
    disk = make_fourier_disk(box, 9.0)
    images = make_shell_noise(600, noise, disk, generator())
    batch = ParticleBatch(images, torch.ones(len(images), len(disk)), disk, PIXEL_SIZE)
    density = make_density(box)
    plain = volume_from_map(density)
    power = float(
        (form_images_quickly(plain, torch.eye(3)[None], torch.zeros(1, 2), None, disk, 5.0).abs() ** 2).sum()
    )
    volume = volume_from_map(density * strength / math.sqrt(power))
    gain = make_search(box)(batch, volume, noise).gain
    assert abs(float(gain.exp().mean()) - 1) < 0.1
    assert float(gain.mean()) < 0.02


@pytest.mark.parametrize("box", [32, 33])
def test_noise_and_size_are_measured_with_the_particle_in_the_images(box: int) -> None:
    count, colour = 600, 2.0
    disk = make_fourier_disk(box)
    noise = images_to_disk(make_coloured_noise(count, box, colour, PIXEL_SIZE, 1.0, generator()), disk)
    expected = disk.mean_per_shell((noise.abs() ** 2).mean(0))
    rotation = random_rotations(count, generator(1))
    signal = form_images_quickly(
        volume_from_map(make_density(box)), rotation, torch.zeros(count, 2), None, disk, PIXEL_SIZE
    )
    images = signal * (20 / float(signal.abs().max()))
    found = estimate_noise_outside(noise + images, disk, 0.3)
    np.testing.assert_allclose(found[5:12], expected[5:12], rtol=0.06)
    # Close to the centre of the plane the window smears a steep spectrum, and the particle's edge adds a little.
    total = disk.mean_per_shell(((noise + images).abs() ** 2).mean(0))
    assert (abs(found - expected)[1:5] < 0.35 * (total - expected)[1:5]).all()
    batch = ParticleBatch(noise + images, torch.ones(count, len(disk)), disk, PIXEL_SIZE).prefix(10.0)
    # The balls' centres lie within 0.15 of the box, and they reach 0.08 further.
    assert 0.17 < measure_support(batch) < 0.27


@pytest.mark.parametrize("reference", [False, True])
def test_several_maps_are_one_mixture(reference: bool) -> None:
    batch, _, _ = make_batch(24, 40, noise=5.0)
    noise, search = torch.full((20,), 30.0), make_search(24)
    maps = [volume_from_map(density) for density in (make_density(24), make_density(24).flip(0))]
    shares = (0.7, 0.3)
    alone = [search(batch, one, noise, 2000, generator(3), reference=reference) for one in maps]
    log_odds = torch.stack([one.gain + math.log(share) for one, share in zip(alone, shares, strict=True)])
    both = search(batch, maps, noise, 2000, generator(3), shares=shares, reference=reference)
    torch.testing.assert_close(both.gain, log_odds.logsumexp(0), atol=3e-3, rtol=0)
    # Each image is shared out by what the maps explain of it.
    share = log_odds.softmax(0)
    power = batch.ctf.square().sum(1)
    expected = (share * power).sum(1) / power.sum()
    np.testing.assert_allclose(both.shares, expected, atol=0.02)
    for volume, one, found, part in zip(maps, alone, both.sums, share, strict=True):
        # The same with one map, whose images count for the class's share of them.
        rival = one.gain - torch.logit(part, eps=1e-6)
        counted = search(batch, volume, noise, 2000, generator(3), rival, reference).sums[0]
        size = float(counted.numerator.abs().max())
        torch.testing.assert_close(found.numerator, counted.numerator, atol=0.06 * size, rtol=0)
    assert both.residual_power is not None and (both.residual_power[1:] > 0).all()


@pytest.mark.parametrize("reference", [False, True])
def test_what_is_closed_is_what_an_image_cannot_show(reference: bool) -> None:
    batch, _, _ = make_batch(24, 40, noise=5.0)
    noise, search = torch.full((20,), 30.0), make_search(24)
    maps = [volume_from_map(density) for density in (make_density(24), make_density(24).flip(0))]
    shares = (0.7, 0.3)
    everything = search(batch, maps, noise, shares=shares, reference=reference)
    assert everything.where.shape == (40, 2, len(search.shifts))
    torch.testing.assert_close(everything.where.sum((1, 2)), torch.ones(40), atol=1e-4, rtol=0)
    closed = torch.zeros(everything.where.shape, dtype=torch.bool)
    closed[:10, 0], closed[10:20, 1] = True, True
    closed[20:30, :, ::2] = True
    found = search(batch, maps, noise, 100, shares=shares, reference=reference, closed=closed)
    # What is left has what it had before.
    left = everything.where.masked_fill(closed, 0)
    assert float(found.where[closed].abs().max()) == 0
    torch.testing.assert_close(found.gain, everything.gain + left.sum((1, 2)).log(), atol=0.02, rtol=0)
    torch.testing.assert_close(found.map_share[:10, 1], torch.ones(10), atol=1e-4, rtol=0)
    likely = left.sum((1, 2)) > 0.01
    expected = left / left.sum((1, 2), keepdim=True)
    torch.testing.assert_close(found.where[likely], expected[likely], atol=0.01, rtol=0)
    # Every image is drawn from, whatever is closed to it.
    assert sum(found.shares) == pytest.approx(1, abs=1e-5)


def test_inner_shells_do_not_exclude_what_an_image_shows() -> None:
    batch, _, translation = make_batch(24, 100, noise=0.1)
    noise = torch.full((20,), 0.1)
    search, inner = make_search(24), PosteriorSearch(24, PIXEL_SIZE, SHELLS - 2, SUPPORT, 0.1)
    maps = [volume_from_map(density) for density in (make_density(24), make_density(24).flip(0).roll(3, 2))]
    excluded = exclude_poses(search, inner, batch, maps, noise, (0.5, 0.5))
    assert float(excluded.float().mean()) > 0.05
    nearest = torch.cdist(translation, search.shifts).argmin(1)
    assert float(excluded[torch.arange(100), 0, nearest].float().mean()) < 0.03
    assert not excluded.all(2).all(1).any()
