import numpy as np
import pytest
import torch
from blobs import make_blobs, random_transform

from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.alignment import (
    MIRROR,
    MapAlignment,
    align_maps,
    apply_alignment,
    mirror_rotation,
    mirror_volume,
)
from cryoai.metrics.fsc import compute_fsc


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("box", "mirrored", "tolerance"), [(64, False, 1e-6), (48, True, 1e-6), (33, True, 1e-5)])
def test_align_maps_recovers_rotation_shift_and_hand(box, mirrored, tolerance):
    rotation, shift = random_transform(seed=box + mirrored)
    # reference(x) = map(Q S^m x + shift): a blob at c in the reference lies at Q S^m c + shift in the map.
    radius = 0.26 if box >= 48 else 0.18  # the inscribed sphere must hold the whole density
    moved = make_blobs(box, rotation @ MIRROR if mirrored else rotation, shift, radius=radius)
    reference = make_blobs(box, radius=radius)
    found = align_maps(moved, reference)
    assert found.mirrored == mirrored
    assert np.sum((found.rotation - rotation) ** 2) < tolerance
    np.testing.assert_allclose(found.shift, shift, atol=0.03)
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(3), atol=1e-9)
    assert found.correlation > 0.98
    fsc = compute_fsc(apply_alignment(moved, found), reference, make_soft_sphere(box))
    assert fsc.correlation[: int(0.9 * box / 2)].min() > 0.98


def test_align_maps_with_noise_and_another_falloff_and_scale():
    rotation, shift = random_transform(seed=5)
    generator = torch.Generator().manual_seed(5)
    moved = make_blobs(48, rotation, shift)
    moved = 7 * moved + 7 * moved.std() * torch.randn(moved.shape, generator=generator)
    found = align_maps(moved, make_blobs(48))
    assert not found.mirrored
    assert np.sum((found.rotation - rotation) ** 2) < 1e-4


def test_nearly_symmetric_map_is_not_taken_for_its_mate():
    # Three copies about z, and a small part that only one of them has.
    third = np.array([[-0.5, -(0.75**0.5), 0], [0.75**0.5, -0.5, 0], [0, 0, 1]])

    def density(matrix=None, shift=(0, 0, 0)):
        matrix = np.eye(3) if matrix is None else matrix
        copies = sum(make_blobs(48, matrix @ np.linalg.matrix_power(third, i), shift) for i in range(3))
        return copies + make_blobs(48, matrix, shift, seed=9, count=2)

    rotation, shift = random_transform(seed=7)
    found = align_maps(density(rotation, shift), density(), try_mirror=False)
    assert np.sum((found.rotation - rotation) ** 2) < 1e-5


def test_apply_alignment_is_the_documented_equation():
    rotation, shift = random_transform(seed=3)
    moved = make_blobs(48, rotation @ MIRROR, shift)
    result = apply_alignment(moved, MapAlignment(rotation, shift, True, 1.0))
    np.testing.assert_allclose(result, make_blobs(48), atol=5e-3)


@pytest.mark.parametrize("box", [48, 49])
def test_apply_alignment_round_trip_keeps_high_frequencies(box):
    rotation, shift = random_transform(seed=4)
    sphere = make_soft_sphere(box, radius_px=box / 2 - 6)
    volume = torch.randn(box, box, box, generator=torch.Generator().manual_seed(0)) * sphere
    there = apply_alignment(volume, MapAlignment(rotation, shift, False, 1.0))
    back = apply_alignment(there, MapAlignment(rotation.T, -rotation.T @ shift, False, 1.0))
    assert compute_fsc(back, volume).correlation[: int(0.9 * box / 2)].min() > 0.99


@pytest.mark.parametrize("box", [32, 33])
def test_mirror_volume_keeps_the_centre(box):
    volume = torch.randn(box, box, box)
    mirrored = mirror_volume(volume)
    centre = box // 2
    for z in range(1, centre):
        torch.testing.assert_close(mirrored[centre + z], volume[centre - z])
    torch.testing.assert_close(mirrored[centre], volume[centre])
    torch.testing.assert_close(mirror_volume(mirrored), volume)


def project(volume, rotation):
    """Sum along z of V(R x), as the package's poses mean it."""
    return apply_alignment(volume, MapAlignment(rotation, np.zeros(3), False, 1.0)).sum(0)


def test_mirrored_volume_has_the_same_projections_at_mirrored_rotations():
    volume = make_blobs(32, radius=0.2)
    rotation, _ = random_transform(seed=11)
    expected = project(volume, rotation)
    found = project(mirror_volume(volume), mirror_rotation(rotation))
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)
    assert (project(mirror_volume(volume), rotation) - expected).abs().max() > 0.5


@pytest.mark.parametrize("mirrored", [False, True])
def test_equations_for_poses_hold_on_projections(mirrored):
    """The map at R_map, moved by t_map, gives the image of the reference at R, moved by t."""
    rotation, shift = random_transform(seed=12)
    matrix = rotation @ MIRROR if mirrored else rotation
    true, _ = random_transform(seed=13)
    in_map = rotation @ (mirror_rotation(true) if mirrored else true)
    image = project(make_blobs(48, radius=0.2), true)
    other = project(make_blobs(48, matrix, shift, radius=0.2), in_map)
    # t_map = t - (R_map^T shift)_xy: the map's image lies (R_map^T shift)_xy off.
    offset = (in_map.T @ shift)[:2]
    k = torch.fft.fftfreq(48, dtype=torch.float64)
    ramp = torch.exp(-2j * torch.pi * (k * offset[0] + k[:, None] * offset[1]))
    moved = torch.fft.ifft2(torch.fft.fft2(image.double()) * ramp).real
    torch.testing.assert_close(other.double(), moved, atol=3e-2, rtol=0)
