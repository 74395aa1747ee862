"""A mixture of two molecules and noise, from files to files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from star_blocks import read_blocks
from three_balls import make_density

from cryoai import ClassesResult, InputError, ReconstructConfig, reconstruct, reconstruct_classes
from cryoai.cli import main
from cryoai.metrics.classes import compare_classes
from cryoai.particles.junk import JunkShares
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings, Species
from cryoai.particles.write_simulation import write_simulation
from cryoai.run.config import BootstrapSettings
from cryoai.types import Map

BOX, PIXEL_SIZE, IMAGES = 32, 8.0, 1600


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half the phantom, a third three balls, the rest noise."""
    folder = tmp_path_factory.mktemp("mixture")
    species = (
        Species(make_phantom(BOX, PIXEL_SIZE), 0.5, "phantom"),
        Species(Map(make_density(BOX).numpy(), PIXEL_SIZE), 0.33, "balls"),
    )
    settings = SimulationSettings(IMAGES, snr_db=0.0, shift_sigma=12.0, seed=3, junk=JunkShares(noise=0.17))
    write_simulation(species, settings, folder)
    return folder


@pytest.fixture(scope="module")
def config(quick_config: ReconstructConfig) -> ReconstructConfig:
    bootstrap = BootstrapSettings(steps=60, batch_size=200, first_radius=6, last_radius=8)
    return quick_config.model_copy(update={"classes": 2, "seeds": 3, "bootstrap": bootstrap})


@pytest.fixture(scope="module")
def found(
    mixture: Path, config: ReconstructConfig, no_near_symmetries: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClassesResult]:
    output = tmp_path_factory.mktemp("classes") / "out"
    yield reconstruct_classes(mixture / "particles.star", output, config)


def true_classes(mixture: Path) -> np.ndarray:
    return read_blocks(mixture / "particles.star")["particles"]["rlnClassNumber"].to_numpy(int)


def test_each_molecule_gets_a_class_and_noise_none(found: ClassesResult, mixture: Path) -> None:
    agreement = compare_classes(found.label, true_classes(mixture))
    assert agreement.accuracy > 0.95
    assert agreement.majority == {1: 1, 2: 2}  # the larger first
    assert agreement.junk_told_apart > 0.9
    assert agreement.particles_in_sink < 0.05


def test_files_of_classes_and_of_all(found: ClassesResult) -> None:
    table = read_blocks(found.folder / "particles.star")["particles"]
    assert len(table) == IMAGES
    np.testing.assert_array_equal(table["rlnClassNumber"].to_numpy(int), found.label)
    assert table["cryoaiClassProbability"].between(0, 1).all()
    for number, one in enumerate(found.classes, 1):
        own = read_blocks(found.folder / f"class{number}/particles.star")["particles"]
        np.testing.assert_array_equal(own["rlnClassNumber"].to_numpy(int), number)
        rows = found.label == number
        assert own["rlnImageName"].tolist() == table["rlnImageName"][rows].tolist()
        np.testing.assert_allclose(own["rlnAngleRot"], table["rlnAngleRot"][rows], atol=1e-4)
        assert (found.folder / f"class{number}/map.mrc").exists()
        assert one.folder == found.folder / f"class{number}"
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["class"] for line in lines] == [1, 2]
    assert [line["verdict"] for line in lines] == [one.verdict.call for one in found.classes]


def test_halves_are_those_of_the_whole_set(found: ClassesResult) -> None:
    assert set(np.unique(found.state.half)) == {-1, 0, 1}
    for one in found.classes:
        np.testing.assert_array_equal(one.state.half[one.state.used], found.state.half[one.state.used])


def test_the_command_resumes_and_shows_classes_side_by_side(
    mixture: Path, found: ClassesResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a step was done again")

    monkeypatch.setattr("cryoai.ab_initio.starts.run_bootstrap", refuse)
    monkeypatch.setattr("cryoai.reconstruction.first_poses.classify", refuse)
    monkeypatch.setattr("cryoai.refinement.rounds.refinement_round", refuse)
    words = ["reconstruct", str(mixture / "particles.star"), "-o", str(found.folder), "--resume"]
    assert main([*words, "--config", str(found.folder / "config.yaml")]) in (0, None)
    said = capsys.readouterr().out
    assert f"{(found.label == 0).sum():,} of {IMAGES:,} images show none of them" in said.replace("\n", " ")
    page = (found.folder / "report.html").read_text(encoding="utf-8")
    assert 'href="class1/report.html"' in page and 'href="class2/report.html"' in page
    assert f"{(found.label == 2).sum():,}" in page
    assert (found.folder / "class2/report.html").exists()
    table = read_blocks(found.folder / "particles.star")["particles"]
    np.testing.assert_array_equal(table["rlnClassNumber"].to_numpy(int), found.label)


def test_what_has_one_map_refuses_several(mixture: Path, config: ReconstructConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="call reconstruct_classes"):
        reconstruct(mixture / "particles.star", tmp_path / "out", config)
    with pytest.raises(ValueError, match="--classes"):
        ReconstructConfig(classes=2, known_poses=True)
    with pytest.raises(ValueError, match="--classes"):
        ReconstructConfig(classes=2, method="amortized")


def test_more_classes_than_the_set_can_carry(
    mixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["reconstruct", str(mixture / "particles.star"), "-o", str(tmp_path / "out"), "--classes"]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "17"])
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "17 classes are more than 1,600 images can carry" in said and "use --classes 16 or fewer" in said
    with pytest.raises(SystemExit) as stopped:
        main([*words, "several"])
    assert stopped.value.code != 0
