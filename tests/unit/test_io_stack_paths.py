"""Image stacks are found, or the advice that is given instead works when it is followed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cryoai.cli import app, main
from cryoai.errors import InputError
from cryoai.io import StackWriter, read_particles


def make_stack(path, count=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, count, 8, 2.0) as writer:
        writer.write(np.zeros((count, 8, 8), np.float32))
    return path


def make_star(path, *stacks):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"1@{stack} 2.0\n" for stack in stacks)
    path.write_text(f"data_\nloop_\n_rlnImageName\n_rlnImagePixelSize\n{rows}")
    return path


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


@pytest.mark.parametrize("place", ["star", "project", "datadir", "datadir by last part", "absolute"])
def test_stacks_are_found(tmp_path, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written, stack, datadir = {
        "star": ("sub/a.mrcs", "project/job/sub/a.mrcs", None),
        "project": ("Extract/job1/a.mrcs", "project/Extract/job1/a.mrcs", None),
        "datadir": ("Extract/job1/a.mrcs", "data/Extract/job1/a.mrcs", "data"),
        "datadir by last part": ("Extract/job1/a.mrcs", "data/a.mrcs", "data"),
        "absolute": (str(tmp_path / "x" / "a.mrcs"), "x/a.mrcs", None),
    }[place]
    make_stack(tmp_path / stack)
    particles = read_particles(make_star(tmp_path / "project" / "job" / "p.star", written), datadir=datadir)
    assert particles.stack_paths == (tmp_path / stack,)
    assert not any("taken for it" in note for note in particles.notes)


def test_missing_stacks(elsewhere, capsys):
    make_stack(elsewhere / "a.mrcs")
    path = make_star(elsewhere / "p.star", "a.mrcs", "b.mrcs", "b.mrcs", "c.mrcs")
    with pytest.raises(InputError, match=r"b\.mrcs is missing \(2 of its 3 .*--datadir"):
        read_particles(path)
    found = read_particles(path, check_stacks=False).stack_paths
    assert [p.name for p in found] == ["a.mrcs", "b.mrcs", "c.mrcs"]
    main(["info", str(path)])
    assert "1 of 3 found" in capsys.readouterr().out
    with pytest.raises(InputError, match="not a folder"):
        read_particles(path, datadir=elsewhere / "nowhere")


NAME = "a/b/c/d.mrcs"
SPELLINGS = [NAME, f"/gone/{NAME}", f"../{NAME}", f">{NAME}", "a/b/c/000123456789012345_d.mrcs"]


@pytest.mark.parametrize(
    "written", [NAME, f"/gone/{NAME}", f"../{NAME}", f">{NAME}", "a/b/c/000123456789012345_d.mrcs"]
)
@pytest.mark.parametrize("there", ["a/b/c/d.mrcs", "b/c/d.mrcs", "c/d.mrcs", "d.mrcs"])
def test_every_end_of_a_name_is_tried(elsewhere, written, there):
    table = make_star(elsewhere / "project" / "job" / "p.star", written)
    stack = make_stack(elsewhere / "data" / there)
    assert read_particles(table, datadir=elsewhere / "data").stack_paths == (stack,)
    for place in ("project/job", "project", ""):
        beside = make_stack(elsewhere / place / there)
        particles = read_particles(table)
        (found,) = particles.stack_paths
        assert found.samefile(beside)
        if there != NAME or written.startswith("/"):
            assert any(str(beside) in note and "was taken for it" in note for note in particles.notes)
        os.remove(beside)


def test_longer_ends_come_first_and_whole_names_before_ends(elsewhere):
    table = make_star(elsewhere / "project" / "job" / "p.star", NAME)
    data = elsewhere / "data"
    for there in ("d.mrcs", "c/d.mrcs", "b/c/d.mrcs", "a/b/c/d.mrcs"):
        stack = make_stack(data / there)
        assert read_particles(table, datadir=data).stack_paths == (stack,)
    (data / NAME).unlink()
    make_stack(elsewhere / "project" / "job" / "b/c/d.mrcs")
    assert read_particles(table, datadir=data).stack_paths == (data / "b/c/d.mrcs",)
    whole = make_stack(elsewhere / "project" / NAME)
    assert read_particles(table, datadir=data).stack_paths == (whole,)


def test_two_stacks_of_one_name_are_not_confused_and_the_advice_works(elsewhere):
    table = make_star(elsewhere / "p.star", "job1/x/a.mrcs", "job2/y/a.mrcs")
    make_stack(elsewhere / "data" / "a.mrcs")
    with pytest.raises(InputError, match=r"would both be .*; keep .* in folders of these names, .*--datadir"):
        read_particles(table, datadir=elsewhere / "data")
    stacks = (make_stack(elsewhere / "data/x/a.mrcs"), make_stack(elsewhere / "data/y/a.mrcs"))
    assert read_particles(table, datadir=elsewhere / "data").stack_paths == stacks
    stacks = (make_stack(elsewhere / "all/job1/x/a.mrcs"), make_stack(elsewhere / "all/job2/y/a.mrcs"))
    assert read_particles(table, datadir=elsewhere / "all").stack_paths == stacks


def test_one_stack_by_two_spellings_of_its_name(elsewhere):
    table = make_star(elsewhere / "p.star", "/gone/job1/x/a.mrcs", "job1/x/a.mrcs", "x/a.mrcs")
    stack = make_stack(elsewhere / "data" / "a.mrcs")
    assert set(read_particles(table, datadir=elsewhere / "data").stack_paths) == {stack}


@pytest.mark.parametrize(
    "words", [["info"], ["reconstruct", "-o", "out"], ["infer", "--run", "r", "-o", "o.star"]], ids=lambda w: w[0]
)
def test_the_advice_for_missing_stacks_works_when_followed(elsewhere, words, capsys):
    """The option of the message is one of each command, and its value is what the message says."""
    table = make_star(elsewhere / "project" / "p.star", NAME, NAME)
    stack = make_stack(elsewhere / "disk" / "stacks" / "d.mrcs")
    with pytest.raises(InputError, match=r"--datadir \(the folder that holds d\.mrcs\)"):
        read_particles(table)
    main(["info", str(table)])
    assert "see --datadir" in capsys.readouterr().out
    words = [*words, str(table), "--datadir", str(stack.parent)]
    command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert read_particles(table, datadir=bound.arguments["datadir"]).stack_paths == (stack,)
    if command.__name__ == "info":
        main(words)
        assert "1 of 1 found" in capsys.readouterr().out


def test_the_advice_after_a_datadir_that_did_not_help(elsewhere):
    table = make_star(elsewhere / "project" / "p.star", NAME)
    make_stack(elsewhere / "disk/stacks/c/d.mrcs")
    with pytest.raises(InputError, match=r"give as --datadir the folder that holds d\.mrcs, or one above it"):
        read_particles(table, datadir=elsewhere / "disk")
    for folder in ("disk/stacks/c", "disk/stacks"):
        assert read_particles(table, datadir=elsewhere / folder).stack_paths == (
            elsewhere / "disk/stacks/c/d.mrcs",
        )


def test_compressed_stacks_stand_in_where_the_plain_one_is_missing(elsewhere):
    table = make_star(elsewhere / "p.star", "x/a.mrcs", "x/b.mrcs.gz")
    packed = elsewhere / "x" / "a.mrcs.gz"
    plain = make_stack(elsewhere / "x" / "b.mrcs")
    packed.write_bytes(b"")
    assert read_particles(table, check_stacks=False).stack_paths == (packed, plain)
    own = elsewhere / "x" / "b.mrcs.gz"
    own.write_bytes(b"")
    stack = make_stack(elsewhere / "x" / "a.mrcs")
    assert read_particles(table, check_stacks=False).stack_paths == (stack, own)


@pytest.mark.parametrize("name", ["..", ".", "/", "x/" * 1900 + "y"])
def test_names_that_are_no_files(elsewhere, name):
    table = make_star(elsewhere / "p.star", name)
    with pytest.raises(InputError, match="is missing"):
        read_particles(table)
    assert read_particles(table, check_stacks=False).stack_paths == (Path(name),)


@pytest.mark.parametrize("name", ["x" * 256, "é" * 200, "x/" * 3000 + "y"])
@pytest.mark.parametrize("check_stacks", [True, False])
def test_names_that_no_file_can_have(elsewhere, name, check_stacks):
    table = make_star(elsewhere / "p.star", "a.mrcs", name)
    with pytest.raises(InputError, match=r"particle 2: .* can be no file's name"):
        read_particles(table, check_stacks=check_stacks)


def test_a_zero_byte_in_a_cryosparc_path(elsewhere):
    rows = np.array([("a\0b.mrcs", 0)], dtype=[("blob/path", "S9"), ("blob/idx", "u4")])
    with (elsewhere / "p.cs").open("wb") as file:
        np.save(file, rows)
    with pytest.raises(InputError, match=r"particle 1: .* can be no file's name"):
        read_particles(elsewhere / "p.cs", check_stacks=False)
