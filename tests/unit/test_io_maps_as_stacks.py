"""A density map given as a stack is refused; stacks of as many images as they have px are not."""

from __future__ import annotations

import gzip
import re

import mrcfile
import numpy as np
import pytest

from cryoai import InputError, read_map, reconstruct, write_map
from cryoai.cli.info import info
from cryoai.io import StackReader, StackWriter, read_particles
from cryoai.types import Map

BOX = 16


def density():
    return np.random.default_rng(0).normal(size=(BOX, BOX, BOX)).astype(np.float32)


def make_map(path):
    write_map(Map(density(), 2.0), path)
    return path


def make_relion_map(path):
    """RELION gives volumes the space group of images, but their height as mz."""
    make_map(path)
    with mrcfile.open(path, mode="r+") as file:
        file.header.ispg = 0
    return path


def make_stack(path, count=BOX):
    with StackWriter(path, count, BOX, 2.0) as writer:
        writer.write(np.zeros((count, BOX, BOX), np.float32))
    return path


def make_plain_array(path):
    """What mrcfile makes of an array that nobody called a stack: a volume."""
    with mrcfile.new(path) as file:
        file.set_data(density())
        file.header.ispg = 1
        file.voxel_size = 2.0
    return path


def make_volume_stack(path):
    with mrcfile.new(path) as file:
        file.set_data(np.zeros((2, BOX, BOX, BOX), np.float32))
        file.voxel_size = 2.0
    return path


def compressed(path):
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def write_star(path, *stacks):
    path.write_text(
        "data_\nloop_\n_rlnImageName\n_rlnPixelSize\n"
        + "".join(f"{i + 1}@{stack.name} 2\n" for stack in stacks for i in range(BOX))
    )
    return path


def write_cs(path, stack):
    rows = np.zeros(BOX, dtype=[("blob/path", "S32"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")])
    rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = stack.name.encode(), np.arange(BOX), 2
    with path.open("wb") as file:
        np.save(file, rows)
    return path


def shown_by_info(path, capsys):
    info(path)
    return capsys.readouterr().out


MAPS = [
    pytest.param(make_map, "map.mrc", id="map"),
    pytest.param(make_relion_map, "run_half1_class001_unfil.mrc", id="relion half-map"),
    pytest.param(make_map, "mask.mrc", id="mask"),
    pytest.param(make_map, "emd_1234.map", id="emdb"),
    pytest.param(make_stack, "emd_1234.ccp4", id="ccp4"),
]


@pytest.mark.parametrize("pack", [lambda path: path, compressed], ids=["plain", "gz"])
@pytest.mark.parametrize(("make", "name"), MAPS)
def test_map_given_as_particles(tmp_path, capsys, make, name, pack):
    path = pack(make(tmp_path / name))
    for read in (read_particles, lambda p: reconstruct(p, tmp_path / "out")):
        with pytest.raises(InputError, match=f"density map of {BOX} x {BOX} x {BOX} voxels") as caught:
            read(path)
        assert caught.value.file == path
        assert caught.value.advice == "give particle images; if it does hold images, name it .mrcs"
    assert "density map" in shown_by_info(path, capsys)


@pytest.mark.parametrize(("make", "name"), MAPS)
def test_map_named_as_the_stack_of_a_particle_file(tmp_path, make, name):
    stack = make(tmp_path / name)
    for path in (write_star(tmp_path / "p.star", stack), write_cs(tmp_path / "p.cs", stack)):
        with pytest.raises(InputError, match=f"{name} is a density map") as caught:
            read_particles(path)
        assert caught.value.file == path
        assert any("is a density map" in note for note in read_particles(path, check_stacks=False).notes)


def test_the_advice_for_a_map_that_is_a_stack_works(tmp_path):
    path = make_plain_array(tmp_path / "images.mrc")
    with pytest.raises(InputError, match=r"name it \.mrcs"):
        read_particles(path)
    assert len(read_particles(path.rename(tmp_path / "images.mrcs"))) == BOX


STACKS = [
    pytest.param(make_stack, "a.mrcs", id="relion"),
    pytest.param(make_stack, "a_particles.mrc", id="cryosparc"),
    pytest.param(make_plain_array, "a.mrcs", id="array"),
]


@pytest.mark.parametrize("pack", [lambda path: path, compressed], ids=["plain", "gz"])
@pytest.mark.parametrize(("make", "name"), STACKS)
def test_stack_of_as_many_images_as_px(tmp_path, capsys, make, name, pack):
    stack = pack(make(tmp_path / name))
    for path in (stack, write_star(tmp_path / "p.star", stack), write_cs(tmp_path / "p.cs", stack)):
        particles = read_particles(path)
        assert len(particles) == BOX and particles.box_size == BOX and particles.pixel_size == pytest.approx(2)
        assert re.search(rf"^particles +{BOX} ", shown_by_info(path, capsys), re.MULTILINE)


def test_one_cubic_stack_among_others_is_chance(tmp_path):
    cubic, other = make_plain_array(tmp_path / "a.mrc"), make_stack(tmp_path / "b.mrc", BOX + 3)
    assert len(read_particles(write_star(tmp_path / "p.star", cubic, other))) == 2 * BOX
    other = make_map(tmp_path / "b.mrc")
    with pytest.raises(InputError, match="density map"):
        read_particles(write_star(tmp_path / "p.star", cubic, other))


def test_stack_that_its_header_calls_a_volume_is_read_with_a_note(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc") as file:
        file.set_data(np.zeros((BOX + 4, BOX, BOX), np.float32))
        file.header.ispg = 1
    notes = read_particles(tmp_path / "a.mrc").notes
    assert any("calls the file a volume" in note for note in notes)
    assert not any("volume" in note for note in read_particles(make_stack(tmp_path / "b.mrcs")).notes)


@pytest.mark.parametrize("name", ["a.mrc", "a.mrcs"])
def test_stack_of_volumes(tmp_path, name):
    path = make_volume_stack(tmp_path / name)
    for read in (StackReader, read_particles):
        with pytest.raises(InputError, match=r"stack of volumes \(space group 401\)"):
            read(path)
    with pytest.raises(InputError, match="stack of volumes"):
        read_particles(write_star(tmp_path / "p.star", path))


def test_maps_are_still_read_as_maps(tmp_path):
    np.testing.assert_array_equal(read_map(make_map(tmp_path / "a.mrc")).density, density())
    np.testing.assert_array_equal(read_map(make_relion_map(tmp_path / "b.mrc")).density, density())


def test_info_of_a_map_with_enormous_values(tmp_path, capsys):
    path = make_map(tmp_path / "a.mrc")
    path.write_bytes(path.read_bytes()[:1024] + (1e30 * density()).astype(np.float32).tobytes())
    shown = " ".join(shown_by_info(tmp_path / "a.mrc", capsys).split())
    assert f"σ {1e30 * density().std():.4g}" in shown
