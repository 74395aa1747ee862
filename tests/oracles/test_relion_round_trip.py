"""Our output through RELION and RELION's output through us, where RELION is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoai import ReconstructConfig, read_map, reconstruct
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.reconstruction.result import ReconstructionResult
from cryoai.run.config import BootstrapSettings, RefineSettings

pytestmark = pytest.mark.skipif(
    shutil.which("relion_reconstruct") is None, reason="RELION is not installed (Debian: apt-get install relion)"
)
BOX, PIXEL_SIZE = 32, 8.0


def run_relion(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("round_trip")
    settings = SimulationSettings(800, snr_db=0.0, shift_sigma=12.0, seed=5)
    write_simulation(make_phantom(BOX, PIXEL_SIZE), settings, folder)
    return folder


def agreement_with_relion(result: ReconstructionResult, relion_map: Path) -> np.ndarray:
    """FSC of our half-maps' sum with RELION's map inside our mask, up to the half-map resolution."""
    ours = result.halves.unfiltered[0] + result.halves.unfiltered[1]
    theirs = torch.from_numpy(read_map(relion_map).density.copy())
    curve = compute_fsc(ours, theirs, result.halves.mask)
    shells = int(BOX * PIXEL_SIZE / result.resolution)
    print("FSC with RELION", curve.correlation.round(3).tolist(), "half-map resolution at shell", shells)
    assert shells >= 10
    return curve.correlation[: min(shells, len(curve.correlation))]


def test_relion_reconstructs_from_our_output(simulated: Path, tmp_path: Path) -> None:
    """A whole ab initio run on a short schedule, then ``relion_reconstruct`` on its particles.star."""
    config = ReconstructConfig(
        seeds=1,
        bootstrap=BootstrapSettings(steps=120),
        refine=RefineSettings(max_rounds=2, search_radius=8),
    )
    result = reconstruct(simulated / "particles.star", tmp_path / "out", config)
    relion_map = tmp_path / "relion.mrc"
    run_relion("relion_reconstruct", "--i", tmp_path / "out" / "particles.star", "--o", relion_map, "--ctf")
    assert agreement_with_relion(result, relion_map).min() > 0.9


def test_known_poses_on_relions_projections(simulated: Path, tmp_path: Path) -> None:
    """``relion_project`` makes images and a STAR file; ours and RELION's reconstruction from them agree."""
    projected = tmp_path / "projected"
    words = ("--i", simulated / "true_map.mrc", "--o", projected, "--ang", simulated / "particles.star", "--ctf")
    run_relion("relion_project", *words)
    result = reconstruct(projected.with_suffix(".star"), tmp_path / "out", ReconstructConfig(known_poses=True))
    relion_map = tmp_path / "relion.mrc"
    run_relion("relion_reconstruct", "--i", tmp_path / "out" / "particles.star", "--o", relion_map, "--ctf")
    assert agreement_with_relion(result, relion_map).min() > 0.9
    truth = torch.from_numpy(read_map(simulated / "true_map.mrc").density.copy())
    curve = compute_fsc(torch.from_numpy(result.density), truth, result.halves.mask)
    assert curve.correlation.min() > 0.9
