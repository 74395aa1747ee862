"""Stacks compressed with gzip or bzip2, and headers that promise what is not there."""

from __future__ import annotations

import bz2
import gc
import gzip
import os
import struct
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cryoai.errors import CryoAIError, InputError
from cryoai.io import StackReader, StackWriter, read_map, read_particles
from cryoai.particles.stack import ParticleImages

PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress}


def numbers(count, box):
    return np.random.default_rng(0).normal(size=(count, box, box)).astype(np.float32)


def write_stack(path, images, suffix=""):
    with StackWriter(path, len(images), images.shape[1], 2.0) as writer:
        writer.write(images)
    if suffix:
        packed = path.with_name(path.name + suffix)
        packed.write_bytes(PACKERS[suffix](path.read_bytes()))
        path.unlink()
        return packed
    return path


def change(path, **words):
    """Overwrite words of a header: nx=0, ny=1, nz=2, nsymbt=23."""
    places = {"nx": 0, "ny": 4, "nz": 8, "mode": 12, "nsymbt": 92}
    raw = bytearray(path.read_bytes())
    for name, value in words.items():
        raw[places[name] : places[name] + 4] = struct.pack("<i", value)
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_stack_reads_as_the_plain_one(tmp_path, suffix):
    images = numbers(300, 8)
    reader = StackReader(write_stack(tmp_path / "a.mrcs", images, suffix))
    assert len(reader) == 300 and reader.box_size == 8 and reader.pixel_size == pytest.approx(2)
    chosen = np.random.default_rng(1).integers(0, 300, 500)
    np.testing.assert_array_equal(reader.read(chosen), images[chosen])
    np.testing.assert_array_equal(reader.read(np.arange(300)[::-1]), images[::-1])
    with pytest.raises(InputError, match="300 images, number 301 was"):
        reader.read(np.array([300]))


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_bare_stack_and_stacks_of_a_star_file(tmp_path, suffix):
    images = numbers(12, 8)
    packed = write_stack(tmp_path / "a.mrcs", images, suffix)
    bare = read_particles(packed)
    assert len(bare) == 12 and bare.pixel_size == pytest.approx(2)
    np.testing.assert_array_equal(ParticleImages(bare).read(np.arange(12)), images)
    (tmp_path / "p.star").write_text(
        "data_\nloop_\n_rlnImageName\n" + "".join(f"{i}@{packed.name}\n" for i in (7, 2, 9))
    )
    named = read_particles(tmp_path / "p.star")
    np.testing.assert_array_equal(ParticleImages(named).read(np.arange(3)), images[[6, 1, 8]])


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_many_compressed_stacks_keep_few_files_open_and_none_when_done(tmp_path):
    gc.collect()  # what other tests have left open
    before = open_files()
    images = numbers(3, 4)
    readers = [StackReader(write_stack(tmp_path / f"{i}.mrcs", images + i, ".gz")) for i in range(20)]
    for _ in range(2):
        for place, reader in enumerate(readers):
            np.testing.assert_array_equal(reader.read(np.array([1]))[0], images[1] + place)
    assert open_files() <= before + 4
    del reader, readers
    gc.collect()
    assert open_files() == before


def test_threads_share_a_compressed_reader(tmp_path):
    images = numbers(200, 8)
    reader = StackReader(write_stack(tmp_path / "a.mrcs", images, ".gz"))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: reader.read(np.array([i])), range(200)))
    np.testing.assert_array_equal(np.concatenate(parts), images)


def test_reading_a_compressed_stack_holds_little(tmp_path):
    path = write_stack(tmp_path / "a.mrcs", np.zeros((4000, 32, 32), np.float32))
    packed = tmp_path / "a.mrcs.gz"
    # Level 1 leaves it above the ratio that no image reaches.
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    reader = StackReader(packed)
    tracemalloc.start()
    reader.read(np.array([0, 3999]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


@pytest.mark.parametrize("suffix", PACKERS)
def test_damaged_compressed_stack(tmp_path, suffix):
    packed = write_stack(tmp_path / "a.mrcs", numbers(2000, 8), suffix)
    whole = packed.read_bytes()
    packed.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        StackReader(packed).read(np.array([0]))
    packed.write_bytes(whole[:-300] + bytes(300))
    with pytest.raises(InputError, match="damaged"):
        StackReader(packed).read(np.array([0]))
    packed.write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"damaged|too short"):
        StackReader(packed)


def test_compressed_stack_that_holds_less_than_its_header_says(tmp_path):
    short = write_stack(tmp_path / "a.mrcs", numbers(50, 8))
    raw = short.read_bytes()
    packed = tmp_path / "a.mrcs.gz"
    packed.write_bytes(gzip.compress(raw[:-100]))
    with pytest.raises(InputError, match=f"promises {len(raw)} bytes, {len(raw) - 100} are there"):
        StackReader(packed).read(np.array([0]))


def test_compressed_stack_that_goes_on_and_on(tmp_path):
    raw = write_stack(tmp_path / "a.mrcs", numbers(50, 8)).read_bytes()
    packed = tmp_path / "a.mrcs.gz"
    packed.write_bytes(gzip.compress(raw + bytes(100)))
    assert StackReader(packed).read(np.array([49])).any()
    packed.write_bytes(gzip.compress(raw + bytes(2**24)))
    with pytest.raises(InputError, match="far more than its header says"):
        StackReader(packed).read(np.array([0]))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_room_to_unpack(tmp_path, monkeypatch):
    packed = write_stack(tmp_path / "a.mrcs", numbers(50, 8), ".gz")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))
    with pytest.raises(CryoAIError, match=r"No space left.*TMPDIR"):
        StackReader(packed).read(np.array([0]))


HUGE = [
    {"nz": 2**31 - 1},
    {"nx": 2**19, "ny": 2**19, "nz": 2**19},
    {"nx": 2**19, "ny": 2**19, "nz": 2**31 - 1},
    {"nsymbt": 2**31 - 1},
    {"nz": 10**6},
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mode", [0, 2])
@pytest.mark.parametrize("read", [StackReader, read_map])
@pytest.mark.parametrize("words", HUGE, ids=str)
def test_a_header_that_promises_too_much_costs_no_memory(tmp_path, words, read, mode, compressed):
    path = change(write_stack(tmp_path / "a.mrc", numbers(8, 8)), mode=mode, **words)
    if compressed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"truncated|not a cubic map"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


@pytest.mark.parametrize("words", [{"nsymbt": -5}, {"nx": -8}, {"nz": 0}, {"ny": 2**30}], ids=str)
@pytest.mark.parametrize("read", [StackReader, read_map])
def test_a_header_that_cannot_be_is_refused(tmp_path, words, read):
    path = change(write_stack(tmp_path / "a.mrc", numbers(8, 8)), **words)
    with pytest.raises(InputError, match="not an MRC file"):
        read(path)


def test_a_map_of_bytes_takes_little_more_than_its_result(tmp_path):
    path = write_stack(tmp_path / "a.mrc", numbers(64, 64))
    raw = bytearray(path.read_bytes())
    raw[12:16] = struct.pack("<i", 0)
    path.write_bytes(bytes(raw[:1024]) + np.random.default_rng(0).integers(0, 20, 64**3, np.uint8).tobytes())
    tracemalloc.start()
    density = read_map(path, voxel_size=1.0).density
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < density.nbytes + 2**18
