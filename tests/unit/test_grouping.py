"""Particles that show the same thing are found, counted, and stay in one half-set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cryoai import ParticleSet, read_particles
from cryoai.io import StackWriter
from cryoai.particles.grouping import Grouping, group_particles, hash_images, split_groups
from cryoai.types import SourceTable


def particle_set(
    columns: dict[str, list], optics: dict[str, list] | None = None, image_index: list[int] | None = None
) -> ParticleSet:
    count = len(next(iter(columns.values())))
    source = SourceTable(
        "relion", Path("x.star"), pd.DataFrame(columns), None if optics is None else pd.DataFrame(optics)
    )
    index = np.arange(count) if image_index is None else np.array(image_index)
    return ParticleSet((Path("a.mrcs"),), np.zeros(count, int), index, 100, 2.0, None, None, source)


def grouped(particles: ParticleSet, image_hash: np.ndarray | None = None) -> Grouping:
    count = len(particles)
    hashes = np.arange(count) if image_hash is None else image_hash
    return group_particles(particles, hashes, np.ones(count, bool))


def partition(group: np.ndarray) -> list[list[int]]:
    return sorted(np.flatnonzero(group == g).tolist() for g in np.unique(group))


def test_particles_that_differ_are_groups_of_their_own() -> None:
    found = grouped(particle_set({"rlnAnything": [1] * 5}))
    assert len(np.unique(found.group)) == 5 and found.notes == ()


def test_images_listed_twice_are_one_group_and_are_counted() -> None:
    found = grouped(particle_set({"rlnAnything": [1] * 5}, image_index=[0, 1, 2, 1, 1]))
    assert partition(found.group) == [[0], [1, 3, 4], [2]]
    assert "2 of 5 images are copies" in found.notes[0]


def test_the_same_pixels_under_other_names_are_one_group() -> None:
    images = np.random.default_rng(0).normal(size=(6, 8, 8)).astype(np.float32)
    images[4] = images[1]
    images[5] = images[2] + 1e-6
    assert partition(grouped(particle_set({"rlnA": [1] * 6}), hash_images(images)).group) == [
        [0], [1, 4], [2], [3], [5],
    ]  # fmt: skip


def test_empty_images_are_not_copies_of_each_other() -> None:
    particles = particle_set({"rlnA": [1] * 4})
    found = group_particles(particles, np.zeros(4, int), np.array([False, False, True, False]))
    assert len(np.unique(found.group)) == 4


def test_boxes_at_one_place_of_one_micrograph_are_one_group() -> None:
    columns = {
        "rlnMicrographName": ["m1", "m1", "m1", "m2", "m1"],
        "rlnCoordinateX": [500.0, 510.0, 560.0, 500.0, 524.0],
        "rlnCoordinateY": [500.0, 505.0, 500.0, 500.0, 505.0],
    }
    # A fifth of 100 px: 0 and 1 are 11 px apart, 1 and 4 are 14; the others 36 or more, or on another micrograph.
    many = {name: [*values, *(values[2:3] * 15)] for name, values in columns.items()}
    many["rlnCoordinateX"] = [*columns["rlnCoordinateX"], *(1000.0 + 100 * k for k in range(15))]
    found = grouped(particle_set(many))
    assert partition(found.group)[0] == [0, 1, 4] and len(np.unique(found.group)) == 18
    assert "2 boxes overlap" in found.notes[0]
    # Images downsampled four times: the box spans 400 px of the micrograph, so that 60 px are close.
    downsampled = grouped(particle_set(many, {"rlnMicrographPixelSize": [0.5]}))
    assert partition(downsampled.group)[0] == [0, 1, 2, 4]


def test_a_crowd_is_not_chained_into_one_half() -> None:
    columns = {
        "rlnMicrographName": ["m"] * 20,
        "rlnCoordinateX": [15.0 * k for k in range(20)],
        "rlnCoordinateY": [0.0] * 20,
    }
    found = grouped(particle_set(columns))
    assert len(np.unique(found.group)) == 20
    assert "too many" in found.notes[0] and "too good" in found.notes[0]


def test_coordinates_that_are_not_numbers_do_not_matter() -> None:
    columns = {"rlnMicrographName": ["m"] * 3, "rlnCoordinateX": ["None", 1.0, 900.0], "rlnCoordinateY": [1.0] * 3}
    assert len(np.unique(grouped(particle_set(columns)).group)) == 3


def test_segments_of_a_filament_are_one_group() -> None:
    columns = {"rlnMicrographName": ["a", "a", "a", "b", "b"], "rlnHelicalTubeID": [1, 1, 2, 1, 1]}
    found = grouped(particle_set(columns))
    assert partition(found.group) == [[0, 1], [2], [3, 4]]
    assert "3 filaments" in found.notes[0]


def test_half_sets_of_single_particles_are_of_equal_size_and_random() -> None:
    group, rows = np.arange(101), np.arange(1, 101)
    half = split_groups(group, rows, np.random.default_rng(0))
    assert half[0] == -1 and np.bincount(half[1:]).tolist() == [50, 50]
    other = split_groups(group, rows, np.random.default_rng(1))
    assert (half != other).any()


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_both_half_sets_and_sizes_are_even(seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = np.where(rng.random(1000) < 0.5, rng.integers(0, 40, 1000), 1000 + np.arange(1000))
    half = split_groups(group, np.arange(1000), rng)
    assert len(np.intersect1d(group[half == 0], group[half == 1])) == 0
    sizes = np.bincount(half)
    assert sizes.sum() == 1000 and abs(sizes[0] - sizes[1]) <= 1


def test_places_and_filaments_of_a_cryosparc_file_are_known(tmp_path: Path) -> None:
    kinds = [
        ("blob/path", "S20"), ("blob/idx", "u4"), ("blob/psize_A", "f4"), ("location/micrograph_path", "S20"),
        ("location/center_x_frac", "f4"), ("location/center_y_frac", "f4"),
        ("location/micrograph_shape", "u4", (2,)), ("location/micrograph_psize_A", "f4"),
        ("filament/filament_uid", "u8"),
    ]  # fmt: skip
    rows = np.zeros(8, kinds)
    rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = b"p.mrcs", np.arange(8), 2.0
    rows["location/micrograph_path"], rows["location/micrograph_shape"] = b"m.mrc", (2000, 4000)
    rows["location/center_x_frac"] = [0.1, 0.105, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    rows["location/center_y_frac"] = 0.25
    rows["location/micrograph_psize_A"] = 1.0
    rows["filament/filament_uid"] = 2**63 + np.array([1, 2, 3, 4, 5, 6, 7, 7], np.uint64)
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, rows)
    with StackWriter(tmp_path / "p.mrcs", 8, 64, 2.0) as writer:
        writer.write(np.zeros((8, 64, 64), np.float32))
    particles = read_particles(tmp_path / "p.cs")
    table = particles.source.particles
    assert table["rlnCoordinateX"].tolist() == pytest.approx((rows["location/center_x_frac"] * 4000).tolist())
    assert table["rlnCoordinateY"].tolist() == pytest.approx([500.0] * 8)
    assert partition(grouped(particles).group)[:2] == [[0, 1], [2]]
    assert [6, 7] in partition(grouped(particles).group)
