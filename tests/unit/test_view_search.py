"""The exhaustive search on rings: the kernel, its reference, and the plain likelihood of what it finds."""

import pytest
import torch
from three_balls import PIXEL_SIZE, SHELLS, generator, make_batch, make_density

from cryoai.geometry.rotations import rotation_angle
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.local import score_hypotheses
from cryoai.poses.posterior import PosteriorSearch
from cryoai.poses.pruned_search import PrunedSearch
from cryoai.poses.view_search import search_views


def make_search(box: int, finer: float = 1.0) -> PosteriorSearch:
    # Wider than the balls, so that the mask cuts next to nothing off.
    return PosteriorSearch(box, PIXEL_SIZE, SHELLS, 0.3, 0.1, finer=finer)


@pytest.mark.parametrize("box", [24, 25])
def test_the_kernel_finds_what_its_reference_finds(box: int) -> None:
    batch, _, _ = make_batch(box, 5, noise=30.0)
    volume, noise = volume_from_map(make_density(box)), torch.full((20,), 30.0)
    search = make_search(box)
    kernel, plain = (
        search_views(search, batch, volume, noise, 20, generator(3), reference=reference)
        for reference in (False, True)
    )
    torch.testing.assert_close(kernel.log_weight, plain.log_weight, atol=2e-3, rtol=0)
    # Equals may change places.
    near = rotation_angle(kernel.rotation.flatten(0, 1), plain.rotation.flatten(0, 1)) < 1e-3
    assert near.float().mean() > 0.95


@pytest.mark.parametrize("box", [24, 25])
def test_its_gain_is_that_of_the_pose_it_names(box: int) -> None:
    batch, _, _ = make_batch(box, 20, noise=0.2)
    volume, noise = volume_from_map(make_density(box)), torch.full((20,), 0.2)
    found = search_views(make_search(box), batch, volume, noise, 40)
    inside = batch.prefix(SHELLS + 0.5)
    power = (inside.images.abs() ** 2 / 0.2).sum(1, keepdim=True)
    gain = power + score_hypotheses(inside, volume, noise, found).log_weight
    # Poses of either side of the plane; rings and coefficients weigh the noise of the outermost shell differently.
    assert ((found.log_weight / gain)[:, :8] - 1).abs().median() < 0.06
    assert ((found.log_weight / gain)[:, :8] - 1).abs().max() < 0.2
    assert (found.log_weight.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("box", [24, 25])
def test_it_finds_the_poses_of_images(box: int) -> None:
    batch, rotation, translation = make_batch(box, 40, noise=0.05)
    volume, noise = volume_from_map(make_density(box)), torch.full((20,), 0.05)
    found = search_views(make_search(box, finer=1.5), batch, volume, noise, 32, generator(1))
    off = rotation_angle(found.rotation.flatten(0, 1), rotation.repeat_interleave(32, 0)).unflatten(0, (-1, 32))
    near = off.min(1)
    # Of three balls within 6 shells some views are each other's mirror images.
    assert (near.values < 0.3).float().mean() > 0.75
    moved = found.translation[torch.arange(40), near.indices] - translation
    assert moved.norm(dim=1).median() < 0.06 * box * PIXEL_SIZE


@pytest.mark.parametrize("noise_power", [0.05, 1.0])
@pytest.mark.parametrize("box", [36, 37])
def test_two_steps_find_what_one_finds(box: int, noise_power: float) -> None:
    shells = 11
    batch, _, _ = make_batch(box, 60, noise=noise_power, reach=14.0)
    volume, noise = volume_from_map(make_density(box)), torch.full((20,), noise_power)
    one = search_views(PosteriorSearch(box, PIXEL_SIZE, shells, 0.3, 0.1), batch, volume, noise, 8, generator(2))
    two = PrunedSearch(box, PIXEL_SIZE, shells, 0.3, 0.1)(batch, volume, noise, 8, generator(2))
    same = torch.isclose(two.log_weight[:, 0], one.log_weight[:, 0], rtol=1e-4)
    assert same.float().mean() > 0.9
    # What it has not looked at is never better.
    assert (two.log_weight <= one.log_weight * (1 + 1e-4)).all()


def test_few_shells_are_searched_in_one_step() -> None:
    batch, _, _ = make_batch(24, 5, noise=30.0)
    volume, noise = volume_from_map(make_density(24)), torch.full((20,), 30.0)
    one = search_views(PosteriorSearch(24, PIXEL_SIZE, SHELLS, 0.3, 0.1), batch, volume, noise, 20)
    two = PrunedSearch(24, PIXEL_SIZE, SHELLS, 0.3, 0.1)(batch, volume, noise, 20)
    torch.testing.assert_close(two.log_weight, one.log_weight)
