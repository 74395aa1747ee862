"""Mode 0: bytes are signed by MRC2014, unsigned by older programs, and IMOD's stamp tells which."""

from __future__ import annotations

import gzip
import struct

import mrcfile
import numpy as np
import pytest

from cryoai.errors import InputError
from cryoai.io import StackReader, read_map

IMOD_STAMP = 1146047817
BOX = 12


def noise(middle, sigma=25.0):
    values = np.random.default_rng(0).normal(middle, sigma, (BOX, BOX, BOX)).round()
    return values.clip(0, 255) if middle > 60 else values.clip(-128, 127)


def write_bytes(path, values, *, stamp=None, statistics=(0.0, -1.0), label=b"MAP ", order="<"):
    """A file of mode 0 whose bytes are those of ``values``, signed or not."""
    with mrcfile.new(path) as file:
        file.set_data(values.astype(np.int16).astype(np.uint8).view(np.int8))
        file.set_volume()
        file.voxel_size = 2.0
    raw = bytearray(path.read_bytes())
    if order == ">":
        words = np.frombuffer(bytes(raw[:1024]), "<u4").copy()
        numbers = [*range(26), 27, *range(49, 52), 54, 55]
        words[numbers] = words[numbers].byteswap()
        raw[:1024] = words.tobytes()
        raw[212:216] = bytes([0x11, 0x11, 0, 0])
    raw[76:84] = struct.pack(f"{order}2f", *statistics)
    raw[208:212] = label
    if stamp is not None:
        raw[152:160] = struct.pack(f"{order}2i", IMOD_STAMP, stamp)
    path.write_bytes(bytes(raw))
    return path


def assert_read(path, values):
    np.testing.assert_array_equal(StackReader(path).read(np.arange(BOX)), values)
    np.testing.assert_array_equal(read_map(path).density, values)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("stamp", "middle"),
    [(0, 128), (4, 128), (1, 0), (13, 0)],
    ids=["none", "origin", "signed", "signed and more"],
)
def test_imods_stamp_says_whether_bytes_are_signed(tmp_path, stamp, middle, order):
    values = noise(middle)
    assert_read(write_bytes(tmp_path / "a.mrc", values, stamp=stamp, order=order), values)


def test_imods_stamp_counts_before_statistics_and_pixels(tmp_path):
    signed = noise(128) - 256 * (noise(128) > 127)
    path = write_bytes(tmp_path / "a.mrc", signed, stamp=1, statistics=(0.0, 255.0))
    assert_read(path, signed)


@pytest.mark.parametrize("label", [b"MAP ", bytes(4)])
@pytest.mark.parametrize("middle", [0, 128])
def test_without_a_stamp_the_headers_statistics_count(tmp_path, middle, label):
    flat = np.random.default_rng(1).integers(0, 256, (BOX, BOX, BOX)) - (128 if middle == 0 else 0)
    flat.flat[:2] = flat.min(), flat.max()
    path = write_bytes(tmp_path / "a.mrc", flat, statistics=(flat.min(), flat.max()), label=label)
    assert_read(path, flat)


@pytest.mark.parametrize("label", [b"MAP ", bytes(4)])
@pytest.mark.parametrize("statistics", [(0, 0), (0, -1), (np.nan, np.inf), (-3.25, 5.5)])
@pytest.mark.parametrize("middle", [0, 128])
def test_with_neither_the_pixels_decide(tmp_path, middle, statistics, label):
    values = noise(middle)
    assert_read(write_bytes(tmp_path / "a.mrc", values, statistics=statistics, label=label), values)


def test_what_the_pixels_leave_open_is_signed_in_a_standard_file_and_refused_in_an_old_one(tmp_path):
    signed = np.random.default_rng(1).integers(-128, 128, (BOX, BOX, BOX))
    assert_read(write_bytes(tmp_path / "a.mrc", signed), signed)
    old = write_bytes(tmp_path / "b.mrc", signed, label=bytes(4))
    for read in (StackReader, read_map):
        with pytest.raises(InputError, match="nothing tells whether they are signed; convert it to float32"):
            read(old)


def test_small_bytes_are_the_same_either_way(tmp_path):
    mask = np.random.default_rng(1).integers(0, 2, (BOX, BOX, BOX))
    assert_read(write_bytes(tmp_path / "a.mrc", mask, label=bytes(4)), mask)


def test_compressed_bytes(tmp_path):
    values = noise(128)
    plain = write_bytes(tmp_path / "a.mrc", values)
    path = tmp_path / "a.mrc.gz"
    path.write_bytes(gzip.compress(plain.read_bytes()))
    assert_read(path, values)
