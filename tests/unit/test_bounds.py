"""The kernels and their references read no grid where it is not, whatever they are given."""

import math
from dataclasses import replace

import pytest
import torch
from jaxtyping import TypeCheckError

from cryoai.geometry.fourier import make_fourier_disk
from cryoai.geometry.rotations import random_rotations
from cryoai.particles.phantom import make_phantom
from cryoai.physics.bounds import check_poses
from cryoai.physics.image_formation import form_images
from cryoai.physics.insertion import Inserter, slice_quickly
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import (
    FourierVolume,
    VolumeAccumulator,
    insert_slices,
    map_from_volume,
    slice_volume,
    slice_with_jacobian,
    volume_from_map,
)
from cryoai.poses.local import refine_poses, refine_poses_reference, score_poses
from cryoai.tensors import ParticleBatch

PIXEL_SIZE = 3.0


@pytest.fixture(params=[24, 25])
def scene(request):
    """A volume, twelve poses, noisy images of it, and the noise's power."""
    generator = torch.Generator().manual_seed(0)
    volume = volume_from_map(torch.from_numpy(make_phantom(request.param, 6.0).density))
    rotation, translation = random_rotations(12, generator), 4 * torch.randn(12, 2, generator=generator)
    disk = make_fourier_disk(request.param)
    ctf = torch.rand(12, len(disk), generator=generator)
    images = form_images(volume, rotation, translation, ctf, disk, PIXEL_SIZE)
    noise = torch.full((disk.shell_count,), 0.1 * images.abs().square().mean().item())
    images = images + make_shell_noise(12, noise, disk, generator)
    return volume, rotation, translation, ParticleBatch(images, ctf, disk, PIXEL_SIZE), noise


def every_reader(scene, *, poses=None, image_of=None, batch=None, volume=None):
    """Calls that read or write a grid at poses, by kernel and by reference; what is not given fits."""
    good_volume, rotation, translation, good_batch, noise = scene
    rotation = rotation if poses is None else poses
    volume, batch = volume or good_volume, batch or good_batch
    image_of = torch.arange(12) if image_of is None else image_of
    accumulator = VolumeAccumulator(volume.values, volume.values[..., 0], volume.box_size, volume.padding)
    radius = (volume.values.shape[2] - 2) / volume.padding
    matched = [
        lambda: Inserter(volume.box_size, radius).add(batch, rotation, translation, noise, image_of),
        lambda: score_poses(batch, volume, noise, rotation, translation, image_of),
        lambda: refine_poses(batch, volume, noise, rotation, translation, image_of, 1),
        lambda: refine_poses_reference(batch, volume, noise, rotation, translation, image_of, 1),
    ]
    slicing = [
        lambda: slice_quickly(volume, rotation, batch.disk),
        lambda: slice_volume(volume, rotation, batch.disk),
        lambda: slice_with_jacobian(volume, rotation, batch.disk),
        lambda: insert_slices(accumulator, batch.images, batch.ctf, rotation, batch.disk),
    ]
    return matched, slicing


def test_reading_beyond_the_grid_is_refused(scene):
    full = scene[3].disk.reach
    enough, too_small = (volume_from_map(map_from_volume(scene[0]), radius) for radius in (full, full - 1))
    for call in [c for calls in every_reader(scene, volume=enough) for c in calls]:
        call()
    for call in [c for calls in every_reader(scene, volume=too_small) for c in calls]:
        with pytest.raises(ValueError, match=r"the slices reach .* holds less than"):
            call()


@pytest.mark.parametrize("factor", [math.inf, 1.5])
def test_what_is_no_rotation_is_refused(scene, factor):
    poses = scene[1].clone()
    poses[7] = poses[7].abs() * factor
    for call in [c for calls in every_reader(scene, poses=poses) for c in calls]:
        with pytest.raises(ValueError, match="the slices reach"):
            call()


def test_a_pose_that_is_not_a_number_reads_nothing_else_and_is_not_inserted(scene):
    volume, rotation, translation, batch, noise = scene
    poses = rotation.clone()
    poses[7, 1, 1] = math.nan
    others = torch.arange(12) != 7
    for read in (
        lambda r: slice_quickly(volume, r, batch.disk),
        lambda r: slice_volume(volume, r, batch.disk),
        lambda r: slice_with_jacobian(volume, r, batch.disk)[0],
        lambda r: score_poses(batch, volume, noise, r, translation)[:, None],
        lambda r: refine_poses(batch, volume, noise, r, translation).rotation,
        lambda r: refine_poses(batch, volume, noise, r, translation).cost[:, None],
    ):
        expected, found = read(rotation), read(poses)
        torch.testing.assert_close(found[others], expected[others])
        assert found[7].isnan().all()
    matched, slicing = every_reader(scene, poses=poses)
    for insert in (matched[0], slicing[-1]):
        with pytest.raises(ValueError, match="the slices reach nan"):
            insert()


@pytest.mark.parametrize("wrong", [12, -1])
def test_poses_of_particles_that_are_not_there_are_refused(scene, wrong):
    for call in every_reader(scene, image_of=torch.tensor([0] * 11 + [wrong]))[0]:
        with pytest.raises(ValueError, match="but there are 12"):
            call()


def test_poses_that_do_not_fit_the_particles_are_refused(scene):
    _, rotation, translation, batch, _ = scene
    for call in every_reader(scene, image_of=torch.arange(11))[0]:
        with pytest.raises((ValueError, TypeCheckError)):  # the tests' shape checker comes first where it looks
            call()
    with pytest.raises(ValueError, match="differ in number"):
        check_poses(batch, rotation, translation[:11], torch.arange(12))
    with pytest.raises(ValueError, match="on a disk of"):
        check_poses(replace(batch, disk=batch.disk.prefix(5.0)), rotation, translation, torch.arange(12))


def test_kernels_take_other_precisions_and_layouts(scene):
    volume, rotation, translation, batch, noise = scene
    expected = score_poses(batch, volume, noise, rotation, translation)
    other = replace(batch, images=batch.images.to(torch.complex128), ctf=batch.ctf.T.contiguous().T)
    double = FourierVolume(volume.values.double(), volume.box_size, volume.padding)
    found = score_poses(other, double, noise, rotation.mT.contiguous().mT, translation)
    torch.testing.assert_close(found, expected)
    slices = slice_quickly(double, rotation.double(), batch.disk)
    torch.testing.assert_close(slices, slice_quickly(volume, rotation, batch.disk))


def test_an_image_that_is_not_a_number_keeps_its_pose_and_leaves_the_others_alone(scene):
    volume, rotation, translation, batch, noise = scene
    images = batch.images.clone()
    images[3] = math.nan
    expected = refine_poses(batch, volume, noise, rotation, translation)
    found = refine_poses(replace(batch, images=images), volume, noise, rotation, translation)
    others = torch.arange(12) != 3
    torch.testing.assert_close(found.rotation[others], expected.rotation[others])
    assert torch.equal(found.rotation[3], rotation[3]) and (found.hessian[3] == 0).all()
    assert not torch.isfinite(found.cost[3])
