"""The ``evaluate`` command on files."""

import json

import numpy as np
import pytest
import torch

from cryoai.cli.evaluate import evaluate
from cryoai.errors import InputError
from cryoai.geometry.fourier import resample
from cryoai.geometry.rotations import random_rotations, rotation_to_euler_zyz
from cryoai.io import write_map
from cryoai.types import Map

PIXEL = 3.0


def write_star(path, rotation, translation, names):
    angles = rotation_to_euler_zyz(torch.from_numpy(rotation)).numpy()
    columns = [
        "ImageName",
        "OpticsGroup",
        "AngleRot",
        "AngleTilt",
        "AnglePsi",
        "OriginXAngst",
        "OriginYAngst",
    ]
    lines = ["data_optics", "", "loop_", "_rlnOpticsGroup #1", "_rlnOpticsGroupName #2"]
    lines += ["_rlnImagePixelSize #3", "_rlnImageSize #4", f"1 group {PIXEL} 64", "", "data_particles", ""]
    lines += ["loop_"] + [f"_rln{name} #{i + 1}" for i, name in enumerate(columns)]
    for name, angle, t in zip(names, angles, translation, strict=True):
        lines.append(f"{name} 1 " + " ".join(f"{v:.8f}" for v in (*angle, *-t)))
    path.write_text("\n".join(lines) + "\n\n")


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
    from test_metrics_alignment import make_blobs, random_transform

    rotation, shift = random_transform(seed=1)
    fine = make_blobs(64, rotation, shift)
    true = resample(make_blobs(64), 48, 3)
    write_map(Map(fine.numpy(), 3.0), tmp_path / "map.mrc")
    write_map(Map(true.numpy(), 4.0), tmp_path / "true.mrc")
    figures = tmp_path / "figures.json"
    evaluate(map_=tmp_path / "map.mrc", true_map=tmp_path / "true.mrc", json=figures)
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


def test_half_a_pair_is_refused(tmp_path):
    with pytest.raises(InputError, match="--true-map is missing"):
        evaluate(map_=tmp_path / "map.mrc")
    with pytest.raises(InputError, match="--poses is missing"):
        evaluate(true_poses=tmp_path / "true.star")
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate()
