"""Stacks of particle images in MRC files, read lazily and written as a stream."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import mrcfile.dtypes
import numpy as np
from jaxtyping import Float, Int

from cryoai.errors import CryoAIError, InputError
from cryoai.io._compressed import UnpackedFile, bytes_at_most, is_compressed, open_file, open_plain
from cryoai.io._findings import Finding
from cryoai.io._mrc_header import looks_like_map, read_header
from cryoai.io.atomic import atomic_path

_RUN_LENGTH = 256
"""Images read at once at most, so that the raw buffer stays small beside the result."""


class StackReader:
    """The images of one MRC stack, read when asked for.

    Its sections are taken as images, even where they look like those of a density map (see `is_map`). The
    file is open only during a `read`, and is never mapped: the process holds no more than what it asked for,
    and readers may be shared between threads and kept by the thousand. A compressed stack is unpacked to a
    temporary file by the first `read`; only then it is known not to be truncated.

    Parameters
    ----------
    path
        ``.mrcs`` or ``.mrc`` of mode 0, 1, 2, 6 or 12, of either byte order; compressed with gzip or bzip2 too.

    Attributes
    ----------
    path
        The file.
    box_size
        Edge of the square images, px.
    pixel_size
        Å along x, from the header; None where it has none.
    pixel_size_y
        Å along y; another than ``pixel_size`` only where the header is wrong.
    is_map
        Whether the file looks like a density map rather than a stack of images.
    is_volume
        Whether the header calls the file a volume, as some programs do with stacks.

    Raises
    ------
    InputError
        Missing, not an MRC file, damaged, truncated, with images that are not square, or a stack of volumes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_plain(self.path) as stream:
            self._header = header = read_header(stream, self.path)
            there = max(0, bytes_at_most(stream) - header.offset)
            self._unpacked = UnpackedFile(self.path, header.length) if is_compressed(stream) else None
        count, rows, columns = header.shape
        if header.is_volume_stack:
            raise InputError(
                f"is a stack of volumes (space group {header.space_group}), not of images",
                file=path,
                advice="give particle images",
            )
        if rows != columns:
            raise InputError(f"has images of {columns} x {rows} px, which are not square", file=path)
        whole = there // header.section_bytes
        if whole < count:
            raise InputError(
                f"is truncated: it should hold {count} images and holds {whole} whole ones",
                file=path,
                advice="copy it again, or select the particles that are there",
            )
        self._count = count
        self.box_size = rows
        self.pixel_size: float | None = header.voxel_size_xyz[0] or None
        self.pixel_size_y: float | None = header.voxel_size_xyz[1] or None
        self.is_map = looks_like_map(self.path, header)
        self.is_volume = header.space_group == 1

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m box box"]:
        """The chosen images, as float32, in the order of ``indices`` (counted from 0; repeats are fine).

        Raises
        ------
        InputError
            An index is beyond the stack's end, or a compressed stack is damaged or truncated.
        CryoAIError
            There is no room to unpack it.
        """
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self._count):
            raise InputError(
                f"has {self._count} images, number {self._first_outside(indices) + 1} was asked for",
                file=self.path,
            )
        images = np.empty((len(indices), self.box_size, self.box_size), dtype=np.float32)
        order = np.argsort(indices, kind="stable")
        breaks = np.flatnonzero(np.diff(indices[order]) > 1) + 1
        with self._open() as stream:
            for run in np.split(order, breaks):
                for start in range(0, len(run), _RUN_LENGTH):
                    self._read_run(stream, indices, run[start : start + _RUN_LENGTH], images)
        return images

    def _open(self) -> AbstractContextManager[IO[bytes]]:
        return open_file(self.path) if self._unpacked is None else self._unpacked.open()

    def _first_outside(self, indices: np.ndarray) -> int:
        return int(indices[(indices < 0) | (indices >= self._count)][0])

    def _read_run(self, stream: IO[bytes], indices: np.ndarray, places: np.ndarray, images: np.ndarray) -> None:
        """Fill ``images[places]``, whose indices have no gaps, with a single sequential read."""
        first, last = int(indices[places[0]]), int(indices[places[-1]])
        wanted = (last - first + 1) * self.box_size**2
        # np.fromfile reads through the descriptor, so the position must be set on the file object itself.
        stream.seek(self._header.offset + first * self._header.section_bytes)
        raw = np.fromfile(stream, dtype=self._header.dtype, count=wanted)
        if len(raw) < wanted:
            raise InputError("became shorter while it was being read", file=self.path)
        images[places] = raw.reshape(-1, self.box_size, self.box_size)[indices[places] - first]


def describe_map(reader: StackReader) -> Finding:
    """What is wrong with a density map that was given as a stack."""
    return Finding(
        f"{reader.path.name} is a density map of {reader.box_size} x {reader.box_size} x {len(reader)} voxels, "
        "not a stack of images",
        "give particle images; if it does hold images, name it .mrcs",
        stops=True,
    )


class StackWriter:
    """Write a stack image by image; the file appears when the block ends with every image written.

    Parameters
    ----------
    path
        ``.mrcs`` file to write or replace.
    count
        Number of images that will be written.
    box_size
        Edge of the square images, px.
    pixel_size
        Å.
    mode
        2 for float32, 12 for float16 (half the disk; RELION 4 and newer, cryoSPARC 3.3 and newer).

    Raises
    ------
    CryoAIError
        At the end, if another number of images was written; on float16 overflow; when the disk is full.
    """

    def __init__(self, path: str | Path, count: int, box_size: int, pixel_size: float, mode: int = 2) -> None:
        if mode not in (2, 12):
            raise ValueError(f"stacks are written in mode 2 or 12, not {mode}")
        self.path, self.count, self.box_size, self.pixel_size = Path(path), count, box_size, pixel_size
        self._mode, self._dtype = mode, np.dtype("<f4" if mode == 2 else "<f2")
        self._written = 0
        self._cleanup = ExitStack()

    def __enter__(self) -> StackWriter:
        temporary = self._cleanup.enter_context(atomic_path(self.path))
        self._file = self._cleanup.enter_context(open(temporary, "wb"))
        self._file.write(self._make_header().tobytes())
        self._cleanup.push(self._check_count)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def write(self, images: Float[np.ndarray, "m {self.box_size} {self.box_size}"]) -> None:
        """Append images.

        Parameters
        ----------
        images
            (m, box, box), any float type.
        """
        with np.errstate(over="ignore"):
            data = np.ascontiguousarray(images, dtype=self._dtype)
        if self._mode == 12 and np.isinf(data).any():
            raise CryoAIError(f"{self.path}: the images exceed the range of float16; write float32 instead")
        self._file.write(data.data if data.size else b"")
        self._written += len(images)

    def _check_count(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None and self._written != self.count:
            raise CryoAIError(f"{self.path}: {self._written} images were written, {self.count} were announced")

    def _make_header(self) -> np.ndarray:
        header = np.zeros(1, dtype=mrcfile.dtypes.HEADER_DTYPE.newbyteorder("<"))
        fields = header[0]
        fields["nx"] = fields["ny"] = fields["mx"] = fields["my"] = self.box_size
        fields["nz"], fields["mode"] = self.count, self._mode
        # Space group 0 and a single section per unit cell mark a stack of images in MRC2014.
        fields["ispg"], fields["mz"] = 0, 1
        fields["cella"] = (self.box_size * self.pixel_size, self.box_size * self.pixel_size, self.pixel_size)
        fields["cellb"] = (90, 90, 90)
        fields["mapc"], fields["mapr"], fields["maps"] = 1, 2, 3
        # The standard's code for "statistics not computed": they are unknown until the last image.
        fields["dmin"], fields["dmax"], fields["dmean"], fields["rms"] = 0, -1, -2, -1
        fields["map"], fields["machst"], fields["nversion"] = b"MAP ", (0x44, 0x44, 0, 0), 20140
        fields["nlabl"] = 1
        fields["label"][0] = b"Written by cryoai"
        return header
