"""Images that show no particle: what a field without features explains of them, and what they add to a map."""

from dataclasses import replace

import pytest
import torch
from three_balls import PIXEL_SIZE, SHELLS, SUPPORT, generator, make_batch, make_density

from cryoai.ab_initio.junk import JunkWatch
from cryoai.geometry.fourier import disk_to_images, images_to_disk
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.featureless import featureless_gain, presence, share_of_particles
from cryoai.poses.posterior import PosteriorSearch
from cryoai.tensors import ParticleBatch

NOISE = 0.2


def make_search(box: int) -> PosteriorSearch:
    return PosteriorSearch(box, PIXEL_SIZE, SHELLS, SUPPORT, 0.1)


def make_mixture(box: int, count: int = 60) -> ParticleBatch:
    """Balls, then noise alone, then smooth gradients with as much noise; as many of each."""
    batch, _, _ = make_batch(box, count, NOISE)
    noise = make_shell_noise(2 * count, torch.full((20,), NOISE), batch.disk, generator(7))
    field = make_shell_noise(count, 60 * torch.exp(-torch.arange(20.0)), batch.disk, generator(8))
    others = noise + torch.cat((torch.zeros_like(field), field))
    return replace(batch, images=torch.cat((batch.images, others)), ctf=batch.ctf.repeat(3, 1))


def differences(box: int, batch: ParticleBatch) -> torch.Tensor:
    search, noise = make_search(box), torch.full((20,), NOISE)
    found = search(batch, volume_from_map(make_density(box)), noise)
    return found.gain - featureless_gain(batch.prefix(SHELLS + 0.5), noise, search.mask_radius)


@pytest.mark.parametrize("box", [24, 25])
def test_a_right_map_tells_particles_from_noise_and_from_gradients(box: int) -> None:
    balls, noise, gradients = differences(box, make_mixture(box)).chunk(3)
    assert (balls > 5).float().mean() > 0.9
    assert (noise < 0).float().mean() > 0.95 and (gradients < 0).float().mean() > 0.95


@pytest.mark.parametrize("box", [24, 25])
def test_noise_of_the_expected_power_gains_nothing_by_a_field(box: int) -> None:
    noise = torch.arange(1.0, 21.0)
    disk = make_batch(box, 1, NOISE)[0].disk.prefix(SHELLS + 0.5)
    images = make_shell_noise(500, noise, disk, generator())
    batch = ParticleBatch(images, torch.ones(500, len(disk)), disk, PIXEL_SIZE)
    gain = featureless_gain(batch, noise, 0.32)
    assert (gain >= 0).all() and float(gain.mean()) < 0.5
    stronger = featureless_gain(replace(batch, images=2 * images), noise, 0.32)
    assert float(stronger.min()) > 2 and float(stronger.median()) > 20


def test_only_what_lies_inside_the_mask_counts() -> None:
    """A neighbour at the edge is no sign of junk."""
    batch, _, _ = make_batch(24, 4, 0.01)
    edge = torch.zeros(4, 24, 24)
    edge[:, 11:14, 1:4] = 30
    there = replace(batch, images=images_to_disk(edge, batch.disk))
    assert float(disk_to_images(there.images, batch.disk).abs().max()) > 1
    noise = torch.full((20,), 1.0)
    near, far = featureless_gain(there, noise, 0.5), featureless_gain(there, noise, 0.25)
    assert (far < 0.1 * near).all()


def test_shares_and_probabilities_follow_from_differences() -> None:
    difference = torch.cat((torch.full((30,), 12.0), torch.full((10,), -12.0)))
    share = share_of_particles(difference)
    assert share == pytest.approx(0.75, abs=1e-3)
    torch.testing.assert_close(presence(torch.tensor([0.0]), share), torch.tensor([0.75]), atol=1e-3, rtol=0)
    assert share_of_particles(torch.full((50,), 3.0)) > 0.99


@pytest.mark.parametrize("box", [24, 25])
def test_what_is_likelier_something_else_adds_nothing_to_a_map(box: int) -> None:
    batch, _, _ = make_batch(box, 6, NOISE)
    volume, noise, search = volume_from_map(make_density(box)), torch.full((20,), NOISE), make_search(box)
    plain = search(batch, volume, noise, 50, generator(1))
    rival = plain.gain + torch.tensor([1e3, 1e3, 1e3, -1e3, -1e3, -1e3])
    for reference in (False, True):
        found = search(batch, volume, noise, 50, generator(1), rival, reference)
        alone = search(batch[3:], volume, noise, 50, None, None, reference)
        torch.testing.assert_close(found.presence, torch.tensor([0.0] * 3 + [1.0] * 3))
        torch.testing.assert_close(found.gain, plain.gain, atol=2e-3, rtol=0)
        torch.testing.assert_close(found.sums[0].weight.sum(), alone.sums[0].weight.sum(), rtol=0.03, atol=0)
        assert found.residual_power is not None and (found.residual_power[1:] > 0.2 * NOISE).all()
    halved = search(batch, volume, noise, 50, generator(1), plain.gain)
    torch.testing.assert_close(halved.sums[0].numerator, 0.5 * plain.sums[0].numerator, rtol=1e-3, atol=1e-3)


def test_a_bootstrap_asks_for_junk_only_while_its_map_tells() -> None:
    watch, field = JunkWatch(), torch.zeros(100)
    watch.learn(torch.full((100,), 3.0))
    assert watch.rival(field) is None and watch.share_of_particles == 1
    watch.learn(torch.tensor([20.0, -20.0]).repeat(50))
    assert watch.share_of_particles == pytest.approx(0.5, abs=0.01)
    rival = watch.rival(field)
    assert rival is not None and (rival.abs() < 0.1).all()
    watch.learn(torch.full((100,), -20.0))
    assert watch.rival(field) is None
