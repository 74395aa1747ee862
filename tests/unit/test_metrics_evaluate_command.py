"""The ``evaluate`` command on files."""

import json

import numpy as np
import pytest
import torch
from blobs import make_blobs, random_transform
from posed_star import write_star

from cryoai.cli.evaluate import evaluate
from cryoai.errors import InputError
from cryoai.geometry.fourier import resample
from cryoai.geometry.point_groups import point_group
from cryoai.geometry.rotations import random_rotations
from cryoai.io import write_map
from cryoai.types import Map


def test_poses_in_another_order(tmp_path, capsys):
    rotation = random_rotations(50, torch.Generator().manual_seed(0)).double().numpy()
    translation = np.random.default_rng(0).normal(size=(50, 2))
    names = [f"{i + 1:06d}@Extract/stack.mrcs" for i in range(50)]
    write_star(tmp_path / "true.star", rotation, translation, names)
    order = np.random.default_rng(1).permutation(50)
    write_star(tmp_path / "found.star", rotation[order], translation[order], [names[i] for i in order])
    figures = tmp_path / "figures.json"
    evaluate(poses=tmp_path / "found.star", true_poses=tmp_path / "true.star", json=figures)
    result = json.loads(figures.read_text())
    assert result["rotation_error_median"] < 1e-9
    assert result["translation_error_mean_px2"] < 1e-9
    assert result["hand"] == "same"
    assert "Rotation error" in capsys.readouterr().out


def test_maps_of_different_sampling(tmp_path):
    rotation, shift = random_transform(seed=1)
    fine = make_blobs(64, rotation, shift)
    true = resample(make_blobs(64), 48, 3)
    write_map(Map(fine.numpy(), 3.0), tmp_path / "map.mrc")
    write_map(Map(true.numpy(), 4.0), tmp_path / "true.mrc")
    figures = tmp_path / "figures.json"
    evaluate(map_=[tmp_path / "map.mrc"], true_map=[tmp_path / "true.mrc"], json=figures)
    result = json.loads(figures.read_text())
    assert result["fsc_0.5_px"] == pytest.approx(2.0)
    assert result["fsc_0.5_angstrom"] == pytest.approx(8.0)
    assert set(result) == {
        "fsc_0.5_px",
        "fsc_0.5_angstrom",
        "fsc_0.143_px",
        "fsc_0.5_px_masked",
        "hand",
    }


def figures_of(tmp_path, **options):
    evaluate(poses=tmp_path / "found.star", true_poses=tmp_path / "true.star", json=tmp_path / "f.json", **options)
    return json.loads((tmp_path / "f.json").read_text())


def test_poses_up_to_symmetry(tmp_path, capsys):
    rotation = random_rotations(60, torch.Generator().manual_seed(0)).double().numpy()
    mates = point_group("D3")[np.random.default_rng(0).integers(6, size=60)]
    names = [f"{i + 1:06d}@stack.mrcs" for i in range(60)]
    write_star(tmp_path / "true.star", rotation, np.zeros((60, 2)), names)
    write_star(tmp_path / "found.star", mates @ rotation, np.zeros((60, 2)), names)
    up_to = figures_of(tmp_path, symmetry=["d3"])
    assert up_to["symmetry"] == "D3"
    assert up_to["rotation_error_mean"] < 1e-9
    assert up_to["translation_error_mean_px2"] < 1e-9
    assert "Symmetry" in capsys.readouterr().out
    without = figures_of(tmp_path)
    assert "symmetry" not in without
    assert without["fraction_rotation_above_10deg"] > 0.5
    # The 3-fold alone explains half of the mates.
    assert figures_of(tmp_path, symmetry=["C3"])["fraction_rotation_above_10deg"] == pytest.approx(0.5, abs=0.15)
    with pytest.raises(InputError, match="'C0' is no point group"):
        figures_of(tmp_path, symmetry=["C0"])


def test_junk_has_no_pose_and_is_left_out(tmp_path, capsys):
    rotation = random_rotations(40, torch.Generator().manual_seed(0)).double().numpy()
    names = [f"{i + 1:06d}@stack.mrcs" for i in range(40)]
    junk = np.arange(40) % 3 == 0
    found = np.where(junk[:, None, None], np.eye(3), rotation)
    write_star(tmp_path / "true.star", rotation, np.zeros((40, 2)), names, junk.astype(int))
    order = np.random.default_rng(1).permutation(40)
    write_star(tmp_path / "found.star", found[order], np.zeros((40, 2)), [names[i] for i in order])
    assert figures_of(tmp_path)["rotation_error_mean"] < 1e-9
    assert "14 of 40 images show no particle" in capsys.readouterr().out
    write_star(tmp_path / "true.star", rotation, np.zeros((40, 2)), names, np.ones(40, int))
    with pytest.raises(InputError, match="all of the images are junk"):
        figures_of(tmp_path)
    write_star(tmp_path / "true.star", rotation, np.zeros((40, 2)), names, ["0", "maybe"] * 20)
    with pytest.raises(InputError, match=r"particle 2: cryoaiJunk is 'maybe'"):
        figures_of(tmp_path)


def test_half_a_pair_is_refused(tmp_path):
    with pytest.raises(InputError, match="--true-map is missing"):
        evaluate(map_=[tmp_path / "map.mrc"])
    with pytest.raises(InputError, match="--poses is missing"):
        evaluate(true_poses=tmp_path / "true.star")
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate()
