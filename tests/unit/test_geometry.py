import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoai.geometry.fourier import (
    crop_or_pad,
    disk_to_images,
    fft3,
    ifft3,
    images_to_disk,
    largest_radius,
    make_fourier_disk,
    resample,
)
from cryoai.geometry.padded_fourier import fft3_padded, ifft3_cropped
from cryoai.geometry.rotations import (
    euler_zyz_to_rotation,
    nearest_rotation,
    random_rotations,
    rotation_angle,
    rotation_from_vector,
    rotation_to_euler_zyz,
)
from cryoai.geometry.shells import radial_distance
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.geometry.views import order_by_view


@pytest.fixture(params=[16, 17])
def box(request):
    return request.param


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_disk_holds_each_friedel_pair_once(box):
    disk = make_fourier_disk(box)
    found = {(int(x), int(y)) for x, y in zip(disk.kx, disk.ky, strict=True)}
    radius = largest_radius(box)
    ints = range(-radius, radius + 1)
    wanted = {(x, y) for x in ints for y in ints if 0 < round(math.hypot(x, y)) <= radius}
    assert len(found) == len(disk)
    assert found | {(-x, -y) for x, y in found} == wanted
    assert not found & {(-x, -y) for x, y in found}


def test_disk_is_sorted_and_a_prefix_is_the_smaller_disk(box):
    disk = make_fourier_disk(box)
    assert (disk.radius.diff() >= 0).all()
    small, prefix = make_fourier_disk(box, 4.0), disk.prefix(4.0)
    assert len(small) == disk.count(4.0) == len(prefix)
    for name in ("kx", "ky", "radius", "shell", "plane_index"):
        assert torch.equal(getattr(small, name), getattr(prefix, name))
    assert prefix.shell_count == 5


def test_disk_coefficients_are_those_of_the_full_transform(box):
    image = torch.randn(box, box, generator=generator(), dtype=torch.float64)
    disk = make_fourier_disk(box)
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    wave = torch.exp(-2j * math.pi / box * (disk.ky.double()[:, None, None] * axis[:, None]))
    wave = wave * torch.exp(-2j * math.pi / box * (disk.kx.double()[:, None, None] * axis))
    torch.testing.assert_close(images_to_disk(image, disk), (wave * image).sum((1, 2)) / box)


def test_disk_and_images_are_inverse_and_keep_the_power(box):
    disk = make_fourier_disk(box)
    noise = torch.randn(3, len(disk), 2, generator=generator(), dtype=torch.float64)
    coefficients = torch.view_as_complex(noise)
    images = disk_to_images(coefficients, disk)
    torch.testing.assert_close(images_to_disk(images, disk), coefficients)
    # Parseval: each coefficient stands for its Friedel mate too.
    torch.testing.assert_close(images.square().sum((1, 2)), 2 * coefficients.abs().square().sum(1))
    torch.testing.assert_close(images.mean((1, 2)), torch.zeros(3, dtype=torch.float64))


def test_mean_per_shell(box):
    disk = make_fourier_disk(box)
    means = disk.mean_per_shell(disk.shell.double())
    torch.testing.assert_close(means, torch.arange(disk.shell_count, dtype=torch.float64))


def test_fft3_is_the_centred_transform(box):
    volume = torch.randn(box, box, box, generator=generator(), dtype=torch.float64)
    transform = fft3(volume)
    torch.testing.assert_close(ifft3(transform, box), volume)
    z, y, x = np.meshgrid(*(np.arange(box) - box // 2,) * 3, indexing="ij")
    for k in ((0, 0, 0), (1, -2, 3), (-3, 5, 2)):  # zyx
        wave = np.exp(-2j * np.pi / box * (k[0] * z + k[1] * y + k[2] * x))
        expected = (wave * volume.numpy()).sum()
        np.testing.assert_allclose(transform[k[0] + box // 2, k[1] + box // 2, k[2]].numpy(), expected)


@pytest.mark.parametrize("new", [10, 11, 24, 25])
def test_crop_or_pad_keeps_the_centre(box, new):
    volume = torch.randn(2, box, box, generator=generator())
    changed = crop_or_pad(volume, new, (1, 2))
    assert changed.shape == (2, new, new)
    assert torch.equal(changed[:, new // 2, new // 2], volume[:, box // 2, box // 2])
    assert torch.equal(changed[:, new // 2 - 4, new // 2 + 3], volume[:, box // 2 - 4, box // 2 + 3])
    if new > box:
        assert torch.equal(crop_or_pad(changed, box, (-2, -1)), volume)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("new", [14, 15, 30, 31])
def test_resampling_keeps_the_values_of_a_band_limited_function(box, new, dimensions):
    def wave(size):
        axis = (torch.arange(size, dtype=torch.float64) - size // 2) / size
        total = torch.zeros((size,) * dimensions, dtype=torch.float64)
        for dim in range(dimensions):
            shape = [1] * dimensions
            shape[dim] = -1
            total = total + torch.cos(2 * math.pi * (dim + 2) * axis + 0.3 + dim).reshape(shape)
        return total

    torch.testing.assert_close(resample(wave(box), new, dimensions), wave(new))


def test_radial_distance(box):
    distance = radial_distance(box, 3)
    assert distance[box // 2, box // 2, box // 2] == 0
    assert distance[box // 2 + 2, box // 2 - 1, box // 2 - 2] == 3


def test_euler_angles_are_scipys_intrinsic_zyz():
    angles = Rotation.random(50, rng=np.random.default_rng(0)).as_euler("ZYZ", degrees=True)
    expected = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    rotation = euler_zyz_to_rotation(torch.from_numpy(angles))
    np.testing.assert_allclose(rotation.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(rotation_to_euler_zyz(rotation).numpy(), angles, atol=1e-9)


@pytest.mark.parametrize("tilt", [0.0, 1e-9, 1e-4, 90.0, 180 - 1e-4, 180.0])
def test_euler_angles_give_the_rotation_back_at_the_poles(tilt):
    angles = torch.tensor([[20.0, tilt, -50.0], [170.0, tilt, 120.0]], dtype=torch.float64)
    rotation = euler_zyz_to_rotation(angles)
    found = rotation_to_euler_zyz(rotation)
    torch.testing.assert_close(euler_zyz_to_rotation(found), rotation, atol=1e-8, rtol=0)
    assert ((found[:, 1] >= 0) & (found[:, 1] <= 180)).all()


def test_rotation_vectors():
    vector = torch.tensor([[0.0, 0.0, math.pi / 2], [0.0, 0.0, 0.0]], dtype=torch.float64)
    rotation = rotation_from_vector(vector)
    x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(rotation[0] @ x, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    assert torch.equal(rotation[1], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(rotation_angle(rotation[0], rotation[1]).item(), math.pi / 2)
    noisy = rotation + 0.01 * torch.randn(2, 3, 3, generator=generator(), dtype=torch.float64)
    assert (rotation_angle(nearest_rotation(noisy), rotation) < 0.03).all()


def test_random_rotations_are_uniform_and_repeatable():
    rotations = random_rotations(4000, generator(1))
    assert torch.equal(rotations, random_rotations(4000, generator(1)))
    torch.testing.assert_close(rotations.mean(0), torch.zeros(3, 3), atol=0.04, rtol=0)
    # The angle of a uniform rotation has density (1 - cos θ) / π, so its mean is π/2 + 2/π.
    angle = rotation_angle(rotations, torch.eye(3).expand(4000, 3, 3))
    assert angle.mean().item() == pytest.approx(math.pi / 2 + 2 / math.pi, abs=0.03)


@pytest.mark.parametrize("count", [576, 4608])
def test_so3_grid_covers_evenly(count):
    grid = make_so3_grid(count)
    torch.testing.assert_close(grid @ grid.mT, torch.eye(3).expand_as(grid), atol=1e-5, rtol=0)
    spacing = so3_grid_spacing(count)
    # |trace of A B'| gives the angle: cos θ = (trace - 1) / 2.
    flat = grid.flatten(1)
    cosine = (flat @ flat.T - 1) / 2
    nearest = torch.arccos(cosine.fill_diagonal_(-1).amax(1).clamp(-1, 1))
    assert nearest.min() > 0.5 * spacing
    assert nearest.max() < 1.3 * spacing
    # No rotation is far from the grid.
    samples = random_rotations(2000, generator()).flatten(1)
    distance = torch.arccos(((samples @ flat.T - 1) / 2).amax(1).clamp(-1, 1))
    assert distance.max() < 1.1 * spacing


@pytest.mark.parametrize("padding", [1, 2])
@pytest.mark.parametrize("half", [5, 9, 20])
def test_a_box_transformed_axis_by_axis_is_the_padded_one_transformed(box, padding, half):
    """Also where a grid has fewer coefficients than the padded box, or room for more."""
    density = torch.randn(box, box, box, generator=generator(), dtype=torch.float64)
    padded, size = padding * box, 2 * half + 1
    whole = crop_or_pad(fft3(crop_or_pad(density, padded, (0, 1, 2))), size, (0, 1))[:, :, : half + 1]
    found = fft3_padded(density, padded, (size, size, half + 1))
    assert found.shape == (size, size, half + 1)
    torch.testing.assert_close(found[:, :, : whole.shape[2]], whole)
    assert not found[:, :, whole.shape[2] :].any()
    grid = crop_or_pad(found, padded, (0, 1))[:, :, : padded // 2 + 1]
    grid = torch.nn.functional.pad(grid, (0, padded // 2 + 1 - grid.shape[2]))
    back = ifft3_cropped(found, padded, box)
    torch.testing.assert_close(back, crop_or_pad(ifft3(grid, padded), box, (0, 1, 2)))


def test_in_the_order_of_views_neighbours_look_alike():
    rotation = random_rotations(2000, generator())
    order = order_by_view(rotation)
    assert sorted(order) == list(range(2000))
    direction = rotation[order][:, :, 2]
    # A slice is the same plane from the front and from behind.
    angle = torch.rad2deg((direction[1:] * direction[:-1]).sum(1).abs().clamp(max=1).acos())
    assert float(angle.median()) < 5 and float(angle.quantile(0.99)) < 15
    unknown = rotation.clone()
    unknown[5] = torch.nan
    assert sorted(order_by_view(unknown)) == list(range(2000))
    assert len(order_by_view(rotation[:0])) == 0
