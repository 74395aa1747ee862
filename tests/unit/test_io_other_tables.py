"""Tables that hold no particle images, and files of other programs, say what they are."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from cryoai.cli.info import info
from cryoai.errors import InputError
from cryoai.io import StackWriter, read_particles


def star(path, *blocks):
    text = ""
    for name, labels in blocks:
        text += f"data_{name}\n\nloop_\n" + "".join(f"_{label} #{n}\n" for n, label in enumerate(labels, 1))
        text += " ".join("1" for _ in labels) + "\n\n"
    path.write_text(text)
    return path


OPTICS = ("optics", ["rlnOpticsGroup", "rlnVoltage"])


@pytest.mark.parametrize(
    ("blocks", "what", "advice"),
    [
        ([("", ["cisTEMPositionInStack", "cisTEMAnglePsi"])], "is a cisTEM file", "RELION's format"),
        ([OPTICS, ("micrographs", ["rlnMicrographName", "rlnCtfImage"])], "list of micrographs", "extract"),
        ([OPTICS, ("movies", ["rlnMicrographMovieName"])], "list of movies", "extract"),
        ([("", ["rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"])], "picked positions", "extract"),
        ([("coordinate_files", ["rlnMicrographName", "rlnMicrographCoordinates"])], "coordinate files", "extract"),
        ([OPTICS], "optics groups only", "particles STAR file"),
        ([("model_general", ["rlnPixelSize"]), ("model_classes", ["rlnReferenceImage"])], "classes", "_data.star"),
        ([("optimiser_general", ["rlnExperimentalDataStarFile"])], "optimiser.star", "_data.star"),
        ([("job", ["rlnJobTypeLabel"])], "job.star", "particles STAR file"),
        ([("global", ["rlnTomoName", "rlnTomoTiltSeriesStarFile"])], "tomograms", "single-particle"),
        ([("particles", ["rlnTomoParticleName", "rlnTomoName"])], "subtomograms", "single-particle"),
        ([("1ABC", ["atom_site.id"])], "atomic model", "simulate --structure"),
        ([("x", ["somethingElse"])], "no column rlnImageName", "particles STAR file"),
    ],
)
@pytest.mark.parametrize("check_stacks", [True, False])
def test_star_files_of_other_kinds(tmp_path, blocks, what, advice, check_stacks):
    with pytest.raises(InputError, match=what) as caught:
        read_particles(star(tmp_path / "p.star", *blocks), check_stacks=check_stacks)
    assert advice in str(caught.value.advice)


@pytest.mark.parametrize(
    ("name", "why"),
    [("p.star.gz", "decompress"), ("p.cs.gz", "decompress"), ("p.csg", "give the .cs file"), ("p", "no suffix"),
     ("p.gz", r"\.gz"), ("p.mrcs.bz2", r"\.bz2"), ("p.tif", r"\.star, \.cs, \.mrcs")],
)  # fmt: skip
def test_suffixes_of_other_files(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=why):
        read_particles(tmp_path / name)


@pytest.mark.parametrize("name", ["p.mrcs.gz", "p.mrc.gz", "P.MRCS.GZ"])
def test_compressed_stacks_are_of_a_known_kind(tmp_path, name):
    with pytest.raises(InputError, match="no such file"):
        read_particles(tmp_path / name)


def test_a_compressed_stack_is_not_taken_for_a_map(tmp_path, capsys):
    with StackWriter(tmp_path / "a.mrc", 3, 8, 2.0) as writer:
        writer.write(np.zeros((3, 8, 8), np.float32))
    (tmp_path / "b.mrc.gz").write_bytes(gzip.compress((tmp_path / "a.mrc").read_bytes()))
    try:
        info(tmp_path / "b.mrc.gz")
        assert "image stack" in capsys.readouterr().out
    except InputError as error:
        assert error.why == "is compressed"
    (tmp_path / "c.mrc.gz").write_bytes((tmp_path / "b.mrc.gz").read_bytes()[:30])
    with pytest.raises(InputError, match="damaged compressed"):
        info(tmp_path / "c.mrc.gz")


def pixel_sizes(tmp_path, *sizes):
    groups = "".join(f"{n} {size}\n" for n, size in enumerate(sizes, 1))
    rows = "".join(f"{n}@a.mrcs {n}\n" for n in range(1, len(sizes) + 1))
    (tmp_path / "p.star").write_text(
        f"data_optics\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n{groups}\n"
        f"data_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n{rows}"
    )
    return tmp_path / "p.star"


def test_several_pixel_sizes_are_shown_and_none_is_made_up(tmp_path, capsys):
    path = pixel_sizes(tmp_path, 1.06, 2.12)
    particles = read_particles(path, check_stacks=False)
    assert particles.pixel_size is None
    assert particles.pixel_sizes == (1.06, 2.12)
    info(path)
    shown = capsys.readouterr().out
    assert "several: 1.06, 2.12 Å" in shown
    assert "1.59" not in shown
    assert "different pixel sizes (1.06, 2.12 Å)" in shown


def test_pixel_sizes_that_differ_by_rounding_are_one_that_particles_have(tmp_path, capsys):
    path = pixel_sizes(tmp_path, 1.0601, 1.06, 1.06, 1.0602)
    assert read_particles(path, check_stacks=False).pixel_size == 1.06
    info(path)
    assert "several" not in capsys.readouterr().out
