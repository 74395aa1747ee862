import math

import numpy as np
import pytest
import torch

from cryoai.geometry.fourier import make_fourier_disk
from cryoai.geometry.rotations import random_rotations, rotation_angle, rotation_from_vector
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import draw_ctf
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.image_formation import form_images
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.local import (
    pose_standard_deviations,
    refine_poses,
    refine_poses_reference,
    score_hypotheses,
)
from cryoai.poses.search import (
    make_search_grid,
    make_translation_grid,
    search_poses,
    search_translations,
    translation_step,
)
from cryoai.tensors import ParticleBatch, PoseHypotheses

PIXEL_SIZE = 6.0


@pytest.fixture(params=[32, 33])
def volume(request):
    return volume_from_map(torch.from_numpy(make_phantom(request.param, PIXEL_SIZE).density))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_batch(volume, rotation, translation, radius=None):
    disk = make_fourier_disk(volume.box_size, radius)
    ctf = compute_ctf(draw_ctf(len(rotation), np.random.default_rng(0)), disk, PIXEL_SIZE)
    images = form_images(volume, rotation, translation, ctf, disk, PIXEL_SIZE)
    return ParticleBatch(images, ctf, disk, PIXEL_SIZE), torch.ones(disk.shell_count)


def test_translation_grid_is_a_lattice_inside_the_circle():
    grid = make_translation_grid(10.0, 2.5)
    assert grid.norm(dim=1).max() <= 10.0
    assert (grid == 0).all(1).any()
    assert len(grid) == 49
    assert len(make_translation_grid(0.0, 1.0)) == 1
    assert translation_step(8, 160.0) == pytest.approx(8.0)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_search_finds_the_pose_among_many(volume, dtype):
    grid = make_search_grid(2000, 12.0, 6.0, generator())
    chosen = torch.randperm(2000, generator=generator(1))[:10]
    shift = torch.randint(len(grid.translation), (10,), generator=generator(2))
    batch, noise = make_batch(volume, grid.rotation[chosen], grid.translation[shift], radius=10)
    noise = noise * 0.05 * batch.images.abs().square().mean()
    found = search_poses(batch, volume, noise, grid, keep=8, dtype=dtype)
    assert rotation_angle(found.rotation[:, 0], grid.rotation[chosen]).max() < 1e-3
    assert torch.equal(found.translation[:, 0], grid.translation[shift])
    assert (found.log_weight.diff(dim=1) <= 0).all()
    torch.testing.assert_close(found.posterior().sum(1), torch.ones(10))


def test_translations_of_hypotheses_are_found_on_a_lattice(volume):
    rotation, translation = random_rotations(6, generator()), 8 * torch.randn(6, 2, generator=generator(1))
    batch, noise = make_batch(volume, rotation, translation, radius=10)
    moves = make_translation_grid(12.0, 3.0)
    wanted = moves[torch.randint(len(moves), (6,), generator=generator(2))]
    # The right rotation off by one of the moves, and a wrong one.
    hypotheses = PoseHypotheses(
        torch.stack((random_rotations(6, generator(3)), rotation), 1),
        (translation - wanted)[:, None].expand(-1, 2, -1).contiguous(),
        torch.zeros(6, 2),
    )
    found = search_translations(batch, volume, noise, hypotheses, moves)
    torch.testing.assert_close(found.translation[:, 1], translation, atol=1e-4, rtol=0)
    assert torch.equal(found.rotation, hypotheses.rotation)
    assert (found.log_weight[:, 1] > found.log_weight[:, 0]).all()
    # Log-weights are those of the poses found, up to a constant per image.
    again = score_hypotheses(batch, volume, noise, found).log_weight
    torch.testing.assert_close(found.log_weight.diff(dim=1), again.diff(dim=1), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("refine", [refine_poses, refine_poses_reference])
def test_refinement_converges_to_the_true_pose(volume, refine):
    rotation = random_rotations(10, generator())
    translation = 8 * torch.randn(10, 2, generator=generator(1))
    batch, noise = make_batch(volume, rotation, translation)
    axis = torch.nn.functional.normalize(torch.randn(10, 3, generator=generator(2)), dim=1)
    away = rotation_from_vector(math.radians(5) * axis) @ rotation
    direction = torch.nn.functional.normalize(torch.randn(10, 2, generator=generator(3)), dim=1)
    start = translation + 1.5 * PIXEL_SIZE * direction
    # As in practice, low frequencies first: the full band has minima closer by than 5°.
    coarse = refine(batch.prefix(8), volume, noise, away, start, torch.arange(10), 10)
    fine = refine(batch, volume, noise, coarse.rotation, coarse.translation, torch.arange(10), 15)
    angle = (fine.rotation.double() @ rotation.double().mT - torch.eye(3).double()).norm(dim=(1, 2)) / math.sqrt(2)
    assert torch.rad2deg(angle).max() < 0.01
    assert (fine.translation - translation).norm(dim=1).max() < 0.01 * PIXEL_SIZE


def test_predicted_pose_errors_are_those_observed(volume):
    repeats, poses = 60, 6
    rotation = random_rotations(poses, generator()).repeat_interleave(repeats, 0)
    translation = (6 * torch.randn(poses, 2, generator=generator(1))).repeat_interleave(repeats, 0)
    batch, ones = make_batch(volume, rotation, translation)
    noise = ones * 0.3 * batch.images.abs().square().mean()
    noisy = batch.images + make_shell_noise(len(batch), noise, batch.disk, generator(2))
    batch = ParticleBatch(noisy, batch.ctf, batch.disk, PIXEL_SIZE)
    refined = refine_poses(batch, volume, noise, rotation, translation, iterations=15)
    rotation_sd, translation_sd = pose_standard_deviations(refined.hessian)
    turned = refined.rotation.double() @ rotation.double().mT
    # The rotation vector of a small rotation is its antisymmetric part.
    vector = torch.stack((turned[:, 2, 1], turned[:, 0, 2], turned[:, 1, 0]), -1)
    vector = vector - torch.stack((turned[:, 1, 2], turned[:, 2, 0], turned[:, 0, 1]), -1)
    observed_rotation = (vector / 2).square().mean().sqrt().item()
    observed_translation = (refined.translation - translation).square().mean().sqrt().item()
    assert observed_rotation == pytest.approx(rotation_sd.square().mean().sqrt().item(), rel=0.25)
    assert observed_translation == pytest.approx(translation_sd.square().mean().sqrt().item(), rel=0.25)
