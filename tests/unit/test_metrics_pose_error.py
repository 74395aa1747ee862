import json

import numpy as np
import pytest
import torch

from cryoai.errors import InputError
from cryoai.geometry.rotations import random_rotations, rotation_from_vector
from cryoai.metrics.alignment import MapAlignment, mirror_rotation
from cryoai.metrics.evaluation import evaluate_reconstruction, match_particles
from cryoai.metrics.pose_error import compute_pose_errors
from cryoai.types import Map, Pose

PIXEL = 2.5


def make_poses(count=400, mirrored=False, seed=0):
    """True poses, and the ones that fit a map turned by Q, shifted by T px, and mirrored or not."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    r_true = random_rotations(count, generator).double().numpy()
    global_rotation = random_rotations(1, generator)[0].double().numpy()
    shift = rng.normal(size=3)
    t_true = rng.normal(size=(count, 2)) * 10
    r_est = global_rotation @ (mirror_rotation(r_true) if mirrored else r_true)
    t_est = t_true - (r_est.transpose(0, 2, 1) @ (shift * PIXEL))[:, :2]
    return Pose(r_est, t_est), Pose(r_true, t_true), global_rotation, shift


def turn(rotation, degrees, seed=0):
    axis = np.random.default_rng(seed).normal(size=(len(rotation), 3))
    axis *= np.radians(degrees) / np.linalg.norm(axis, axis=1, keepdims=True)
    return rotation @ rotation_from_vector(torch.from_numpy(axis)).numpy()


@pytest.mark.parametrize("mirrored", [False, True])
def test_global_rotation_shift_and_hand_leave_no_error(mirrored):
    estimated, true, rotation, shift = make_poses(mirrored=mirrored)
    errors = compute_pose_errors(estimated, true, pixel_size=PIXEL)
    assert errors.hand == ("mirrored" if mirrored else "same")
    assert errors.rotation_error.max() < 1e-10
    assert errors.translation_error_px2.max() < 1e-10
    np.testing.assert_allclose(errors.rotation, rotation, atol=1e-6)
    np.testing.assert_allclose(errors.shift_px, shift, atol=1e-6)
    assert errors.fraction_rotation_above_10deg == 0


def test_outliers_are_counted_and_do_not_pull_the_fit():
    estimated, true, _, shift = make_poses()
    rotation, translation = estimated.rotation.copy(), estimated.translation.copy()
    rotation[:100] = random_rotations(100, torch.Generator().manual_seed(9)).numpy()
    translation[:100] += 30
    errors = compute_pose_errors(Pose(rotation, translation), true, pixel_size=PIXEL)
    assert 0.23 < errors.fraction_rotation_above_10deg <= 0.25
    assert errors.rotation_error_median < 1e-10
    assert errors.rotation_error_mean > 0.5
    assert errors.translation_error_median_px2 < 1e-6
    np.testing.assert_allclose(errors.shift_px, shift, atol=1e-3)
    assert errors.rotation_error_quartiles[0] <= errors.rotation_error_quartiles[1]
    assert errors.translation_error_quartiles_px2[0] < 1e-6


@pytest.mark.parametrize("degrees", [2.0, 9.0, 11.0])
def test_rotation_error_is_four_times_one_minus_cosine(degrees):
    estimated, true, *_ = make_poses(count=3000)
    errors = compute_pose_errors(
        Pose(turn(estimated.rotation, degrees), estimated.translation), true, pixel_size=PIXEL
    )
    expected = 4 * (1 - np.cos(np.radians(degrees)))
    assert errors.rotation_error_median == pytest.approx(expected, rel=0.05)
    assert errors.rotation_error_median_deg == pytest.approx(degrees, rel=0.03)
    if degrees == 2:
        assert errors.fraction_rotation_above_10deg == 0


def test_translation_error_is_in_px2():
    estimated, true, *_ = make_poses(count=2000)
    noise = np.random.default_rng(1).normal(size=(2000, 2)) * 0.5 * PIXEL
    errors = compute_pose_errors(Pose(estimated.rotation, estimated.translation + noise), true, pixel_size=PIXEL)
    assert errors.translation_error_mean_px2 == pytest.approx(2 * 0.25, rel=0.1)
    assert errors.translation_error_median_px2 == pytest.approx(2 * np.log(2) * 0.25, rel=0.1)


def test_maps_rotation_is_polished_but_keeps_its_basin_and_hand():
    estimated, true, rotation, shift = make_poses()
    near = MapAlignment(turn(rotation[None], 1.0)[0], shift, False, 1.0)
    errors = compute_pose_errors(estimated, true, near, pixel_size=PIXEL)
    assert errors.rotation_error.max() < 1e-10
    # The poses fit a mate 120° away; the maps say otherwise, and the maps decide.
    far = MapAlignment(turn(rotation[None], 120.0)[0], shift, False, 1.0)
    errors = compute_pose_errors(estimated, true, far, pixel_size=PIXEL)
    np.testing.assert_array_equal(errors.rotation, far.rotation)
    assert errors.fraction_rotation_above_10deg == 1
    wrong_hand = MapAlignment(rotation, shift, True, 1.0)
    assert compute_pose_errors(estimated, true, wrong_hand, pixel_size=PIXEL).hand == "mirrored"


def test_different_numbers_of_poses_are_refused():
    estimated, true, *_ = make_poses(count=20)
    with pytest.raises(InputError, match="20 estimated poses"):
        compute_pose_errors(estimated, true[:19], pixel_size=PIXEL)


def test_match_particles_by_index_and_file_name():
    names = ["000001@a/s.mrcs", "2@a/s.mrcs", "1@a/t.mrcs"]
    assert match_particles(names, ["1@b/s.mrcs", "000002@s.mrcs", "1@t.mrcs"]).tolist() == [0, 1, 2]
    assert match_particles(names, ["1@b/t.mrcs", "1@b/s.mrcs", "2@b/s.mrcs"]).tolist() == [1, 2, 0]
    ambiguous = ["1@a/s.mrcs", "1@b/s.mrcs"]
    assert match_particles(ambiguous[::-1], ambiguous).tolist() == [1, 0]
    assert match_particles(["1@c/s.mrcs", "1@d/s.mrcs"], ambiguous).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "true_names", "message"),
    [
        (["1@s.mrcs", "2@s.mrcs"], ["1@s.mrcs"], "cannot be matched"),
        (["1@s.mrcs", "3@s.mrcs"], ["1@s.mrcs", "2@s.mrcs"], "'3@s.mrcs'"),
        (["1@s.mrcs", "1@s.mrcs"], ["1@s.mrcs", "2@s.mrcs"], "more than once"),
    ],
)
def test_particles_that_do_not_match_are_refused(names, true_names, message):
    with pytest.raises(InputError, match=message):
        match_particles(names, true_names)


def test_evaluation_of_poses_alone():
    estimated, true, *_ = make_poses()
    result = evaluate_reconstruction(estimated_pose=estimated, true_pose=true, pixel_size=PIXEL).to_json_dict()
    assert set(result) == {
        "rotation_error_median",
        "rotation_error_mean",
        "fraction_rotation_above_10deg",
        "translation_error_median_px2",
        "translation_error_mean_px2",
        "hand",
    }
    json.dumps(result)


def test_evaluation_refuses_half_a_pair_nothing_and_other_boxes():
    estimated, true, *_ = make_poses(count=10)
    small = Map(np.zeros((16, 16, 16), np.float32), 2.0)
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate_reconstruction()
    with pytest.raises(InputError, match="estimated map came without"):
        evaluate_reconstruction(estimated_map=small)
    with pytest.raises(InputError, match="pixel size"):
        evaluate_reconstruction(estimated_pose=estimated, true_pose=true)
    with pytest.raises(InputError, match="boxes differ"):
        evaluate_reconstruction(estimated_map=small, true_map=Map(small.density, 3.0))
