from __future__ import annotations

import gzip
import tracemalloc
import warnings

import mrcfile
import numpy as np
import pytest

from cryoai.errors import CryoAIError, InputError
from cryoai.io import StackReader, StackWriter, read_map, write_map
from cryoai.types import Map

DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def make_file(path, data, voxel_size: float | tuple[float, float, float] = 1.5, volume=False):
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
        if volume:
            file.set_volume()
        file.voxel_size = voxel_size
    return path


def numbers(shape, dtype="f4"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def swap_bytes(path, itemsize):
    """Turn a little-endian file into a big-endian one."""
    raw = bytearray(path.read_bytes())
    words = np.frombuffer(bytes(raw[:1024]), "<u4").copy()
    text = set(range(52, 54)) | {26, 52, 53} | set(range(56, 256))
    swapped = words.byteswap()
    for word in text:
        swapped[word] = words[word]
    header = bytearray(swapped.tobytes())
    header[212:216] = bytes([0x11, 0x11, 0, 0])
    data = np.frombuffer(bytes(raw[1024:]), f"<u{itemsize}").byteswap().tobytes()
    path.write_bytes(bytes(header) + data)


@pytest.mark.parametrize("mode", DTYPES)
@pytest.mark.parametrize("big_endian", [False, True])
def test_every_mode_is_read_as_stack_and_as_map(tmp_path, mode, big_endian):
    data = numbers((5, 5, 5), DTYPES[mode])
    path = make_file(tmp_path / "a.mrc", data, volume=True)
    if big_endian:
        swap_bytes(path, data.itemsize)
    density_map = read_map(path)
    np.testing.assert_array_equal(density_map.density, data)
    assert density_map.density.dtype == np.float32
    assert density_map.voxel_size == pytest.approx(1.5)
    reader = StackReader(path)
    assert len(reader) == 5 and reader.box_size == 5 and reader.pixel_size == pytest.approx(1.5)
    np.testing.assert_array_equal(reader.read(np.array([3, 1, 3])), data[[3, 1, 3]])


def test_map_round_trip(tmp_path):
    density = np.random.default_rng(0).normal(size=(6, 6, 6)).astype(np.float32)
    path = tmp_path / "out" / "map.mrc"
    write_map(Map(density, 2.5), path)
    again = read_map(path)
    np.testing.assert_array_equal(again.density, density)
    assert again.voxel_size == pytest.approx(2.5)
    with mrcfile.open(path) as file:
        assert file.header.ispg == 1 and file.header.mode == 2 and file.is_volume()
    assert [p.name for p in path.parent.iterdir()] == ["map.mrc"]
    assert mrcfile.validate(path)


def test_gzipped_map(tmp_path):
    data = numbers((4, 4, 4))
    plain = make_file(tmp_path / "a.mrc", data, volume=True)
    path = tmp_path / "a.mrc.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read_map(path).density, data)
    path.write_bytes(gzip.compress(plain.read_bytes())[:-40])
    with pytest.raises(InputError, match="damaged"):
        read_map(path)


def test_axis_order_of_the_header_counts(tmp_path):
    data = numbers((4, 4, 4))
    path = make_file(tmp_path / "a.mrc", data, volume=True)
    with mrcfile.open(path, mode="r+") as file:
        # Columns run along z, rows along y, sections along x.
        file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1
    np.testing.assert_array_equal(read_map(path).density, data.transpose(2, 1, 0))


def test_map_that_cannot_be_used(tmp_path):
    flat = make_file(tmp_path / "flat.mrc", numbers((3, 4, 4)), volume=True)
    with pytest.raises(InputError, match="4 x 4 x 3"):
        read_map(flat)
    no_size = make_file(tmp_path / "size.mrc", numbers((4, 4, 4)), voxel_size=0, volume=True)
    with pytest.raises(InputError, match="no voxel size"):
        read_map(no_size)
    assert read_map(no_size, voxel_size=3.0).voxel_size == 3.0
    oblong = make_file(tmp_path / "oblong.mrc", numbers((4, 4, 4)), voxel_size=(1, 1, 2), volume=True)
    with pytest.raises(InputError, match="not cubes"):
        read_map(oblong)
    with pytest.raises(InputError, match="no such file"):
        read_map(tmp_path / "missing.mrc")
    (tmp_path / "text.mrc").write_text("hello " * 1000)
    with pytest.raises(InputError, match=r"not an MRC file|MRC mode"):
        read_map(tmp_path / "text.mrc")
    (tmp_path / "empty.mrc").write_bytes(b"")
    with pytest.raises(InputError, match="too short"):
        read_map(tmp_path / "empty.mrc")
    cut = make_file(tmp_path / "cut.mrc", numbers((4, 4, 4)), volume=True)
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(InputError, match="truncated"):
        read_map(cut)


def test_map_that_is_not_finite(tmp_path):
    bad = np.full((4, 4, 4), np.nan, np.float32)
    with pytest.raises(CryoAIError, match="not numbers"):
        write_map(Map(bad, 1.0), tmp_path / "a.mrc")
    assert list(tmp_path.iterdir()) == []
    path = make_file(tmp_path / "a.mrc", np.zeros((4, 4, 4), np.float32), volume=True)
    path.write_bytes(path.read_bytes()[:1024] + bad.tobytes())
    with pytest.raises(InputError, match="not numbers"):
        read_map(path)


@pytest.mark.parametrize("box", [8, 9])
@pytest.mark.parametrize("mode", [2, 12])
def test_stack_round_trip(tmp_path, box, mode):
    images = numbers((7, box, box))
    path = tmp_path / "a.mrcs"
    with StackWriter(path, 7, box, 1.25, mode) as writer:
        writer.write(images[:3])
        writer.write(images[3:])
    reader = StackReader(path)
    assert len(reader) == 7 and reader.pixel_size == pytest.approx(1.25)
    np.testing.assert_array_equal(reader.read(np.arange(7)), images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mrcfile.open(path) as file:
            assert file.is_image_stack() and file.header.ispg == 0
            np.testing.assert_array_equal(file.data.astype(np.float32), images)


def test_stack_writer_checks_the_count_and_cleans_up(tmp_path):
    with pytest.raises(CryoAIError, match="2 images were written, 3"):
        with StackWriter(tmp_path / "a.mrcs", 3, 4, 1.0) as writer:
            writer.write(numbers((2, 4, 4)))
    with pytest.raises(ZeroDivisionError), StackWriter(tmp_path / "a.mrcs", 3, 4, 1.0):
        raise ZeroDivisionError
    with pytest.raises(CryoAIError, match="float16"):
        with StackWriter(tmp_path / "a.mrcs", 1, 4, 1.0, mode=12) as writer:
            writer.write(np.full((1, 4, 4), 1e6, np.float32))
    assert list(tmp_path.iterdir()) == []


def test_runs_gaps_and_repeats(tmp_path):
    images = numbers((700, 4, 4))
    path = make_file(tmp_path / "a.mrcs", images)
    reader = StackReader(path)
    chosen = np.random.default_rng(1).integers(0, 700, 900)
    np.testing.assert_array_equal(reader.read(chosen), images[chosen])
    np.testing.assert_array_equal(reader.read(np.arange(700)[::-1]), images[::-1])
    assert reader.read(np.array([], dtype=np.int64)).shape == (0, 4, 4)


def test_extended_header_and_single_image(tmp_path):
    image = numbers((6, 6))
    path = make_file(tmp_path / "a.mrc", image)
    with mrcfile.open(path, mode="r+") as file:
        file.set_extended_header(np.zeros(80, dtype="V1"))
    reader = StackReader(path)
    assert len(reader) == 1
    np.testing.assert_array_equal(reader.read(np.array([0]))[0], image)


def test_stack_that_cannot_be_used(tmp_path):
    cut = make_file(tmp_path / "cut.mrcs", numbers((5, 4, 4)))
    cut.write_bytes(cut.read_bytes()[:-70])
    with pytest.raises(InputError, match="should hold 5 images and holds 3 whole"):
        StackReader(cut)
    with pytest.raises(InputError, match="not square"):
        StackReader(make_file(tmp_path / "oblong.mrcs", numbers((5, 4, 6))))
    with pytest.raises(InputError, match="no such file"):
        StackReader(tmp_path / "missing.mrcs")
    removed = make_file(tmp_path / "removed.mrcs", numbers((5, 4, 4)))
    reader = StackReader(removed)
    removed.unlink()
    with pytest.raises(InputError, match="no such file"):
        reader.read(np.array([0]))
    with pytest.raises(InputError, match="mode 4"):
        StackReader(make_file(tmp_path / "complex.mrcs", np.zeros((2, 4, 4), np.complex64)))


@pytest.mark.parametrize("index", [-1, 5, 500])
def test_index_beyond_the_end(tmp_path, index):
    reader = StackReader(make_file(tmp_path / "a.mrcs", numbers((5, 4, 4))))
    with pytest.raises(InputError, match=f"5 images, number {index + 1} was"):
        reader.read(np.array([0, index]))


def test_streaming_holds_one_batch_only(tmp_path):
    count, box = 2000, 32
    path = make_file(tmp_path / "a.mrcs", np.zeros((count, box, box), np.float32))
    reader = StackReader(path)
    tracemalloc.start()
    for start in range(0, count, 100):
        reader.read(np.arange(start, start + 100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 100 * box * box * 4
