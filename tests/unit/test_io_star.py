from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.transform import Rotation
from star_blocks import read_blocks, write_blocks

from cryoai.errors import InputError
from cryoai.io import ParticleStarWriter, StackWriter, read_particles, write_particles_star
from cryoai.types import Pose

COUNT = 4


def make_stack(path, count=COUNT, box=8, pixel_size=2.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, count, box, pixel_size) as writer:
        writer.write(np.zeros((count, box, box), np.float32))
    return path


def names(stack="a.mrcs", count=COUNT):
    return [f"{i + 1:06d}@{stack}" for i in range(count)]


def columns(**changes):
    table = {
        "rlnMicrographName": ["0007", "0008", "0009", "0010"],
        "rlnImageName": names(),
        "rlnDefocusU": [10000.5, 11000.25, 12000.125, 13000.0625],
        "rlnDefocusV": [9000.0] * COUNT,
        "rlnDefocusAngle": [30.0] * COUNT,
        "rlnAngleRot": [10.0, 20.0, 30.0, 40.0],
        "rlnAngleTilt": [50.0] * COUNT,
        "rlnAnglePsi": [-60.0] * COUNT,
        "rlnLabNote": ["two words", "b", "c", "d"],
    }
    table.update(changes)
    return {name: values for name, values in table.items() if values is not None}


def optics(**changes):
    table = {
        "rlnOpticsGroup": [1],
        "rlnOpticsGroupName": ["g1"],
        "rlnVoltage": [200.0],
        "rlnSphericalAberration": [1.4],
        "rlnAmplitudeContrast": [0.07],
        "rlnImagePixelSize": [2.0],
        "rlnMtfFileName": ["mtf.star"],
    }
    table.update(changes)
    return table


def write_star(path, particles=None, optics_table=None, *, block="particles", optics_last=False):
    blocks = {block: pd.DataFrame(particles or columns())}
    if optics_table is not None:
        blocks = {"optics": pd.DataFrame(optics_table), **blocks}
    if optics_last:
        blocks = dict(reversed(blocks.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_blocks(blocks, path, float_format="%.12g")
    return path


@pytest.fixture
def folder(tmp_path):
    make_stack(tmp_path / "a.mrcs")
    return tmp_path


@pytest.mark.parametrize("optics_last", [False, True])
def test_relion_31(folder, optics_last):
    table = columns(rlnOriginXAngst=[1.0] * COUNT, rlnOriginYAngst=[-2.0] * COUNT, rlnOpticsGroup=[1] * COUNT)
    path = write_star(folder / "p.star", table, optics(), optics_last=optics_last)
    particles = read_particles(path)
    assert len(particles) == COUNT and particles.box_size == 8 and particles.pixel_size == 2.0
    assert particles.stack_paths == (folder / "a.mrcs",)
    np.testing.assert_array_equal(particles.image_index, np.arange(COUNT))
    assert particles.ctf is not None and particles.pose is not None
    assert set(particles.ctf.voltage_kv) == {200.0}
    assert set(particles.ctf.spherical_aberration_mm) == {1.4}
    assert set(particles.ctf.amplitude_contrast) == {0.07}
    np.testing.assert_allclose(particles.ctf.defocus_angle, np.deg2rad(30))
    np.testing.assert_allclose(particles.pose.translation, [[-1, 2]] * COUNT)
    expected = [
        (Rotation.from_euler("z", rot, degrees=True)
         * Rotation.from_euler("y", 50, degrees=True)
         * Rotation.from_euler("z", -60, degrees=True)).as_matrix()
        for rot in (10, 20, 30, 40)
    ]  # fmt: skip
    np.testing.assert_allclose(particles.pose.rotation, expected, atol=1e-12)


@pytest.mark.parametrize("block", ["", "images", "particles", "model_class_1"])
def test_relion_30_units(folder, block):
    make_stack(folder / "a.mrcs", pixel_size=1.5)
    table = columns(
        rlnMagnification=[50000.0] * COUNT,
        rlnDetectorPixelSize=[7.5] * COUNT,
        rlnOriginX=[2.0] * COUNT,
        rlnOriginY=[0.0] * COUNT,
        rlnVoltage=[300.0, 300.0, 200.0, 200.0],
        rlnSphericalAberration=[2.7] * COUNT,
        rlnPhaseShift=[90.0] * COUNT,
        rlnCtfBfactor=[-20.0] * COUNT,
    )
    particles = read_particles(write_star(folder / "p.star", table, block=block))
    assert particles.pixel_size == pytest.approx(1.5)
    assert particles.ctf is not None and particles.pose is not None
    np.testing.assert_allclose(particles.pose.translation, [[-3.0, 0.0]] * COUNT)
    np.testing.assert_allclose(particles.ctf.phase_shift, np.pi / 2)
    np.testing.assert_allclose(particles.ctf.b_factor, 20)
    notes = " ".join(particles.notes)
    assert "mplitude contrast" in notes and "B factor" in notes and "oltage" not in notes


def test_what_is_missing_is_said(folder):
    table = columns(rlnDefocusV=None, rlnDefocusAngle=None, rlnAnglePsi=None)
    particles = read_particles(write_star(folder / "p.star", table))
    assert particles.pose is None and particles.random_subset is None
    assert particles.pixel_size == pytest.approx(2.0)
    assert particles.ctf is not None
    np.testing.assert_array_equal(particles.ctf.defocus_u_angstrom, particles.ctf.defocus_v_angstrom)
    notes = " ".join(particles.notes)
    for word in ("header", "Astigmatism", "Voltage", "Spherical", "Amplitude"):
        assert word in notes
    bare = read_particles(write_star(folder / "q.star", {"rlnImageName": names()}))
    assert bare.ctf is None and bare.pose is None


@pytest.mark.parametrize(("defocus", "word"), [(1.5, "µm"), (-500.0, "negative")])
def test_suspicious_defocus(folder, defocus, word):
    particles = read_particles(write_star(folder / "p.star", columns(rlnDefocusU=[defocus] * COUNT)))
    assert any(word in note for note in particles.notes)


def test_half_sets(folder):
    particles = read_particles(write_star(folder / "p.star", columns(rlnRandomSubset=[1, 2, 2, 1])))
    np.testing.assert_array_equal(particles.random_subset, [1, 2, 2, 1])
    particles = read_particles(write_star(folder / "p.star", columns(rlnRandomSubset=[0, 2, 2, 1])))
    assert particles.random_subset is None


def test_several_optics_groups(folder):
    table = columns(rlnOpticsGroup=[7, 3, 7, 3])
    groups = {
        "rlnOpticsGroup": [3, 7],
        "rlnVoltage": [300.0, 200.0],
        "rlnSphericalAberration": [2.7, 1.4],
        "rlnAmplitudeContrast": [0.1, 0.07],
        "rlnImagePixelSize": [2.0, 2.0001],
    }
    particles = read_particles(write_star(folder / "p.star", table, groups))
    assert particles.optics_group_count == 2 and particles.ctf is not None
    np.testing.assert_array_equal(particles.ctf.voltage_kv, [200, 300, 200, 300])
    groups["rlnImagePixelSize"] = [2.0, 2.1]
    path = write_star(folder / "q.star", table, groups)
    with pytest.raises(InputError, match=r"different pixel sizes \(2, 2.1 Å\)"):
        read_particles(path)
    assert any("different pixel sizes" in n for n in read_particles(path, check_stacks=False).notes)
    groups["rlnOpticsGroup"] = [3, 8]
    with pytest.raises(InputError, match="particle 1: optics group 7 is not described"):
        read_particles(write_star(folder / "q.star", table, groups))


def test_index_beyond_the_stack(folder):
    table = columns(rlnImageName=[*names()[:3], "000009@a.mrcs"])
    with pytest.raises(InputError, match=r"p\.star, particle 4: asks for image 9 of .*a\.mrcs, which has 4"):
        read_particles(write_star(folder / "p.star", table))


def test_two_box_sizes(folder):
    make_stack(folder / "b.mrcs", box=10)
    table = columns(rlnImageName=["1@a.mrcs", "2@a.mrcs", "1@b.mrcs", "2@b.mrcs"])
    with pytest.raises(InputError, match=r"two box sizes: 8 px in a\.mrcs and 10 px in b\.mrcs"):
        read_particles(write_star(folder / "p.star", table))


@pytest.mark.parametrize("bad", ["nan", "inf", "1e4x"])
@pytest.mark.parametrize("good", [("1", "2", "4"), ("1", "1", "1")])
@pytest.mark.parametrize("column", ["rlnDefocusU", "rlnAngleTilt"])
def test_values_that_are_not_numbers(folder, column, good, bad):
    table = columns(**{column: [*good[:2], bad, good[2]]})
    with pytest.raises(InputError, match=f"particle 3: {column} is not a number"):
        read_particles(write_star(folder / "p.star", table))


@pytest.mark.parametrize("bad", ["0@a.mrcs", "x@a.mrcs", "3@"])
def test_bad_image_name(folder, bad):
    with pytest.raises(InputError, match="particle 2: rlnImageName"):
        read_particles(write_star(folder / "p.star", columns(rlnImageName=["1@a.mrcs", bad, *names()[2:]])))


def test_image_name_without_a_number(folder):
    particles = read_particles(write_star(folder / "p.star", columns(rlnImageName=["a.mrcs", *names()[1:]])))
    np.testing.assert_array_equal(particles.image_index, np.arange(COUNT))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no data block"),
        (b"\x00\x01" * 500, "binary"),
        (b"hello\nworld\n", "no data block"),
        (b"data_particles\n", "not a readable STAR"),
        (b"data_particles\n\nloop_\n_rlnImageName #1\n", "no particles"),
        (b"data_\n\nloop_\n_rlnMicrographName #1\na.mrc\n", "no column rlnImageName"),
        (
            b"data_\n\nloop_\n_rlnImageName #1\n_rlnDefocusU #2\n1@a.mrcs 5\n1@a.mrcs 5 6 7\n",
            "not a readable",
        ),
    ],
)
def test_files_that_are_not_particles(folder, content, why):
    path = folder / "p.star"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        read_particles(path)


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_particles(tmp_path / "p.star")
    with pytest.raises(InputError, match=r"unknown kind \(\.txt\).*\.star, \.cs, \.mrcs"):
        read_particles(tmp_path / "p.txt")


def random_pose(count):
    rng = np.random.default_rng(0)
    return Pose(Rotation.from_rotvec(rng.normal(size=(count, 3))).as_matrix(), rng.normal(size=(count, 2)))


def test_writing_keeps_every_column(folder):
    table = columns(
        rlnOpticsGroup=[1] * COUNT, rlnOriginX=[1.0] * COUNT, rlnOriginY=[1.0] * COUNT,
        rlnTiny=[1.5e-9] * COUNT, rlnLongNumber=[21186.804688] * COUNT,
    )  # fmt: skip
    source = read_particles(write_star(folder / "p.star", table, optics()))
    pose = random_pose(COUNT)
    out = folder / "out" / "particles.star"
    half = np.array([1, 2, 1, 2])
    write_particles_star(out, source, pose, {"cryoaiConfidence": np.full(COUNT, 0.5)}, random_subset=half)
    blocks = read_blocks(out, as_text=["rlnMicrographName"])
    kept = [
        name.replace("rlnOriginX", "rlnOriginXAngst").replace("rlnOriginY", "rlnOriginYAngst") for name in table
    ]
    assert list(blocks["particles"]) == [*kept, "rlnRandomSubset", "cryoaiConfidence"]
    for name in ("rlnMicrographName", "rlnDefocusU", "rlnTiny", "rlnLongNumber", "rlnLabNote"):
        assert blocks["particles"][name].tolist() == table[name]
    assert blocks["particles"]["rlnImageName"].tolist()[1] == f"000002@{folder / 'a.mrcs'}"
    assert blocks["optics"].iloc[0].to_dict() == {
        **{name: values[0] for name, values in optics().items()},
        "rlnImageSize": 8,
        "rlnImageDimensionality": 2,
    }
    again = read_particles(out)
    assert again.pose is not None
    np.testing.assert_allclose(again.pose.rotation, pose.rotation, atol=1e-6)
    np.testing.assert_allclose(again.pose.translation, pose.translation, atol=1e-6)
    np.testing.assert_array_equal(again.random_subset, half)
    assert [p.name for p in out.parent.iterdir()] == ["particles.star"]


def test_writing_makes_optics_groups_of_relion_30(folder):
    make_stack(folder / "a.mrcs", pixel_size=1.5)
    table = columns(
        rlnMagnification=[50000.0] * COUNT, rlnDetectorPixelSize=[7.5] * COUNT,
        rlnVoltage=[300.0, 200.0, 300.0, 200.0],
    )  # fmt: skip
    source = read_particles(write_star(folder / "p.star", table, block=""))
    write_particles_star(folder / "out.star", source, random_pose(COUNT))
    blocks = read_blocks(folder / "out.star")
    assert "rlnMagnification" not in blocks["particles"]
    assert blocks["optics"]["rlnVoltage"].tolist() == [200, 300]
    assert blocks["optics"]["rlnImagePixelSize"].tolist() == [1.5, 1.5]
    assert blocks["particles"]["rlnOpticsGroup"].tolist() == [2, 1, 2, 1]
    again = read_particles(folder / "out.star")
    assert again.ctf is not None and source.ctf is not None
    np.testing.assert_array_equal(again.ctf.voltage_kv, source.ctf.voltage_kv)


def test_writing_a_selection_and_the_poles(folder):
    source = read_particles(write_star(folder / "p.star", columns(), optics())).select(np.array([3, 1]))
    rotation = np.stack([np.eye(3), np.diag([1.0, -1.0, -1.0])])
    write_particles_star(folder / "out.star", source, Pose(rotation, np.zeros((2, 2))))
    again = read_particles(folder / "out.star")
    assert again.pose is not None
    np.testing.assert_array_equal(again.image_index, [3, 1])
    np.testing.assert_allclose(again.pose.rotation, rotation, atol=1e-12)


def test_bare_stack(folder):
    source = read_particles(folder / "a.mrcs")
    assert len(source) == COUNT and source.ctf is None and source.pose is None
    assert source.box_size == 8 and source.pixel_size == pytest.approx(2.0)
    write_particles_star(folder / "out.star", source, random_pose(COUNT))
    again = read_particles(folder / "out.star")
    assert again.stack_paths == source.stack_paths and again.pose is not None
    assert again.pixel_size == pytest.approx(2.0)


def test_streaming_writer_equals_starfile(tmp_path):
    table = pd.DataFrame(columns())
    with ParticleStarWriter(tmp_path / "p.star", pd.DataFrame(optics())) as writer:
        writer.append(table.iloc[:1])
        writer.append(table.iloc[1:][list(reversed(table.columns))])
        with pytest.raises(ValueError, match="same columns"):
            writer.append(table.drop(columns="rlnDefocusU"))
    blocks = read_blocks(tmp_path / "p.star", as_text=["rlnMicrographName"])
    pd.testing.assert_frame_equal(blocks["particles"], table, check_dtype=False)
    pd.testing.assert_frame_equal(blocks["optics"], pd.DataFrame(optics()), check_dtype=False)


def test_streaming_writer_leaves_nothing_behind(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with ParticleStarWriter(tmp_path / "p.star", pd.DataFrame(optics())) as writer:
            writer.append(pd.DataFrame(columns()))
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("optics_last", [False, True])
def test_long_files_are_read_in_pieces(folder, monkeypatch, rows, optics_last):
    table = columns(
        rlnOpticsGroup=[1] * COUNT,
        rlnSometimesText=["001", "002", "A1", "004"],
        rlnGrouped=["x", "x", "y", "x"],
        rlnSometimesWhole=[1, 2, 3, 4.5],
    )
    path = write_star(folder / "p.star", table, optics(), optics_last=optics_last)
    path.write_text(path.read_text() + "\n\n")
    whole = read_particles(path)
    monkeypatch.setattr("cryoai.io._star_table._ROWS", rows)
    monkeypatch.setattr("cryoai.io._relion._ROWS", rows)
    monkeypatch.setattr("cryoai.io._image_names._ROWS", rows)
    pieces = read_particles(path)
    pd.testing.assert_frame_equal(pieces.source.particles, whole.source.particles)
    assert pieces.source.particles["rlnSometimesText"].tolist() == table["rlnSometimesText"]
    assert pieces.source.particles["rlnSometimesWhole"].tolist() == table["rlnSometimesWhole"]
    assert pieces.pose is not None and whole.pose is not None
    np.testing.assert_array_equal(pieces.pose.rotation, whole.pose.rotation)
    np.testing.assert_array_equal(pieces.image_index, whole.image_index)
    write_particles_star(folder / "out.star", pieces, pieces.pose)
    written = read_blocks(folder / "out.star", as_text=["rlnMicrographName", "rlnSometimesText"])
    assert written["particles"]["rlnGrouped"].tolist() == table["rlnGrouped"]
    assert written["particles"]["rlnSometimesText"].tolist() == table["rlnSometimesText"]


@pytest.mark.parametrize("rows", [1, 3])
def test_bad_rows_of_long_files_are_named(folder, monkeypatch, rows):
    monkeypatch.setattr("cryoai.io._star_table._ROWS", rows)
    monkeypatch.setattr("cryoai.io._relion._ROWS", rows)
    monkeypatch.setattr("cryoai.io._image_names._ROWS", rows)
    path = write_star(folder / "p.star", columns(rlnImageName=[*names()[:3], "x@a.mrcs"]))
    with pytest.raises(InputError, match="particle 4: rlnImageName"):
        read_particles(path)
    path = write_star(folder / "q.star")
    path.write_text(path.read_text().rstrip() + " one_too_many\n")
    with pytest.raises(InputError, match="particle 4: is not a readable STAR file: its row has 10 words"):
        read_particles(path)


def test_the_later_of_two_blocks_of_one_name_counts(folder):
    first, second = write_star(folder / "p.star"), write_star(folder / "q.star", columns(rlnDefocusU=[2e4] * COUNT))
    first.write_text(first.read_text() + "\n\n" + second.read_text())
    particles = read_particles(first)
    assert len(particles) == COUNT and particles.ctf is not None
    np.testing.assert_array_equal(particles.ctf.defocus_u_angstrom, 2e4)


def test_encodings(folder):
    path = write_star(folder / "p.star")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").replace(b"loop_", b" loop_"))
    assert len(read_particles(path)) == COUNT
    path.write_bytes(path.read_bytes().replace(b"two words", "größe".encode("latin-1")))
    with pytest.raises(InputError, match="UTF-8"):
        read_particles(path)
