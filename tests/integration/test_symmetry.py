"""Symmetric and nearly symmetric molecules, from files to files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.spatial.transform import Rotation
from star_blocks import read_blocks

from cryoai import Map, Pose, ReconstructConfig, read_map, read_particles, reconstruct
from cryoai.cli import main
from cryoai.geometry.point_groups import point_group
from cryoai.io import write_particles_star
from cryoai.metrics.alignment import MapAlignment, apply_alignment
from cryoai.metrics.evaluation import evaluate_reconstruction
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.run.config import BootstrapSettings, RefineSettings

BOX, PIXEL_SIZE, IMAGES = 32, 8.0, 600


@dataclass(frozen=True)
class Simulated:
    """Images of a complex, and its symmetry as it was made."""

    folder: Path
    group: np.ndarray

    @property
    def star(self) -> Path:
        return self.folder / "particles.star"


def simulate(folder: Path, name: str, odd_one_out: float = 0.0) -> Simulated:
    """A complex with RELION's axes, of one of whose subunits there may be more."""
    tilt = Rotation.from_rotvec([0.3, 0.5, -0.2]).as_matrix()
    whole = torch.from_numpy(make_phantom(BOX, PIXEL_SIZE).density.copy())
    one = apply_alignment(whole, MapAlignment(tilt, BOX * np.array((0.12, 0.05, 0.08)), False, 1.0))
    group = point_group(name)
    turned = [apply_alignment(one, MapAlignment(element, np.zeros(3), False, 1.0)) for element in group]
    density = torch.stack(turned).sum(0) + odd_one_out * one
    settings = SimulationSettings(IMAGES, snr_db=-3.0, shift_sigma=8.0, seed=7)
    write_simulation(Map(density.numpy(), PIXEL_SIZE), settings, folder)
    return Simulated(folder, group)


@pytest.fixture(scope="module")
def dihedral(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("dihedral"), "D2")


@pytest.fixture(scope="module")
def nearly_cyclic(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    return simulate(tmp_path_factory.mktemp("cyclic"), "C3", odd_one_out=0.5)


KNOWN = ReconstructConfig(device="cpu", known_poses=True)


@pytest.mark.filterwarnings("ignore")
def test_a_symmetry_is_named_and_not_imposed(dihedral: Simulated, tmp_path: Path) -> None:
    result = reconstruct(dihedral.star, tmp_path / "out", KNOWN)
    assert result.symmetry.name == "D2" and not result.symmetry.is_imposed
    assert result.halves.accumulators[0].symmetry == "C1"
    (test,) = [one for one in result.symmetry.tests if one.holds]
    assert test.is_sure and not test.is_by_chance
    assert "--symmetry D2 would use it" in result.symmetry.sentence()
    line = json.loads((tmp_path / "out/metrics.jsonl").read_text().splitlines()[-1])
    assert line["symmetry"] == "D2" and line["symmetry_imposed"] is False


@pytest.mark.filterwarnings("ignore")
def test_a_near_symmetry_is_told_from_a_true_one(nearly_cyclic: Simulated, tmp_path: Path) -> None:
    found = reconstruct(nearly_cyclic.star, tmp_path / "out", KNOWN).symmetry
    assert found.name == "C1" and found.pseudo == "C3"
    assert found.tests[0].gain < -3 * found.tests[0].gain_error
    assert found.sentence().startswith("C1; pseudo-C3")


@pytest.mark.filterwarnings("ignore")
def test_particles_at_their_mates_are_put_right(nearly_cyclic: Simulated, tmp_path: Path) -> None:
    """What looks like a true symmetry, in both half-maps, is one of the poses."""
    particles = read_particles(nearly_cyclic.star)
    assert particles.pose is not None
    mate = nearly_cyclic.group[np.random.default_rng(0).integers(3, size=IMAGES)]
    mixed = Pose(mate @ particles.pose.rotation, particles.pose.translation)
    half = np.random.default_rng(1).integers(1, 3, size=IMAGES)
    write_particles_star(tmp_path / "mixed.star", particles, mixed, {}, random_subset=half)
    refine = RefineSettings(max_rounds=2, start_from_input_poses=True, searches=())
    config = ReconstructConfig(device="cpu", refine=refine)
    result = reconstruct(tmp_path / "mixed.star", tmp_path / "out", config, datadir=nearly_cyclic.folder)
    assert any(one.was_symmetric_by_chance for one in result.rounds)
    assert result.symmetry.name == "C1" and result.symmetry.pseudo == "C3"
    found = read_particles(tmp_path / "out/particles.star").pose
    assert found is not None
    errors = evaluate_reconstruction(
        estimated_map=read_map(tmp_path / "out/map.mrc"), true_map=read_map(nearly_cyclic.folder / "true_map.mrc"),
        estimated_pose=found, true_pose=particles.pose,
    )  # fmt: skip
    assert errors.poses is not None
    assert np.mean(errors.poses.rotation_error < 0.1) > 0.9


@pytest.mark.filterwarnings("ignore")
def test_a_symmetry_that_is_asked_for_is_in_everything(dihedral: Simulated, tmp_path: Path) -> None:
    output, options = tmp_path / "out", tmp_path / "options.yaml"
    bootstrap = BootstrapSettings(steps=60, batch_size=100, first_radius=6, last_radius=8)
    refine = RefineSettings(max_rounds=2, search_radius=6)
    config = ReconstructConfig(seeds=2, device="cpu", seed=2, bootstrap=bootstrap, refine=refine)
    options.write_text(yaml.safe_dump(config.model_dump()))
    words = ["reconstruct", str(dihedral.star), "-o", str(output), "--config", str(options), "--symmetry", "D2"]
    assert main([*words, "--quiet"]) in (0, None)
    density = torch.from_numpy(read_map(output / "map.mrc").density.copy())
    for element in dihedral.group[1:]:
        turned = apply_alignment(density, MapAlignment(element, np.zeros(3), False, 1.0))
        assert compute_fsc(turned, density).correlation[:8].min() > 0.98
    assert main(
        ["evaluate", "--map", str(output / "map.mrc"), "--true-map", str(dihedral.folder / "true_map.mrc"),
         "--poses", str(output / "particles.star"), "--true-poses", str(dihedral.star), "--symmetry", "D2",
         "--json", str(tmp_path / "errors.json")]
    ) in (0, None)  # fmt: skip
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors["fraction_rotation_above_10deg"] < 0.1
    line = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["symmetry"] == "D2" and line["symmetry_imposed"] is True
    assert len(read_blocks(output / "particles.star")["particles"]) == IMAGES
