"""Symmetry that is given: an asymmetric unit, symmetric sums, a search that tries no pose twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from three_balls import PIXEL_SIZE, SUPPORT, generator, make_density

from cryoai.geometry.asymmetric_unit import depth_in_unit, unit_directions
from cryoai.geometry.fourier import full_radius, make_fourier_disk
from cryoai.geometry.point_groups import identify_group, point_group
from cryoai.geometry.rotations import random_rotations
from cryoai.metrics.alignment import MapAlignment, apply_alignment
from cryoai.metrics.views import measure_views
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.insertion import Inserter
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import VolumeAccumulator, grid_to_real, slice_volume, volume_from_map
from cryoai.physics.symmetrize import symmetric_gridding_correction, symmetrize
from cryoai.poses.polar_grid import spread_directions
from cryoai.poses.posterior import PosteriorSearch
from cryoai.poses.pruned_search import PrunedSearch
from cryoai.poses.search import make_search_grid
from cryoai.run.config import load_config
from cryoai.tensors import ParticleBatch

NAMES = ("C1", "C3", "C4", "D2", "D3", "T", "O", "I")


def group_of(name: str) -> torch.Tensor:
    return torch.from_numpy(point_group(name)).float()


@pytest.mark.parametrize("name", NAMES)
def test_one_mate_of_every_direction_is_in_the_unit(name: str) -> None:
    group, direction = group_of(name), spread_directions(300) @ random_rotations(1, generator())[0].T
    mates = torch.einsum("gij,nj->gni", group, direction)
    inside = torch.stack([depth_in_unit(one, group) > 0 for one in mates])
    torch.testing.assert_close(inside.sum(0), torch.ones(300, dtype=torch.long))
    both = torch.cat([torch.stack([depth_in_unit(s * one, group, True) > 0 for one in mates]) for s in (1, -1)])
    torch.testing.assert_close(both.sum(0), torch.ones(300, dtype=torch.long))


@pytest.mark.parametrize("name", NAMES[1:])
def test_directions_of_the_unit_leave_no_gap(name: str) -> None:
    group, count = group_of(name), 48
    chosen = unit_directions(spread_directions(round(count * len(group) / 1.08)), group, count)
    assert chosen.shape == (count, 3)
    mates = torch.einsum("gij,nj->gni", group, chosen).flatten(0, 1)
    far = (spread_directions(2000) @ mates.T).abs().amax(1).clamp(max=1).acos().max()
    assert float(far) < 1.5 * np.sqrt(2 * np.pi / (count * len(group)))


@pytest.mark.parametrize("name", [*NAMES, "C7", "D7", "C12", "I1"])
def test_groups_are_known_by_their_rotations(name: str) -> None:
    turn = Rotation.from_rotvec([0.7, -0.4, 1.1]).as_matrix()
    group = turn @ point_group(name) @ turn.T
    assert identify_group(group) == ("I" if name == "I1" else name)
    if len(group) > 2:
        assert identify_group(group[:-1]) is None


def symmetric_density(box: int, name: str) -> torch.Tensor:
    turned = [
        apply_alignment(make_density(box), MapAlignment(g, np.zeros(3), False, 1.0)) for g in point_group(name)
    ]
    return torch.stack(turned).mean(0)


def sums_of(density: torch.Tensor, rotation: torch.Tensor, radius: float) -> VolumeAccumulator:
    box = density.shape[-1]
    disk = make_fourier_disk(box, radius)
    images = slice_volume(volume_from_map(density), rotation, disk)
    inserter = Inserter(box, radius)
    batch = ParticleBatch(images, torch.ones(images.shape), disk, 1.0)
    inserter.add(batch, rotation, torch.zeros(len(rotation), 2), torch.ones(disk.shell_count))
    return inserter.result()


def map_of(total: VolumeAccumulator) -> torch.Tensor:
    values = total.numerator / (total.weight + 1e-3 * total.weight.mean())[..., None]
    correction = symmetric_gridding_correction(total.box_size, total.padding, total.symmetry)
    return grid_to_real(values, total.box_size, total.padding) / correction


def mates_weight(total: VolumeAccumulator, name: str) -> torch.Tensor:
    return len(point_group(name)) * total.weight.sum()


@pytest.mark.parametrize(("box", "name"), [(24, "C3"), (25, "C3"), (24, "D2"), (25, "C4"), (25, "O"), (24, "T")])
def test_turned_sums_are_those_of_particles_at_all_mates(box: int, name: str) -> None:
    density, radius = symmetric_density(box, name), full_radius(box)
    rotation = random_rotations(400, generator(1))
    total = sums_of(density, rotation, radius)
    symmetric = symmetrize(total, name)
    by_reference = symmetrize(total, name, reference=True)
    scale = float(by_reference.weight.amax())
    torch.testing.assert_close(symmetric.numerator, by_reference.numerator, atol=1e-5 * scale, rtol=1e-5)
    torch.testing.assert_close(symmetric.weight, by_reference.weight, atol=1e-5 * scale, rtol=1e-5)
    mates = sums_of(density, (group_of(name)[:, None] @ rotation).flatten(0, 1), radius)
    expected, found = map_of(mates), map_of(symmetric)
    assert float((found - expected).norm() / expected.norm()) < 0.04
    assert float(symmetric.weight.sum()) == pytest.approx(
        len(point_group(name)) * float(total.weight.sum()), rel=0.1
    )


def test_c1_leaves_sums_as_they_are() -> None:
    total = sums_of(make_density(24), random_rotations(5, generator()), 8.0)
    assert symmetrize(total, "C1") is total and total.symmetry == "C1"
    assert (total + symmetrize(total, "C2").scaled(0.5)).box_size == 24


def noisy_images(density: torch.Tensor, rotation: torch.Tensor, noise: float, reach: float = 9.0) -> ParticleBatch:
    disk, count = make_fourier_disk(density.shape[-1], reach), len(rotation)
    ctf = torch.cos(disk.radius * torch.linspace(0.05, 0.15, count)[:, None])
    clean = form_images_quickly(volume_from_map(density), rotation, torch.zeros(count, 2), ctf, disk, PIXEL_SIZE)
    return ParticleBatch(
        clean + make_shell_noise(count, torch.full((20,), noise), disk, generator(2)), ctf, disk, PIXEL_SIZE
    )


@pytest.mark.parametrize(("box", "name"), [(24, "C4"), (25, "D2")])
def test_the_posterior_over_a_unit_is_that_over_all_poses(box: int, name: str) -> None:
    density, noise = symmetric_density(box, name), torch.full((20,), 0.3)
    batch, volume = noisy_images(density, random_rotations(6, generator(1)), 0.3), volume_from_map(density)
    arguments = (box, PIXEL_SIZE, 6, SUPPORT, 0.05)
    whole, unit = PosteriorSearch(*arguments, finer=2.0), PosteriorSearch(*arguments, finer=2.0, symmetry=name)
    assert unit.poses < 0.6 * whole.poses
    torch.testing.assert_close(
        unit(batch, volume, noise).gain, whole(batch, volume, noise).gain, atol=0.25, rtol=0.02
    )
    found = unit(batch, volume, noise, draws=64, generator=generator(3)).sums[0]
    turned = symmetrize(found, name)
    # What has the symmetry already is only multiplied by the number of copies, but for interpolation.
    order = len(point_group(name))
    assert float((turned.numerator / order - found.numerator).norm() / found.numerator.norm()) < 0.3


@pytest.mark.parametrize("shells", [7, 11])
def test_a_search_of_the_unit_finds_as_good_a_pose(shells: int) -> None:
    """In one step and in two; a quarter of the directions suffices."""
    box, name, noise = 32, "D2", torch.full((20,), 0.05)
    density = symmetric_density(box, name)
    batch = noisy_images(density, random_rotations(12, generator(4)), 0.05, reach=15.0)
    best = [
        PrunedSearch(box, PIXEL_SIZE, shells, SUPPORT, 0.05, finer=2.0, symmetry=symmetry)(
            batch, volume_from_map(density), noise, 1, generator(5)
        ).log_weight[:, 0]
        for symmetry in ("C1", name)
    ]
    torch.testing.assert_close(best[1], best[0], rtol=0.12, atol=1.0)


def test_a_grid_of_rotations_has_none_twice() -> None:
    whole, unit = make_search_grid(4608, 10.0, 5.0), make_search_grid(4608, 10.0, 5.0, symmetry="O")
    assert len(unit.rotation) == pytest.approx(len(whole.rotation) / 24, rel=0.15)


def test_mates_are_views_as_well() -> None:
    """Side views about one axis of an octahedron are views from all sides but few."""
    rotation = random_rotations(40, generator()).double().numpy()
    alone, with_mates = measure_views(rotation), measure_views(rotation, group=point_group("O"))
    assert with_mates.particles == pytest.approx(24 * alone.particles)
    assert with_mates.emptiest_cone_deg < 0.5 * alone.emptiest_cone_deg
    assert with_mates.evenness == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("given", "name"), [("c4", "C4"), (" Auto", "auto"), ("I2", "I2"), ("o", "O")])
def test_symmetry_is_named_as_in_relion(given: str, name: str) -> None:
    config = load_config(None, {"symmetry": given})
    assert config.symmetry == name and config.imposed_symmetry == ("C1" if name == "auto" else name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"symmetry": "C0"}, "'C0' is no point group that is known; use Cn or Dn"),
        ({"symmetry": "octahedral"}, "no point group that is known"),
        ({"symmetry": "D2", "method": "amortized"}, "exclude each other"),
        ({"symmetry": "T", "invert_hand": True}, "move the axes of T"),
    ],
)
def test_a_symmetry_that_cannot_be(options: dict, said: str) -> None:
    with pytest.raises(Exception, match=said):
        load_config(None, options)
