import math

import numpy as np
import pytest
import torch

from cryoai.geometry.fourier import disk_to_images, images_to_disk, make_fourier_disk
from cryoai.geometry.rotations import random_rotations, rotation_from_vector
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.physics.ctf import compute_ctf, electron_wavelength
from cryoai.physics.image_formation import form_images, form_images_quickly, image_slices, residual_power
from cryoai.physics.insertion import Inserter, slice_quickly
from cryoai.physics.noise import estimate_shell_power, make_shell_noise, make_white_noise
from cryoai.physics.slicing import (
    FourierVolume,
    VolumeAccumulator,
    enforce_friedel,
    gridding_correction,
    insert_slices,
    make_accumulator,
    map_from_volume,
    slice_volume,
    slice_with_jacobian,
    volume_from_map,
)
from cryoai.physics.translation import compute_shift
from cryoai.poses.local import refine_poses, refine_poses_reference, score_poses
from cryoai.tensors import ParticleBatch
from cryoai.types import CtfParameters

PIXEL_SIZE = 3.0


@pytest.fixture(params=[24, 25])
def box(request):
    return request.param


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def one_ctf(**changes):
    values = {
        "defocus_u_angstrom": 15_000.0,
        "defocus_v_angstrom": 15_000.0,
        "defocus_angle": 0.0,
        "phase_shift": 0.0,
        "b_factor": 0.0,
        "voltage_kv": 300.0,
        "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.1,
    }
    return CtfParameters(**{name: np.array([value]) for name, value in {**values, **changes}.items()})


def random_ctf(count, disk, pixel_size=PIXEL_SIZE, seed=0):
    rng = np.random.default_rng(seed)
    parameters = CtfParameters(
        rng.uniform(8000, 20000, count), rng.uniform(8000, 20000, count), rng.uniform(0, 3, count),
        np.zeros(count), np.zeros(count), np.full(count, 300.0), np.full(count, 2.7), np.full(count, 0.1),
    )  # fmt: skip
    return compute_ctf(parameters, disk, pixel_size)


def scalar_ctf(kx, ky, p):
    """The CTF of one frequency (1/Å), from the physics: minus the sine of the wave aberration χ."""
    # CODATA 2018: rest energy in eV, and the others in SI units.
    electron_ev, planck, charge, mass = 510_998.95, 6.62607015e-34, 1.602176634e-19, 9.1093837015e-31
    volts = 1e3 * p.voltage_kv[0]
    momentum = math.sqrt(2 * mass * charge * volts * (1 + volts / (2 * electron_ev)))
    wavelength = 1e10 * planck / momentum
    k, angle = math.hypot(kx, ky), math.atan2(ky, kx)
    u, v = p.defocus_u_angstrom[0], p.defocus_v_angstrom[0]
    relative = angle - p.defocus_angle[0]
    defocus = u * math.cos(relative) ** 2 + v * math.sin(relative) ** 2
    chi = 0.5 * math.pi * p.spherical_aberration_mm[0] * 1e7 * wavelength**3 * k**4
    chi -= math.pi * wavelength * defocus * k**2
    w = p.amplitude_contrast[0]
    phase = -chi + p.phase_shift[0]
    contrast = math.sqrt(1 - w * w) * math.sin(phase) + w * math.cos(phase)
    return contrast * math.exp(-p.b_factor[0] * k**2 / 4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"defocus_v_angstrom": 12_000.0, "defocus_angle": 0.6},
        {"defocus_u_angstrom": 9_000.0, "defocus_v_angstrom": 11_000.0, "defocus_angle": -2.0},
        {"phase_shift": math.pi / 2, "defocus_u_angstrom": 5_000.0},
        {"b_factor": 80.0},
        {"voltage_kv": 200.0, "spherical_aberration_mm": 0.01, "amplitude_contrast": 0.07},
        {"defocus_u_angstrom": -3_000.0, "defocus_v_angstrom": -3_500.0},
    ],
)
def test_ctf_is_the_textbook_formula(box, changes):
    disk, parameters = make_fourier_disk(box), one_ctf(**changes)
    ctf = compute_ctf(parameters, disk, 1.5)[0]
    length = box * 1.5
    expected = [
        scalar_ctf(x / length, y / length, parameters)
        for x, y in zip(disk.kx.tolist(), disk.ky.tolist(), strict=True)
    ]
    # The phase reaches 100 radians, and the wavelength has the six digits that the field uses.
    np.testing.assert_allclose(ctf.numpy(), expected, atol=1e-3)


def test_ctf_starts_at_the_amplitude_contrast_and_rises():
    disk = make_fourier_disk(256)
    ctf = compute_ctf(one_ctf(), disk, 40.0)[0]  # 1e-4 per Å per shell
    assert ctf[0].item() == pytest.approx(0.1, abs=2e-3)
    assert ctf[disk.count(20.0)] > 0.1


def test_wavelength():
    np.testing.assert_allclose(electron_wavelength(np.array([200.0, 300.0])), [0.0250793, 0.0196875], rtol=1e-5)


def test_translation_moves_a_delta_towards_positive_x_and_y(box):
    disk = make_fourier_disk(box)
    delta = torch.zeros(1, box, box)
    delta[0, box // 2, box // 2] = 1
    translation = torch.tensor([[2 * PIXEL_SIZE, 5 * PIXEL_SIZE]])
    moved = disk_to_images(images_to_disk(delta, disk) * compute_shift(translation, disk, PIXEL_SIZE), disk)
    assert divmod(int(moved.argmax()), box) == (box // 2 + 5, box // 2 + 2)


def blobs(box, reach=0.25, sigma=1.5, seed=0):
    """A map of Gaussians, and their centres (xyz, px)."""
    centres = 2 * torch.rand(8, 3, generator=generator(seed)) - 1
    centres = centres / centres.norm(dim=1, keepdim=True).clamp(min=1) * reach * box
    axis = torch.arange(box) - box // 2
    total = torch.zeros(box, box, box)
    for x, y, z in centres.tolist():
        g = [torch.exp(-((axis - c) ** 2) / (2 * sigma**2)) for c in (z, y, x)]
        total += g[0][:, None, None] * g[1][:, None] * g[2]
    return total, centres


def test_slices_are_the_analytic_projections_of_gaussian_blobs(box):
    sigma = 1.5
    volume, centres = blobs(box, sigma=sigma)
    rotation, disk = random_rotations(20, generator()), make_fourier_disk(box)
    envelope = torch.exp(-2 * (math.pi * sigma * disk.radius / box) ** 2)
    expected = torch.zeros(20, len(disk), dtype=torch.complex64)
    for centre in centres:
        # R maps image to volume coordinates, so a centre is seen at Rᵀ c.
        expected += compute_shift((rotation.mT @ centre)[:, :2], disk, 1.0)
    expected *= (2 * math.pi * sigma**2) ** 1.5 / box * envelope
    slices = slice_volume(volume_from_map(volume), rotation, disk)
    error = (slices - expected).abs().square().sum() / expected.abs().square().sum()
    assert error.sqrt() < 0.02
    # More padding means finer interpolation: nothing but that is wrong.
    finer = slice_volume(volume_from_map(volume, padding=4), rotation, disk)
    assert ((finer - expected).abs().square().sum() / expected.abs().square().sum()).sqrt() < 0.005


def random_volume(box, padding=2, dtype=torch.float64, seed=0):
    density = torch.randn(box, box, box, generator=generator(seed), dtype=dtype)
    return volume_from_map(density, padding=padding)


def test_map_and_volume_are_inverse_inside_the_radius(box):
    density = torch.from_numpy(make_phantom(box, 6.0).density).double()
    again = map_from_volume(volume_from_map(density))
    assert compute_fsc(again, density).correlation.min() > 0.99
    torch.testing.assert_close(again, density, atol=0.05, rtol=0)
    assert gridding_correction(box, 2).max() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_insertion_is_the_adjoint_of_slicing(box, dtype):
    volume, disk = random_volume(box, dtype=dtype), make_fourier_disk(box)
    rotation = random_rotations(5, generator()).to(dtype)
    y = torch.view_as_complex(torch.randn(5, len(disk), 2, generator=generator(1), dtype=dtype))
    shape = volume.values.shape
    zero = VolumeAccumulator(torch.zeros(shape, dtype=dtype), torch.zeros(shape[:3], dtype=dtype), box)
    inserted = insert_slices(zero, y, torch.ones_like(y.real), rotation, disk)
    slices = slice_volume(volume, rotation, disk)
    left = (torch.view_as_real(slices) * torch.view_as_real(y)).sum()
    right = (volume.values * inserted.numerator).sum()
    size = torch.linalg.vector_norm(slices) * torch.linalg.vector_norm(y)
    assert (left - right).abs() < (1e-12 if dtype == torch.float64 else 1e-5) * size
    assert inserted.weight.sum().item() == pytest.approx(y.numel(), rel=1e-4)


def test_slicing_is_differentiable_in_float64():
    disk = make_fourier_disk(6)
    volume = random_volume(6, padding=1)
    rotation = random_rotations(2, generator()).double()

    def of_values(values):
        return torch.view_as_real(slice_volume(FourierVolume(values, 6, 1), rotation, disk))

    def of_rotation(matrix):
        return torch.view_as_real(slice_volume(volume, matrix, disk))

    assert torch.autograd.gradcheck(of_values, volume.values.requires_grad_())
    volume = random_volume(6, padding=1)
    assert torch.autograd.gradcheck(of_rotation, rotation.clone().requires_grad_(), eps=1e-7, atol=1e-5)


def test_jacobian_is_the_finite_difference(box):
    disk, volume = make_fourier_disk(box), random_volume(box)
    rotation = random_rotations(3, generator()).double()
    value, jacobian = slice_with_jacobian(volume, rotation, disk)
    torch.testing.assert_close(value, slice_volume(volume, rotation, disk))
    step = 1e-7  # so small that hardly any sample crosses into the next grid cell
    for axis in range(3):
        vector = torch.zeros(3, dtype=torch.float64)
        vector[axis] = step
        ahead, behind = (
            slice_volume(volume, rotation_from_vector(sign * vector) @ rotation, disk) for sign in (1, -1)
        )
        difference = (ahead - behind) / (2 * step)
        off = (difference - jacobian[..., axis]).abs() > 1e-4 * jacobian.abs().max()
        assert off.sum() <= 3


def batch_of(volume, rotation, translation, disk, noise=0.0, seed=0):
    ctf = random_ctf(len(rotation), disk)
    images = form_images(volume, rotation, translation, ctf, disk, PIXEL_SIZE)
    if noise:
        power = torch.full((disk.shell_count,), noise)
        images = images + make_shell_noise(len(images), power, disk, generator(seed))
    return ParticleBatch(images, ctf, disk, PIXEL_SIZE)


@pytest.fixture
def scene(box):
    """A volume, poses and noisy images of it."""
    volume = volume_from_map(torch.from_numpy(make_phantom(box, 6.0).density))
    rotation = random_rotations(12, generator())
    translation = 4 * torch.randn(12, 2, generator=generator(1))
    disk = make_fourier_disk(box)
    power = form_images(volume, rotation, translation, None, disk, PIXEL_SIZE).abs().square().mean().item()
    noise = 0.1 * power
    batch = batch_of(volume, rotation, translation, disk, noise)
    return volume, rotation, translation, batch, torch.full((disk.shell_count,), noise)


def test_fused_slices_are_those_of_the_reference(scene):
    volume, rotation, _, batch, _ = scene
    expected = slice_volume(volume, rotation, batch.disk)
    torch.testing.assert_close(slice_quickly(volume, rotation, batch.disk), expected, atol=1e-5, rtol=1e-4)


def test_fused_images_are_those_of_the_reference(scene):
    volume, rotation, translation, batch, _ = scene
    for ctf in (batch.ctf, None):
        arguments = (volume, rotation, translation, ctf, batch.disk, PIXEL_SIZE)
        torch.testing.assert_close(form_images_quickly(*arguments), form_images(*arguments), atol=1e-5, rtol=1e-4)
    # Slices of several poses per particle are imaged with that particle's CTF.
    slices = slice_volume(volume, rotation, batch.disk).unflatten(0, (4, 3))
    images = image_slices(slices, translation.unflatten(0, (4, 3)), batch.ctf[:4, None], batch.disk, PIXEL_SIZE)
    expected = form_images(
        volume, rotation, translation, batch.ctf[:4].repeat_interleave(3, 0), batch.disk, PIXEL_SIZE
    )
    torch.testing.assert_close(images.flatten(0, 1), expected)


def test_residual_power_is_that_of_the_noise_at_the_right_poses(scene):
    volume, rotation, translation, batch, noise = scene
    model = form_images_quickly(volume, rotation, translation, batch.ctf, batch.disk, PIXEL_SIZE)
    found = residual_power(batch, model)
    expected = batch.disk.mean_per_shell((batch.images - model).abs().square().mean(0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[3:], noise[3:], rtol=0.3, atol=0)


def test_fused_insertion_is_that_of_the_reference(scene):
    volume, rotation, translation, batch, noise = scene
    image_of = torch.tensor([3, 3, 0, 7, 11, 5])
    weight = torch.rand(6, generator=generator())
    inserter = Inserter(volume.box_size, float(batch.disk.radius[-1]))
    inserter.add(batch, rotation[:6], translation[:6], noise, image_of, weight)
    found = inserter.result()
    scale = batch.ctf[image_of] / noise[batch.disk.shell] * weight[:, None]
    ramp = compute_shift(-translation[:6], batch.disk, PIXEL_SIZE)
    zero = make_accumulator(volume.box_size, float(batch.disk.radius[-1]))
    expected = enforce_friedel(
        insert_slices(
            zero, batch.images[image_of] * ramp * scale, batch.ctf[image_of] * scale, rotation[:6], batch.disk
        )
    )
    size = expected.numerator.abs().max().item()
    torch.testing.assert_close(found.numerator, expected.numerator, atol=1e-5 * size, rtol=1e-4)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-5 * expected.weight.max().item(), rtol=1e-4)


def test_mirrored_sums_and_volumes_are_those_of_the_mirrored_poses(scene):
    volume, rotation, translation, batch, noise = scene
    reflect = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    mirrored = reflect @ rotation @ reflect
    sums = []
    for poses in (rotation, mirrored):
        inserter = Inserter(volume.box_size, float(batch.disk.radius[-1]))
        inserter.add(batch, poses, translation, noise)
        sums.append(inserter.result())
    found, expected = sums[0].mirrored(), sums[1]
    size = expected.numerator.abs().max().item()
    torch.testing.assert_close(found.numerator, expected.numerator, atol=1e-5 * size, rtol=1e-4)
    torch.testing.assert_close(found.weight, expected.weight, atol=1e-5 * expected.weight.max().item(), rtol=1e-4)
    torch.testing.assert_close(
        slice_volume(volume.mirrored(), mirrored, batch.disk), slice_volume(volume, rotation, batch.disk)
    )


def test_fused_scores_are_those_of_formed_images(scene):
    volume, rotation, translation, batch, noise = scene
    image_of = torch.arange(12).flip(0)
    model = form_images(volume, rotation, translation, batch.ctf[image_of], batch.disk, PIXEL_SIZE)
    expected = ((model - batch.images[image_of]).abs().square() / noise[batch.disk.shell]).sum(1)
    found = score_poses(batch, volume, noise, rotation, translation, image_of)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-3)


def test_fused_refinement_ends_where_the_reference_does(scene):
    volume, rotation, translation, batch, noise = scene
    away = rotation_from_vector(0.03 * torch.randn(12, 3, generator=generator(3))) @ rotation
    start = (batch, volume, noise, away, translation + 1.0)
    fused = refine_poses(*start, iterations=15)
    reference = refine_poses_reference(*start, torch.arange(12), iterations=15)
    torch.testing.assert_close(fused.cost, reference.cost, rtol=2e-3, atol=0)
    scale = reference.hessian.diagonal(dim1=1, dim2=2).sqrt()
    difference = (fused.hessian - reference.hessian).abs() / (scale[:, :, None] * scale[:, None])
    assert difference.amax((1, 2)).median() < 0.02


def test_references_do_not_follow_autocast(scene):
    """Training on a GPU calls them under it; coordinates of 8 bits would be off by whole grid points."""
    volume, rotation, translation, batch, noise = scene

    def results():
        refined = refine_poses_reference(batch, volume, noise, rotation, translation, torch.arange(12), 3)
        zero = make_accumulator(volume.box_size, float(batch.disk.radius[-1]))
        total = insert_slices(zero, batch.images, batch.ctf, rotation, batch.disk)
        slices, jacobian = slice_with_jacobian(volume, rotation, batch.disk)
        return [
            slice_volume(volume, rotation, batch.disk), slices, jacobian, total.numerator, total.weight,
            refined.rotation, refined.translation, refined.cost,
        ]  # fmt: skip

    expected = results()
    with torch.autocast("cpu", torch.bfloat16):
        found = results()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_projected_images_inserted_give_the_map_back(box):
    density = torch.from_numpy(make_phantom(box, 6.0).density)
    disk = make_fourier_disk(box)
    rotation = random_rotations(600, generator())
    translation = 5 * torch.randn(600, 2, generator=generator(1))
    batch = batch_of(volume_from_map(density), rotation, translation, disk)
    inserter = Inserter(box, float(disk.radius[-1]))
    inserter.add(batch, rotation, translation, torch.ones(disk.shell_count))
    total = inserter.result()
    values = total.numerator / (total.weight + 1e-3 * total.weight.mean())[..., None]
    curve = compute_fsc(map_from_volume(FourierVolume(values, box)), density)
    assert curve.correlation[: box // 4].min() > 0.99
    assert curve.correlation.min() > 0.9


def test_noise_has_the_power_asked_for(box):
    disk = make_fourier_disk(box)
    power = torch.linspace(1, 3, disk.shell_count)
    noise = make_shell_noise(2000, power, disk, generator())
    torch.testing.assert_close(estimate_shell_power(noise, disk)[1:], power[1:], rtol=0.05, atol=0)
    white = make_white_noise((500, box, box), 2.0, generator())
    measured = estimate_shell_power(images_to_disk(white, disk), disk)[1:]
    torch.testing.assert_close(measured, torch.full_like(measured, 4.0), rtol=0.1, atol=0)
