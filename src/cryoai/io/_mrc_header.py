"""The MRC header, parsed without opening the data: quick enough for ten thousand stacks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import mrcfile.dtypes
import numpy as np

from cryoai.errors import InputError
from cryoai.io._compressed import bytes_at_most, open_plain, plain_suffix
from cryoai.io._mrc_bytes import header_says_signed, looks_signed

HEADER_BYTES = 1024
_ByteOrder = Literal["<", ">"]
# Modes 3 and 4 (complex) and 101 (4 bit) hold no cryo-EM particle or map that a program here could want.
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_LARGEST_EDGE = 1 << 20
_VOLUME_STACKS = range(401, 631)
"""MRC2014: 400 plus the volumes' space group."""
_BYTES_SAMPLE = 1 << 20
_MAP_SUFFIXES = (".map", ".ccp4")


@dataclass(frozen=True)
class MrcHeader:
    """What an MRC header says about the data after it.

    Attributes
    ----------
    shape
        (sections, rows, columns), as stored.
    dtype
        Of the data, with its byte order.
    offset
        Bytes before the data: the header and the extended header.
    axes
        Which axis (1 = x, 2 = y, 3 = z) the sections, rows and columns are.
    voxel_size_xyz
        Å along x, y and z; 0 where the header has none.
    space_group
        0 for image stacks, 1 for volumes, 401 for stacks of volumes.
    sections_per_cell
        ``mz``: 1 in stacks of images, the number of sections in volumes.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    offset: int
    axes: tuple[int, int, int]
    voxel_size_xyz: tuple[float, float, float]
    space_group: int
    sections_per_cell: int

    @property
    def section_bytes(self) -> int:
        """Bytes of one section (one image of a stack)."""
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    @property
    def length(self) -> int:
        """Bytes of a whole file with this header."""
        return self.offset + self.shape[0] * self.section_bytes

    @property
    def is_map(self) -> bool:
        """Whether a file of this header, with no other hint, is a volume rather than a stack."""
        # The space group alone does not tell: RELION writes 0 for volumes too, but then mz is their height.
        marked_stack = self.space_group == 0 and self.sections_per_cell == 1
        return not marked_stack and self.shape[0] == self.shape[1] == self.shape[2] > 1

    @property
    def is_volume_stack(self) -> bool:
        """Whether the file holds several volumes, one after the other."""
        return self.space_group in _VOLUME_STACKS


def is_map_file(path: Path) -> bool:
    """Whether a file is a density map, by its name where that tells and else by its header.

    Raises
    ------
    InputError
        The file could be either and cannot be read.
    """
    suffix = plain_suffix(path)
    if suffix != ".mrc":
        return suffix in _MAP_SUFFIXES
    with open_plain(path) as stream:
        return looks_like_map(path, read_header(stream, path))


def looks_like_map(path: Path, header: MrcHeader) -> bool:
    """Whether the file of a header is a density map: ``.mrcs`` is a stack whatever its header says."""
    suffix = plain_suffix(path)
    return suffix in _MAP_SUFFIXES or (suffix != ".mrcs" and header.is_map)


def read_header(stream: BufferedIOBase, path: Path) -> MrcHeader:
    """Parse the header at the start of an open file.

    Parameters
    ----------
    stream
        Open for reading in binary, at its start.
    path
        For error messages.

    Raises
    ------
    InputError
        Not an MRC file, a mode that holds no real numbers, or bytes that may be signed or not.
    """
    raw = stream.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise InputError("is too short to be an MRC file", file=path)
    for order in _byte_orders(raw):
        fields = np.frombuffer(raw, dtype=mrcfile.dtypes.HEADER_DTYPE.newbyteorder(order))[0]
        if _is_plausible(fields):
            header = _to_header(fields, order, path)
            if header.dtype == np.int8 and not _is_signed(stream, raw, order, header, path):
                return replace(header, dtype=np.dtype(np.uint8))
            return header
    raise InputError("is not an MRC file", file=path)


def _is_signed(stream: BufferedIOBase, raw: bytes, order: _ByteOrder, header: MrcHeader, path: Path) -> bool:
    """Whether mode 0 means signed bytes in this file; may move the stream."""
    signed = header_says_signed(raw, order)
    if signed is None and header.length <= bytes_at_most(stream):
        # The middle: the outer sections of a map are empty.
        stream.seek(header.offset + header.shape[0] // 2 * header.section_bytes)
        sample = stream.read(min(header.section_bytes, _BYTES_SAMPLE))
        signed = looks_signed(np.frombuffer(sample, np.uint8))
    if signed is None and raw[208:211] == b"MAP":
        # The images do not contradict what MRC2014 says of mode 0.
        return True
    if signed is None:
        raise InputError(
            "holds bytes (MRC mode 0), and nothing tells whether they are signed",
            file=path,
            advice="convert it to float32 (mode 2) with the program that wrote it",
        )
    return signed


def _byte_orders(raw: bytes) -> tuple[_ByteOrder, _ByteOrder]:
    # The machine stamp is often missing and sometimes wrong, so it only decides what is tried first.
    return (">", "<") if raw[212] == 0x11 else ("<", ">")


def _is_plausible(fields: np.void) -> bool:
    edges = (int(fields["nx"]), int(fields["ny"]), int(fields["nz"]))
    return (
        all(0 < e for e in edges)
        and max(edges[:2]) < _LARGEST_EDGE
        and 0 <= int(fields["mode"]) < 1000
        and int(fields["nsymbt"]) >= 0
    )


def _to_header(fields: np.void, order: _ByteOrder, path: Path) -> MrcHeader:
    mode = int(fields["mode"])
    if mode not in _MODES:
        raise InputError(f"has MRC mode {mode}, which cryoai does not read", file=path, advice="convert it")
    axes = (int(fields["maps"]), int(fields["mapr"]), int(fields["mapc"]))
    cell = fields["cella"]
    return MrcHeader(
        shape=(int(fields["nz"]), int(fields["ny"]), int(fields["nx"])),
        dtype=np.dtype(_MODES[mode]).newbyteorder(order),
        offset=HEADER_BYTES + int(fields["nsymbt"]),
        axes=axes if sorted(axes) == [1, 2, 3] else (3, 2, 1),
        voxel_size_xyz=(
            _voxel_size(float(cell["x"]), int(fields["mx"])),
            _voxel_size(float(cell["y"]), int(fields["my"])),
            _voxel_size(float(cell["z"]), int(fields["mz"])),
        ),
        space_group=int(fields["ispg"]),
        sections_per_cell=int(fields["mz"]),
    )


def _voxel_size(length: float, count: int) -> float:
    return length / count if count > 0 and np.isfinite(length) and length > 0 else 0.0
