"""MRC files whose headers or bodies are not what they should be."""

from __future__ import annotations

import bz2
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from behaviour import check_info, check_particles, well_behaved
from hypothesis import given
from hypothesis import strategies as st
from mutations import BYTES, spoiled

from cryoai.io import StackReader, StackWriter, read_map, write_map
from cryoai.types import Map

INTEGERS = [0, -1, 1, 2, 3, 4, 6, 8, 12, 16, 101, 401, 1024, 2**16, 2**20, 2**31 - 1, -(2**31)]
FLOATS = [0.0, -1.0, 1e-40, 1e38, 16.0, float("nan"), float("inf"), -float("inf")]
NAMES = ["fuzz.mrc", "fuzz.mrcs", "fuzz.map", "fuzz.mrc.gz", "fuzz.mrcs.gz", "fuzz.mrcs.bz2"]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A stack of three images, one of float16, and a map, all of 8 px."""
    folder = tmp_path_factory.mktemp("valid")
    values = np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32)
    for name, mode in (("stack.mrcs", 2), ("half.mrcs", 12)):
        with StackWriter(folder / name, 3, 8, 2.0, mode=mode) as writer:
            writer.write(values[:3])
    write_map(Map(values, 2.0), folder / "map.mrc")
    return [(folder / name).read_bytes() for name in ("stack.mrcs", "half.mrcs", "map.mrc")]


@st.composite
def header_changes(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Where in the header which four bytes stand instead."""
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        # The first 28 words say what the data are, then come space group, extended header, labels.
        word = draw(st.integers(0, 27) | st.sampled_from([0, 1, 2, 3, 22, 23, 52, 53]))
        number = draw(st.sampled_from(INTEGERS) | st.integers(-(2**31), 2**31 - 1))
        order = draw(st.sampled_from("<<>"))
        value = struct.pack(f"{order}i", number)
        if draw(st.booleans()) and 10 <= word < 22:
            value = struct.pack(f"{order}f", draw(st.sampled_from(FLOATS)))
        changes.append((4 * word, value))
    return changes


def check_mrc(path: Path) -> None:
    with well_behaved(path):
        read_map(path)
    with well_behaved(path):
        reader = StackReader(path)
        assert reader.read(np.arange(len(reader))).shape == (len(reader), reader.box_size, reader.box_size)
    check_particles(path)
    check_info(path)


@given(
    which=st.integers(0, 2),
    changes=header_changes(),
    name=st.sampled_from(NAMES),
    length=st.none() | st.integers(0, 3000),
)
def test_spoiled_mrc_headers(
    folder: Path, valid: list[bytes], which: int, changes: list[tuple[int, bytes]], name: str, length: int | None
) -> None:
    content = bytearray(valid[which])
    for place, value in changes:
        content[place : place + 4] = value
    path = folder / name
    path.write_bytes(compressed(bytes(content[:length]), name))
    check_mrc(path)
    path.unlink()


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_spoiled_mrc_files(folder: Path, valid: list[bytes], data: st.DataObject, name: str) -> None:
    path = folder / name
    path.write_bytes(data.draw(spoiled([compressed(content, name) for content in valid], BYTES)))
    check_mrc(path)
    path.unlink()


def compressed(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content, mtime=0)
    return bz2.compress(content) if name.endswith(".bz2") else content
