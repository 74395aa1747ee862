"""STAR files with words that tempt a reader to misread, cut or shift them."""

from __future__ import annotations

import gemmi
import numpy as np
import pandas as pd
import pytest

from cryoai.errors import InputError
from cryoai.io import ParticleStarWriter, StackWriter, read_particles, write_particles_star
from cryoai.types import Pose

# As it stands in the file, and what it means.
WORDS = [
    ("plain", "plain"),
    ("a#b", "a#b"),
    ("a#", "a#"),
    ("mic#3.mrc", "mic#3.mrc"),
    ("5'end", "5'end"),
    ("it's", "it's"),
    ("'tis", "'tis"),
    ('"open', '"open'),
    ("'two words'", "two words"),
    ('"two words"', "two words"),
    ('"a\tb"', "a\tb"),
    ("'a # b'", "a # b"),
    ("'it's one'", "it's one"),
    ('"say "hm"x"', 'say "hm"x'),
    ("'a\"b'", 'a"b'),
    ('"ab""', 'ab"'),
    ("'''", "'"),
    ("a\x01b", "a\x01b"),
    ("''", ""),
    ('""', ""),
    ("größe", "größe"),
    ("no\u00a0break", "no\u00a0break"),
    ("\u00a0", "\u00a0"),
    ("\u3000x", "\u3000x"),
    ("全角\u3000空白", "全角\u3000空白"),
    ("nan", "nan"),
    ("None", "None"),
    ("<NA>", "<NA>"),
    ("NA", "NA"),
    ("null", "null"),
    ("True", "True"),
    ("0x1f", "0x1f"),
    ("1e400", "1e400"),
    ("data_7/a", "data_7/a"),
    ("'_label'", "_label"),
    (";x", ";x"),
]


@pytest.fixture
def folder(tmp_path):
    with StackWriter(tmp_path / "a.mrcs", 4, 8, 2.0) as writer:
        writer.write(np.zeros((4, 8, 8), np.float32))
    return tmp_path


def star(folder, rows, labels=("rlnImageName", "rlnNote", "rlnDefocusU"), before="", name="p.star"):
    header = "".join(f"_{label} #{place}\n" for place, label in enumerate(labels, 1))
    path = folder / name
    path.write_text(f"{before}data_particles\n\nloop_\n{header}" + "".join(f"{row}\n" for row in rows))
    return path


def rewrite(folder, particles, name="out.star"):
    count = len(particles)
    pose = Pose(np.broadcast_to(np.eye(3), (count, 3, 3)), np.zeros((count, 2)))
    write_particles_star(folder / name, particles, pose)
    return folder / name


@pytest.mark.parametrize(("written", "meant"), WORDS)
@pytest.mark.parametrize("other", ["x", "7"])
def test_words_are_read_as_the_star_rules_say_and_survive(folder, written, meant, other):
    path = star(folder, [f"1@a.mrcs {written} 10000", f"2@a.mrcs\t{other}  11000 # a comment"])
    particles = read_particles(path)
    assert particles.source.particles["rlnNote"].tolist() == [meant, other]
    assert particles.ctf is not None
    assert particles.ctf.defocus_u_angstrom.tolist() == [10000, 11000]
    again = read_particles(rewrite(folder, particles))
    assert again.source.particles["rlnNote"].tolist() == [meant, other]
    assert again.ctf is not None
    assert again.ctf.defocus_u_angstrom.tolist() == [10000, 11000]


@pytest.mark.parametrize(("written", "meant"), WORDS)
def test_words_at_the_beginning_of_a_row_and_in_one_row_blocks(folder, written, meant):
    labels = ("rlnNote", "rlnImageName")
    assert read_particles(star(folder, [f" {written} 1@a.mrcs"], labels)).source.particles["rlnNote"][0] == meant
    path = folder / "single.star"
    path.write_text(f"data_\n# said\n_rlnImageName 1@a.mrcs # one\n_rlnNote   {written}\n")
    particles = read_particles(path)
    assert particles.source.particles["rlnNote"].tolist() == [meant]
    assert len(particles) == 1


@pytest.mark.parametrize(
    "word",
    [*dict.fromkeys(meant for _, meant in WORDS), "#1", "# x", "'", '"', "' ", "a' b", 'a" b', "it's \"so\"x",
     "data_", "loop_x", "_x", "it's a \"b\"c", "it's a \"b\"", "it's' a\""],
)  # fmt: skip
def test_written_words_read_back_here_and_elsewhere(tmp_path, word):
    table = pd.DataFrame({"rlnNote": [word, "x"], "rlnImageName": ["1@a.mrcs", "2@a.mrcs"], "rlnLast": [word, "y"]})
    with ParticleStarWriter(tmp_path / "p.star", pd.DataFrame({"rlnOpticsGroup": [1]})) as writer:
        writer.append(table)
    read = read_particles(tmp_path / "p.star", check_stacks=False).source.particles
    assert read["rlnNote"].tolist() == [word, "x"]
    assert read["rlnLast"].tolist() == [word, "y"]
    if not word.isascii() or not word.replace("\t", "").isprintable():
        return
    # CIF is STAR with printable ASCII only.
    block = gemmi.cif.read(str(tmp_path / "p.star")).find_block("particles")
    assert [gemmi.cif.as_string(value) for value in block.find_values("_rlnNote")] == [word, "x"]


@pytest.mark.parametrize("word", ["a\nb", "a' b\" c", "a\0b", "a\rb"])
def test_words_that_no_quotes_can_hold_are_refused_and_nothing_is_written(tmp_path, word):
    table = pd.DataFrame({"rlnNote": [word], "rlnImageName": ["1@a.mrcs"]})
    with pytest.raises(InputError, match="cannot be written in a STAR file; rename"):
        with ParticleStarWriter(tmp_path / "p.star", pd.DataFrame({"rlnOpticsGroup": [1]})) as writer:
            writer.append(table)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("filler", ["nan", "None", "<NA>", "-", "inf"])
@pytest.mark.parametrize("rows", [1, 2, 50_000])
def test_columns_that_are_not_used_may_hold_anything_and_keep_it(folder, filler, rows, monkeypatch):
    monkeypatch.setattr("cryoai.io._star_table._ROWS", rows)
    path = star(folder, ["1@a.mrcs 0.50 10000", f"2@a.mrcs {filler} 11000", "3@a.mrcs 007 12000"])
    particles = read_particles(path)
    assert particles.source.particles["rlnNote"].tolist() == ["0.50", filler, "007"]
    again = read_particles(rewrite(folder, particles))
    assert again.source.particles["rlnNote"].tolist() == ["0.50", filler, "007"]
    with pytest.raises(InputError, match="particle 2: rlnDefocusU is not a number"):
        read_particles(star(folder, ["1@a.mrcs x 10000", f"2@a.mrcs x {filler}", "3@a.mrcs x 1e4"]))


def test_numbers_keep_all_their_digits(folder):
    numbers = ["21186.804688", "1.5e-09", "-0.0071239999999", "18446744073709551615", "99999999999999999999"]
    labels = ("rlnImageName", *(f"rlnN{n}" for n in range(len(numbers))))
    particles = read_particles(star(folder, ["1@a.mrcs " + " ".join(numbers)], labels))
    again = read_particles(rewrite(folder, particles))
    assert [str(again.source.particles[label][0]) for label in labels[1:]] == numbers


@pytest.mark.parametrize(
    ("row", "count"), [("2@a.mrcs x", 2), ("2@a.mrcs x 1 2", 4), ("2@a.mrcs two words 1", 4), ("2@a.mrcs 'x 1'", 2),
                       ("2@a.mrcs x # 11000", 2), ("2@a", 1)],
)  # fmt: skip
@pytest.mark.parametrize("pieces", [1, 50_000])
def test_rows_of_the_wrong_length_are_refused_not_shifted_or_cut(folder, row, count, pieces, monkeypatch):
    monkeypatch.setattr("cryoai.io._star_table._ROWS", pieces)
    for rows in (["1@a.mrcs x 1e4", row, "3@a.mrcs y 1e4"], ["1@a.mrcs x 1e4", row]):
        with pytest.raises(InputError, match=rf"p\.star, particle 2: .* its row has {count} words for 3 columns"):
            read_particles(star(folder, rows))


def test_rows_of_optics_and_of_tables_that_are_not_used(folder):
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n1 300\n2\n\n"
    with pytest.raises(InputError, match="row 2 of data_optics has 1 words for 2 columns"):
        read_particles(star(folder, ["1@a.mrcs x 1e4"], before=optics))
    # Another program's table beside the particles is none of our business.
    other = "data_other\nloop_\n_a\n_b\n1\n2 3 4\n\ndata_settings\n_c\n_d 'x\nwhatever\n\n"
    assert len(read_particles(star(folder, ["1@a.mrcs x 1e4"], before=other))) == 1


def test_optics_groups_that_no_particle_is_in_do_not_matter(folder):
    labels = ("rlnImageName", "rlnOpticsGroup", "rlnDefocusU")
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n1 300\nNone nan\n3 None\n3 200\n\n"
    particles = read_particles(star(folder, ["1@a.mrcs 1 1e4"], labels, before=optics))
    assert particles.ctf is not None
    assert particles.ctf.voltage_kv.tolist() == [300]
    with pytest.raises(InputError, match=r"particle 2: optics group 3 is not described .* or more than once"):
        read_particles(star(folder, ["1@a.mrcs 1 1e4", "2@a.mrcs 3 1e4"], labels, before=optics))
    optics = optics.replace("3 200\n", "")
    with pytest.raises(InputError, match=r"particle 2: rlnVoltage of its optics group is not a number \(None\)"):
        read_particles(star(folder, ["1@a.mrcs 1 1e4", "2@a.mrcs 3 1e4"], labels, before=optics))


def test_comments_and_blank_lines_between_rows(folder):
    rows = ["1@a.mrcs x 1e4", "", "# a comment", "  # 'another", "2@a.mrcs y 2e4", " \t", "3@a.mrcs z 3e4", "", ""]
    particles = read_particles(star(folder, rows, before="# version 30001\n\n"))
    assert particles.source.particles["rlnNote"].tolist() == ["x", "y", "z"]


def test_a_column_named_twice_is_refused(folder):
    with pytest.raises(InputError, match="column rlnNote twice"):
        read_particles(star(folder, ["1@a.mrcs x y"], ("rlnImageName", "rlnNote", "rlnNote")))


@pytest.mark.parametrize("byte", ["\0", "\x1f"])
def test_control_characters_are_refused(folder, byte):
    rows = ["1@a.mrcs " + "x" * 100_000 + " 1e4", f"2@a.mrcs 'a{byte}b' 1e4"]
    with pytest.raises(InputError, match=r"particle 2: .* control characters"):
        read_particles(star(folder, rows))


@pytest.mark.parametrize("number", ["1", "00000000000000000001", "0" * 5000 + "1"])
def test_image_numbers_with_leading_zeros(folder, number):
    particles = read_particles(star(folder, [f"{number}@a.mrcs x 1e4"]))
    assert particles.image_index.tolist() == [0]


@pytest.mark.parametrize("number", ["99999999999999999999", "9" * 5000, "18446744073709551617", "10000000000"])
def test_image_numbers_beyond_any_stack(folder, number):
    with pytest.raises(InputError, match=r"particle 2: rlnImageName .* beyond any stack") as caught:
        read_particles(star(folder, ["1@a.mrcs x 1e4", f"{number}@a.mrcs x 1e4"]))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("number", ["²", "-1", "1.0", "1e3", "", "١"])
def test_image_numbers_that_are_none(folder, number):
    with pytest.raises(InputError, match=r"particle 1: rlnImageName .* not of the form"):
        read_particles(star(folder, [f"{number}@a.mrcs x 1e4"]))


@pytest.mark.parametrize("label", ["rlnOpticsGroup", "rlnRandomSubset"])
@pytest.mark.parametrize("bad", ["99999999999999999999", "1e300", "1.5", "nan", "A"])
def test_whole_numbers_are_checked_before_they_are_cast(folder, label, bad):
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n1 300\n2 200\n\n" if "Optics" in label else ""
    path = star(folder, ["1@a.mrcs 1 1e4", f"2@a.mrcs {bad} 1e4"], ("rlnImageName", label, "rlnDefocusU"), optics)
    with pytest.raises(InputError, match=f"particle 2: {label} is not a (whole )?number"):
        read_particles(path)


def test_pose_and_half_set_columns_without_any_number_are_absent(folder):
    labels = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnRandomSubset")
    particles = read_particles(star(folder, ["1@a.mrcs 1 2 None None", "2@a.mrcs 1 2 None None"], labels))
    assert particles.pose is None
    assert particles.random_subset is None
    notes = " ".join(particles.notes)
    assert "rlnAnglePsi holds no numbers" in notes
    assert "rlnRandomSubset holds no numbers" in notes


def test_stacks_whose_names_could_not_be_written_are_refused_when_read(folder):
    path = folder / "a' b\" c" / "a.mrcs"
    path.parent.mkdir()
    (folder / "a.mrcs").rename(path)
    with pytest.raises(InputError, match="cannot be written in a STAR file; rename"):
        read_particles(path)
    with pytest.raises(InputError, match="cannot be written in a STAR file; rename"):
        read_particles(star(folder, ["1@a.mrcs x 9000"]), datadir=path.parent)
