"""Box and pixel size: what metadata, headers and the user say, and that each message's advice works."""

from __future__ import annotations

import re
import struct

import numpy as np
import pandas as pd
import pytest
import starfile
from star_blocks import read_blocks, write_blocks

from cryoai import InputError, ReconstructConfig, reconstruct
from cryoai.cli.info import info
from cryoai.io import StackWriter, read_particles, write_particles_star
from cryoai.reconstruction.infer import infer

COUNT = 4
DEFOCUS = {"rlnDefocusU": [15000.0] * COUNT, "rlnDefocusV": [15000.0] * COUNT}


def make_stack(path, box=32, pixel_size=8.0, count=COUNT):
    with StackWriter(path, count, box, pixel_size) as writer:
        writer.write(np.zeros((count, box, box), np.float32))
    return path


def set_header(path, *, cell=None, samples=None, nx=None):
    """Overwrite the cell's x and y in Å, or the number of samples along them."""
    raw = bytearray(path.read_bytes())
    if cell is not None:
        raw[40:48] = struct.pack("<2f", *cell)
    if samples is not None:
        raw[28:36] = struct.pack("<2i", *samples)
    path.write_bytes(bytes(raw))
    return path


def write_star(path, optics=None, **particles):
    table = {"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(COUNT)], **DEFOCUS, **particles}
    if optics is None:
        starfile.write(pd.DataFrame(table), path)
        return path
    blocks = {
        "optics": pd.DataFrame({"rlnOpticsGroup": [1], **{name: [value] for name, value in optics.items()}}),
        "particles": pd.DataFrame({**table, "rlnOpticsGroup": [1] * COUNT}),
    }
    write_blocks(blocks, path)
    return path


def write_cs(path, box, pixel_size):
    fields = [("blob/path", "S32"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)), ("blob/psize_A", "<f4")]
    rows = np.zeros(COUNT, dtype=[*fields, ("ctf/df1_A", "<f4"), ("ctf/df2_A", "<f4")])
    rows["blob/path"], rows["blob/idx"] = b"a.mrcs", np.arange(COUNT)
    rows["blob/shape"], rows["blob/psize_A"] = box, pixel_size
    rows["ctf/df1_A"] = rows["ctf/df2_A"] = 15000
    with path.open("wb") as file:
        np.save(file, rows)
    return path


def follow(error, path):
    """Read with each --pixel-size that a message advises; the sizes."""
    advised = [float(text) for text in re.findall(r"--pixel-size ([\d.]*\d)", error.advice)]
    assert advised
    for size in advised:
        particles = read_particles(path, pixel_size=size)
        assert particles.pixel_size == size
    return advised


def refusal(path):
    with pytest.raises(InputError) as caught:
        read_particles(path)
    return caught.value


def advice_of(error: InputError) -> str:
    assert error.advice is not None
    return error.advice


OLD = {"rlnImageSize": 128, "rlnImagePixelSize": 2.0}


def test_old_star_of_a_downsampled_stack(tmp_path):
    make_stack(tmp_path / "a.mrcs", box=32, pixel_size=8)
    path = write_star(tmp_path / "p.star", OLD)
    error = refusal(path)
    assert "rlnImageSize says 128 px at 2 Å, the images of a.mrcs have 32 px at 8 Å" in error.why
    assert follow(error, path) == [8]
    note = next(n for n in read_particles(path, pixel_size=8).notes if "128 px" in n)
    assert "32 px" in note and "8 Å, as given" in note
    assert "write rlnImageSize 32 and rlnImagePixelSize 8 in the STAR file" in advice_of(error)
    corrected = write_star(tmp_path / "q.star", {"rlnImageSize": 32, "rlnImagePixelSize": 8.0})
    assert read_particles(corrected).pixel_size == 8
    assert (
        read_particles(corrected).notes
        == read_particles(write_star(tmp_path / "r.star", {"rlnImagePixelSize": 8.0})).notes
    )


@pytest.mark.parametrize("header", [0.0, 1.0, 2.0])
def test_old_star_of_a_stack_whose_header_does_not_tell(tmp_path, header):
    make_stack(tmp_path / "a.mrcs", box=32, pixel_size=header)
    path = write_star(tmp_path / "p.star", OLD)
    error = refusal(path)
    assert follow(error, path) == [8, 2]
    assert "8 if they were rescaled, --pixel-size 2 if they were cut" in advice_of(error)


def test_box_without_any_pixel_size(tmp_path):
    make_stack(tmp_path / "a.mrcs", pixel_size=0)
    path = write_star(tmp_path / "p.star", {"rlnImageSize": 128})
    assert "give --pixel-size (Å, of the images of 32 px)" in advice_of(refusal(path))
    assert read_particles(path, pixel_size=3).pixel_size == 3


def test_old_cs_of_a_downsampled_stack(tmp_path):
    make_stack(tmp_path / "a.mrcs", box=32, pixel_size=8)
    path = write_cs(tmp_path / "p.cs", 128, 2.0)
    error = refusal(path)
    assert "blob/shape says 128 px at 2 Å, the images of a.mrcs have 32 px at 8 Å" in error.why
    assert "STAR" not in advice_of(error)
    assert follow(error, path) == [8]
    assert read_particles(write_cs(tmp_path / "q.cs", 32, 8.0)).pixel_size == 8


def test_box_of_groups_that_no_particle_uses_does_not_matter(tmp_path):
    make_stack(tmp_path / "a.mrcs")
    path = write_star(tmp_path / "p.star", {"rlnImageSize": 32, "rlnImagePixelSize": 8.0})
    blocks = read_blocks(path)
    other = blocks["optics"].assign(rlnOpticsGroup=2, rlnImageSize=256, rlnImagePixelSize=8.0)
    write_blocks({**blocks, "optics": pd.concat([blocks["optics"], other])}, path)
    assert read_particles(path).pixel_size == 8


@pytest.mark.parametrize("text", ["None", "abc"])
def test_box_that_is_no_number_says_nothing(tmp_path, text):
    make_stack(tmp_path / "a.mrcs")
    assert read_particles(write_star(tmp_path / "p.star", {"rlnImageSize": text, "rlnImagePixelSize": 8.0}))


@pytest.mark.parametrize("header", [0.0, 1.0, 1.999, 2.01])
def test_headers_that_say_nothing_or_the_same_are_not_mentioned(tmp_path, header):
    make_stack(tmp_path / "a.mrcs", box=128, pixel_size=header)
    assert not [n for n in read_particles(write_star(tmp_path / "p.star", OLD)).notes if "ixel" in n]
    assert not [n for n in read_particles(write_cs(tmp_path / "p.cs", 128, 2.0)).notes if "ixel" in n]


@pytest.mark.parametrize("kind", ["star", "cs"])
@pytest.mark.parametrize("header", [2.1, 8.0, 256.0, 0.001])
def test_another_header_is_noted_with_both_values_where_the_box_agrees(tmp_path, header, kind):
    make_stack(tmp_path / "a.mrcs", box=128, pixel_size=header)
    path = write_star(tmp_path / "p.star", OLD) if kind == "star" else write_cs(tmp_path / "p.cs", 128, 2.0)
    particles = read_particles(path)
    assert particles.pixel_size == 2
    name = "rlnImagePixelSize" if kind == "star" else "blob/psize_A"
    assert [n for n in particles.notes if f"2 Å by {name}, {header:g} Å by the header of a.mrcs" in n]


MAGNIFIED = {"rlnMagnification": [50000.0] * COUNT, "rlnDetectorPixelSize": [10.0] * COUNT}


@pytest.mark.parametrize(
    "columns", [MAGNIFIED, {"rlnPixelSize": [2.0] * COUNT}, {"rlnImagePixelSize": [2.0] * COUNT}]
)
def test_pixel_size_without_a_box_against_a_header(tmp_path, columns):
    path = write_star(tmp_path / "p.star", **columns)
    make_stack(tmp_path / "a.mrcs", pixel_size=8)
    error = refusal(path)
    assert "2 Å by rln" in error.why and "8 Å by the header of a.mrcs" in error.why
    assert follow(error, path) == [8, 2]
    make_stack(tmp_path / "a.mrcs", pixel_size=2.1)
    particles = read_particles(path)
    assert particles.pixel_size == 2 and any("2.1 Å by the header" in n for n in particles.notes)
    for silent in (0.0, 1.0, 2.0):
        make_stack(tmp_path / "a.mrcs", pixel_size=silent)
        assert not [n for n in read_particles(path).notes if "ixel" in n]


def test_magnification_against_the_pixel_size_of_relion_30(tmp_path):
    make_stack(tmp_path / "a.mrcs", pixel_size=0)
    path = write_star(tmp_path / "p.star", rlnPixelSize=[1.0] * COUNT, **MAGNIFIED)
    error = refusal(path)
    assert "1 Å by rlnPixelSize, 2 Å by rlnDetectorPixelSize and rlnMagnification" in error.why
    assert read_particles(path, pixel_size=2).pixel_size == 2
    same = write_star(tmp_path / "q.star", rlnPixelSize=[2.0] * COUNT, **MAGNIFIED)
    assert read_particles(same).pixel_size == 2


def test_magnification_beside_the_pixel_size_of_relion_31_is_the_micrographs(tmp_path):
    make_stack(tmp_path / "a.mrcs", box=128, pixel_size=2)
    nominal = write_star(
        tmp_path / "p.star", OLD, rlnMagnification=[1e5] * COUNT, rlnDetectorPixelSize=[5.0] * COUNT
    )
    assert read_particles(nominal).pixel_size == 2


def test_origins_in_px_follow_the_pixel_size_that_is_given(tmp_path):
    make_stack(tmp_path / "a.mrcs", pixel_size=8)
    pose = {"rlnAngleRot": [0.0] * COUNT, "rlnAngleTilt": [0.0] * COUNT, "rlnAnglePsi": [0.0] * COUNT}
    path = write_star(tmp_path / "p.star", rlnOriginX=[1.0] * COUNT, rlnOriginY=[-2.0] * COUNT, **pose, **MAGNIFIED)
    particles = read_particles(path, pixel_size=8)
    assert particles.pose is not None
    np.testing.assert_allclose(particles.pose.translation, [[-8, 16]] * COUNT)


def test_what_is_given_is_written(tmp_path):
    make_stack(tmp_path / "a.mrcs", pixel_size=8)
    path = write_star(
        tmp_path / "p.star", OLD, **dict.fromkeys(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), [0.0] * COUNT)
    )
    particles = read_particles(path, pixel_size=8)
    assert particles.pose is not None
    write_particles_star(tmp_path / "out.star", particles, particles.pose)
    again = read_particles(tmp_path / "out.star")
    assert again.pixel_size == 8 and not [n for n in again.notes if "px" in n]


def test_header_as_the_only_source(tmp_path):
    plain = write_star(tmp_path / "p.star")
    for path in (plain, tmp_path / "a.mrcs"):
        make_stack(tmp_path / "a.mrcs", pixel_size=3)
        particles = read_particles(path)
        assert particles.pixel_size == pytest.approx(3)
        assert any("3 Å, from the image stack's header" in n for n in particles.notes)
        make_stack(tmp_path / "a.mrcs", pixel_size=1)
        assert any("many programs write 1" in n for n in read_particles(path).notes)
        make_stack(tmp_path / "a.mrcs", pixel_size=0)
        assert read_particles(path).pixel_size is None
        assert "Pixel size: unknown" in read_particles(path).notes


@pytest.mark.parametrize("size", [256.0, 0.01])
def test_header_that_cannot_be_meant(tmp_path, size):
    make_stack(tmp_path / "a.mrcs", pixel_size=size)
    for path in (write_star(tmp_path / "p.star"), tmp_path / "a.mrcs"):
        error = refusal(path)
        assert f"{size:g} Å, cannot be meant" in error.why and "--pixel-size" in advice_of(error)
        assert read_particles(path, pixel_size=2).pixel_size == 2
        looked_at = read_particles(path, check_stacks=False)
        assert looked_at.pixel_size is None and any("cannot be meant" in n for n in looked_at.notes)


def test_header_with_the_boxs_length_for_a_pixel(tmp_path):
    path = set_header(make_stack(tmp_path / "a.mrcs", box=32), cell=(64, 64), samples=(1, 1))
    assert advice_of(refusal(path)) == "give --pixel-size (Å), perhaps 2"


@pytest.mark.parametrize("size", [60.0, 0.15])
def test_stated_size_that_is_unusual_is_noted(tmp_path, size):
    make_stack(tmp_path / "a.mrcs", pixel_size=0)
    path = write_star(tmp_path / "p.star", {"rlnImagePixelSize": size})
    for particles in (read_particles(path), read_particles(tmp_path / "a.mrcs", pixel_size=size)):
        assert particles.pixel_size == size and any(f"{size:g} Å is unusual" in n for n in particles.notes)


@pytest.mark.parametrize("given", [0.0, -2.0, np.nan, np.inf])
def test_given_size_that_is_none(tmp_path, given):
    with pytest.raises(InputError, match="must be a length in Å"):
        read_particles(make_stack(tmp_path / "a.mrcs"), pixel_size=given)


def test_header_with_oblong_pixels(tmp_path):
    stack = set_header(make_stack(tmp_path / "a.mrcs", box=128, pixel_size=2), cell=(256, 384))
    for path in (write_star(tmp_path / "p.star"), stack):
        error = refusal(path)
        assert "2 x 3 Å" in error.why and "not square" in error.why
        assert read_particles(path, pixel_size=2).pixel_size == 2
    stated = read_particles(write_star(tmp_path / "q.star", OLD))
    assert stated.pixel_size == 2 and any("2 x 3 Å by the header" in n for n in stated.notes)


def test_headers_that_differ_between_stacks(tmp_path):
    make_stack(tmp_path / "a.mrcs", pixel_size=2)
    make_stack(tmp_path / "b.mrcs", pixel_size=4)
    names = [f"{i + 1}@{'ab'[i % 2]}.mrcs" for i in range(COUNT)]
    path = write_star(tmp_path / "p.star", rlnImageName=names)
    error = refusal(path)
    assert "2 Å in a.mrcs, 4 Å in b.mrcs" in error.why
    assert read_particles(path, pixel_size=4).pixel_size == 4
    make_stack(tmp_path / "b.mrcs", pixel_size=2)
    assert read_particles(path).pixel_size == pytest.approx(2)


def test_info_tells_contradictions_and_goes_on(tmp_path, capsys):
    make_stack(tmp_path / "a.mrcs", box=32, pixel_size=8)
    info(write_star(tmp_path / "p.star", OLD))
    shown = " ".join(capsys.readouterr().out.split())
    assert "128 px at 2 Å" in shown and "32 px at 8 Å" in shown


def test_reconstruct_takes_the_advice(tmp_path):
    make_stack(tmp_path / "a.mrcs", box=32, pixel_size=8)
    path = write_star(tmp_path / "p.star", OLD)
    with pytest.raises(InputError, match="128 px at 2 Å"):
        reconstruct(path, tmp_path / "out")
    with pytest.raises(InputError, match="4 particles are too few"):
        reconstruct(path, tmp_path / "out", ReconstructConfig(pixel_size=8))


def test_infer_takes_the_advice(tmp_path, monkeypatch):
    import cryoai.reconstruction.infer as module

    make_stack(tmp_path / "a.mrcs", box=32, pixel_size=8)
    path = write_star(tmp_path / "p.star", OLD)
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(module, "read_encoder", lambda path: type("Trained", (), {"box_size": 4})())
    monkeypatch.setattr(module, "read_map", lambda path: type("Map", (), {"box_size": 4})())

    def stop(particles, *_):
        raise LookupError(particles.pixel_size)

    monkeypatch.setattr(module, "_check_fit", stop)
    with pytest.raises(InputError, match="128 px at 2 Å"):
        infer(path, run, None)
    with pytest.raises(LookupError, match=r"^8"):
        infer(path, run, None, pixel_size=8)
