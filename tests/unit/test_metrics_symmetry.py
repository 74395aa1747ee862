"""Point groups, and where the axes of a symmetric map lie."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoai import evaluate_reconstruction
from cryoai.errors import InputError
from cryoai.geometry.fourier import fft3, ifft3, resample
from cryoai.geometry.point_groups import point_group
from cryoai.geometry.shells import half_space_radius
from cryoai.io import read_map
from cryoai.metrics.alignment import MapAlignment, apply_alignment, mirror_rotation, mirror_volume
from cryoai.metrics.pose_error import compute_pose_errors
from cryoai.metrics.symmetry import symmetry_of_map
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings, Simulator
from cryoai.types import Map, Pose

VOXEL = 8.0
TURN = Rotation.from_rotvec([0.7, -0.4, 1.1]).as_matrix()
SHIFT = np.array([1.2, -0.8, 0.5])  # px


def move(symmetric, rotation, shift=(0.0, 0.0, 0.0)):
    """``result(x) = map(rotation x + shift)``."""
    density = torch.from_numpy(np.array(symmetric.density))
    alignment = MapAlignment(rotation, np.array(shift), False, 1.0)
    return Map(apply_alignment(density, alignment).numpy(), symmetric.voxel_size)


def make_symmetric(name, box=32):
    """The phantom off the axes, summed over the group."""
    tilt = Rotation.from_rotvec([0.3, 0.5, -0.2]).as_matrix()
    one = move(make_phantom(box, VOXEL * 32 / box), tilt, (3.0, 1.0, 2.0))
    return Map(np.sum([move(one, g).density for g in point_group(name)], axis=0), one.voxel_size)


def farthest(found, expected):
    """Largest angle from a rotation of one group to the nearest of the other, degrees."""
    angle = Rotation.from_matrix((found[:, None] @ expected.transpose(0, 2, 1)[None]).reshape(-1, 3, 3)).magnitude()
    angle = angle.reshape(len(found), len(expected))
    return math.degrees(max(angle.min(0).max(), angle.min(1).max()))


@pytest.mark.parametrize(
    ("name", "order", "axes"),
    [
        ("C1", 1, []),
        ("C7", 7, [(7, (0, 0, 1))]),
        ("D2", 4, [(2, (0, 0, 1)), (2, (1, 0, 0))]),
        ("D5", 10, [(5, (0, 0, 1)), (2, (1, 0, 0))]),
        ("T", 12, [(3, (0, 0, 1)), (2, (0, math.sqrt(2 / 3), math.sqrt(1 / 3)))]),
        ("O", 24, [(4, (0, 0, 1)), (4, (1, 0, 0)), (3, (1, 1, 1))]),
        ("I", 60, [(2, (0, 0, 1)), (2, (1, 0, 0)), (5, (0.525731, 0, 0.850651))]),
        ("I2", 60, [(5, (0.525731, 0, 0.850651))]),
        ("I1", 60, [(2, (0, 0, 1)), (2, (1, 0, 0)), (5, (0, 0.525731, 0.850651))]),
        (" d3 ", 6, [(3, (0, 0, 1))]),
    ],
)
def test_point_groups_have_relions_axes(name, order, axes):
    group = point_group(name)
    assert group.shape == (order, 3, 3)
    np.testing.assert_allclose(group[0], np.eye(3), atol=1e-12)
    products = (group[:, None] @ group[None]).reshape(-1, 3, 3)
    distance = np.abs(products[:, None] - group[None]).max((2, 3))
    assert distance.min(1).max() < 1e-9  # closed
    assert (distance < 1e-3).sum() == order**2  # all distinct
    for fold, axis in axes:
        turn = Rotation.from_rotvec(2 * math.pi / fold * np.array(axis) / np.linalg.norm(axis)).as_matrix()
        assert np.abs(group - turn).max((1, 2)).min() < 1e-5


@pytest.mark.parametrize("name", ["", "C", "C0", "C-1", "D0", "X3", "C4v", "I9", "4", "C100", "O2"])
def test_unknown_groups_are_refused_with_what_is_known(name):
    with pytest.raises(InputError, match=r"is no point group.*use Cn or Dn.*T, O, I"):
        point_group(name)


@pytest.mark.parametrize("name", ["C2", "C4", "D3", "T"])
def test_axes_are_found_wherever_they_lie(name):
    symmetric = make_symmetric(name)
    at_rest = symmetry_of_map(symmetric, name)
    np.testing.assert_array_equal(at_rest.rotations, point_group(name))
    assert not at_rest.centre.any()
    found = symmetry_of_map(move(symmetric, TURN, SHIFT), name)
    assert found.correlation > 0.97
    assert farthest(found.rotations, TURN.T @ point_group(name) @ TURN) < 0.3
    # What each rotation does to the box centre, which leaves a place along the axis of Cn open.
    centre = -TURN.T @ SHIFT * VOXEL
    off = (np.eye(3) - found.rotations) @ (found.centre - centre)
    assert np.abs(off).max() < 0.1 * VOXEL


@pytest.mark.parametrize("smooth", [True, False])
def test_a_filtered_map_is_as_symmetric_as_before(smooth):
    density = torch.from_numpy(move(make_symmetric("C4"), TURN).density)
    spectrum = fft3(density)
    radius = half_space_radius(spectrum.shape)
    gain = torch.exp(-((radius / 4) ** 2)) if smooth else (radius < 6.5).float()
    found = symmetry_of_map(Map(ifft3(spectrum * gain, 32).numpy(), VOXEL), "C4")
    assert found.correlation > 0.95
    assert farthest(found.rotations, TURN.T @ point_group("C4") @ TURN) < 1.0  # of the 10° of its resolution


def test_higher_groups_hold_lower_ones():
    symmetric = make_symmetric("O", 24)
    for name in ("O", "C4", "D2"):
        np.testing.assert_allclose(symmetry_of_map(symmetric, name).rotations, point_group(name), atol=1e-9)


@pytest.mark.parametrize(("true", "claimed"), [("C4", "C3"), ("C4", "D2"), ("C1", "C2"), ("C2", "C4")])
def test_a_map_without_the_symmetry_is_refused(true, claimed):
    with pytest.raises(InputError, match=f"does not have the symmetry {claimed}.*check --symmetry"):
        symmetry_of_map(make_symmetric(true, 24), claimed)


@pytest.fixture(scope="module")
def symmetric():
    return move(make_symmetric("C4"), TURN, SHIFT)


def mated(true_pose, group, centre, seed=0):
    """Poses that give the same images: each turned by a random element of the group about the centre (Å)."""
    chosen = group[np.random.default_rng(seed).integers(len(group), size=len(true_pose))]
    rotation = chosen @ true_pose.rotation
    moved = centre - chosen @ centre
    translation = true_pose.translation - (rotation.transpose(0, 2, 1) @ moved[:, :, None])[:, :2, 0]
    return Pose(rotation, translation)


def test_poses_count_up_to_the_symmetry_of_the_true_map(symmetric):
    group, centre = TURN.T @ point_group("C4") @ TURN, -TURN.T @ SHIFT * VOXEL
    settings = SimulationSettings(80, use_ctf=False, shift_sigma=8.0)
    chunk = next(Simulator(symmetric, settings).chunks())
    estimated = mated(chunk.pose, group, centre)
    again = next(Simulator(symmetric, SimulationSettings(80, use_ctf=False, pose=estimated)).chunks())
    assert np.corrcoef(chunk.images.ravel(), again.images.ravel())[0, 1] > 0.99  # the premise
    up_to = evaluate_reconstruction(
        estimated_map=symmetric, true_map=symmetric, estimated_pose=estimated, true_pose=chunk.pose, symmetry="C4"
    )
    assert up_to.to_json_dict()["symmetry"] == "C4"
    assert up_to.poses.rotation_error.max() < 4 * (1 - math.cos(math.radians(0.5)))
    assert up_to.poses.translation_error_px2.max() < 0.02
    without = compute_pose_errors(estimated, chunk.pose, up_to.alignment, pixel_size=VOXEL)
    assert without.fraction_rotation_above_10deg > 0.5
    assert without.translation_error_mean_px2 > 0.3


def test_symmetry_goes_with_the_other_hand_and_another_frame(symmetric):
    group, centre = TURN.T @ point_group("C4") @ TURN, -TURN.T @ SHIFT * VOXEL
    true_pose = next(Simulator(symmetric, SimulationSettings(80, use_ctf=False)).chunks()).pose
    mates = mated(true_pose, group, centre)
    mirrored = Map(mirror_volume(torch.from_numpy(symmetric.density)).numpy(), VOXEL)
    frame = Rotation.from_rotvec([0.2, 1.0, -0.3]).as_matrix()
    estimated = Pose(frame @ mirror_rotation(mates.rotation), mates.translation)
    result = evaluate_reconstruction(
        estimated_map=move(mirrored, frame.T), true_map=symmetric, estimated_pose=estimated, true_pose=true_pose,
        symmetry="C4",
    )  # fmt: skip
    assert result.hand == "mirrored"
    assert result.poses.rotation_error.max() < 4 * (1 - math.cos(math.radians(0.5)))
    assert result.poses.translation_error_px2.max() < 0.02


def test_a_real_map_and_its_symmetry(shared_data):
    bgal = read_map(shared_data / "maps/bgal_3.54A_100.mrc")
    bgal = Map(resample(torch.from_numpy(np.array(bgal.density)), 48, 3).numpy(), 3.54 * 100 / 48)
    np.testing.assert_array_equal(symmetry_of_map(bgal, "D2").rotations, point_group("D2"))
    found = symmetry_of_map(move(bgal, TURN, SHIFT), "D2")
    assert farthest(found.rotations, TURN.T @ point_group("D2") @ TURN) < 0.3
    with pytest.raises(InputError, match="does not have the symmetry C3"):
        symmetry_of_map(bgal, "C3")
