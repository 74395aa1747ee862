"""Classes against the true ones."""

import json

import numpy as np
import pytest
import torch
from posed_star import write_star

from cryoai.cli.evaluate import evaluate
from cryoai.errors import InputError
from cryoai.geometry.rotations import random_rotations
from cryoai.io import write_map
from cryoai.metrics.classes import adjusted_rand_index, compare_classes
from cryoai.particles.phantom import make_phantom


def test_the_names_of_classes_do_not_matter():
    true = np.repeat([1, 2, 3], 40)
    agreement = compare_classes(np.repeat([7, 1, 4], 40), true)
    assert agreement.accuracy == agreement.ari == 1
    assert agreement.majority == {7: 1, 1: 2, 4: 3}
    assert agreement.particles_in_sink == 0
    assert np.isnan(agreement.junk_told_apart)


def test_mixed_classes_count_for_their_majority():
    true = np.repeat([1, 2], 50)
    found = np.where(np.arange(100) < 60, 1, 2)  # ten of the second class are in the first
    agreement = compare_classes(found, true)
    assert agreement.accuracy == 0.9
    assert 0.5 < agreement.ari < 0.8


def test_one_class_of_everything_is_right_for_the_majority_and_says_nothing():
    agreement = compare_classes(np.ones(100, int), np.repeat([1, 2], (60, 40)))
    assert agreement.accuracy == 0.6
    assert agreement.ari == 0


def test_the_sink_is_for_junk():
    true = np.repeat([1, 0], 50)
    found = np.where(np.arange(100) % 5 == 0, 1 - (true > 0), (true > 0).astype(int))
    agreement = compare_classes(found, true)
    assert agreement.accuracy == 0.8
    assert np.isnan(agreement.ari)
    assert agreement.particles_in_sink == 0.2
    assert agreement.junk_told_apart == 0.8
    # Junk without confidence is told apart wherever it is.
    assert compare_classes(found, true, np.where(true > 0, 1.0, 0.5)).junk_told_apart == 1


def test_a_class_of_junk_has_no_particles_that_are_right():
    true = np.repeat([1, 0], (30, 70))
    agreement = compare_classes(np.ones(100, int), true)
    assert agreement.majority == {1: 0}
    assert agreement.accuracy == 0


def test_rand_index_of_the_literature():
    # Hubert & Arabie's index of these two divisions by hand: pairs 2 of 4 and 5, expected 4 · 5 / 15.
    first, second = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    pairs = np.triu_indices(6, 1)
    one, other = ((v[:, None] == v)[pairs] for v in (first, second))
    expected = one.sum() * other.sum() / 15
    index = ((one & other).sum() - expected) / ((one.sum() + other.sum()) / 2 - expected)
    assert adjusted_rand_index(first, second) == pytest.approx(index)
    rng = np.random.default_rng(0)
    chance = [adjusted_rand_index(rng.integers(3, size=60), rng.integers(4, size=60)) for _ in range(200)]
    assert np.mean(chance) == pytest.approx(0, abs=0.01)
    assert adjusted_rand_index(np.ones(5, int), np.ones(5, int)) == 1


@pytest.fixture
def two_species(tmp_path):
    """Particles of two species and junk, found with the classes swapped, and each of them turned its own way."""
    n = 240
    rotation = random_rotations(n, torch.Generator().manual_seed(0)).double().numpy()
    turns = random_rotations(3, torch.Generator().manual_seed(1)).double().numpy()
    true = np.arange(n) % 3  # 0 is junk
    found = np.array([0, 2, 1])[true]
    found[:9] = 1
    names = [f"{i + 1:06d}@stack.mrcs" for i in range(n)]
    write_star(tmp_path / "true.star", rotation, np.zeros((n, 2)), names, classes=true)
    write_star(tmp_path / "found.star", turns[true] @ rotation, np.zeros((n, 2)), names, classes=found)
    return tmp_path


def figures_of(folder, **options):
    evaluate(poses=folder / "found.star", true_poses=folder / "true.star", json=folder / "f.json", **options)
    return json.loads((folder / "f.json").read_text())


def test_each_class_is_compared_with_its_own(two_species, capsys):
    figures = figures_of(two_species)
    assert figures["class_accuracy"] == pytest.approx(1 - 3 / 160)
    assert figures["particles_in_sink"] == 0
    assert figures["junk_told_apart"] == pytest.approx(1 - 3 / 80)
    assert figures["class_ari"] > 0.9
    first, second = figures["classes"]
    assert (first["class"], first["true_class"], first["particles"]) == (1, 2, 86)
    assert (second["class"], second["true_class"], second["particles"]) == (2, 1, 77)
    assert first["purity"] == pytest.approx(80 / 86) and second["purity"] == 1
    # Each has its own global rotation.
    assert first["rotation_error_mean"] < 1e-9 and second["rotation_error_mean"] < 1e-9
    said = capsys.readouterr().out
    assert "Class 1" in said and "Rand" in said


def test_maps_of_classes(two_species, capsys):
    maps = [make_phantom(20, 4.8, seed) for seed in (1, 2)]
    for number, density in enumerate(maps, start=1):
        write_map(density, two_species / f"true{number}.mrc")
        write_map(density, two_species / f"class{3 - number}.mrc")
    found = [two_species / "class1.mrc", two_species / "class2.mrc"]
    true = [two_species / "true1.mrc", two_species / "true2.mrc"]
    evaluate(map_=found, true_map=true, json=two_species / "f.json")
    figures = json.loads((two_species / "f.json").read_text())
    assert [one["true_class"] for one in figures["classes"]] == [2, 1]
    assert all(one["fsc_0.5_px"] == pytest.approx(2.0) for one in figures["classes"])
    assert "class_accuracy" not in figures
    with pytest.raises(InputError, match="--true-map is given 1 times and there are 2 true classes"):
        figures_of(two_species, map_=found, true_map=true[:1])
    with pytest.raises(InputError, match="--map is given 1 times and there are 2 found classes"):
        figures_of(two_species, map_=found[:1], true_map=true)


def test_a_wrong_class_is_named_with_its_row(two_species):
    text = (two_species / "found.star").read_text()
    lines = text.splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("000011@"))
    lines[row] = lines[row].rsplit(" ", 1)[0] + " 1.5"
    (two_species / "found.star").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=r"particle 11: rlnClassNumber is '1.5'; it must be a whole number"):
        figures_of(two_species)
