"""Density maps in MRC files. Image stacks are in `cryoai.io.stack`, re-exported here."""

from __future__ import annotations

from io import BufferedIOBase
from pathlib import Path

import mrcfile
import numpy as np
from jaxtyping import Float

from cryoai.errors import CryoAIError, InputError
from cryoai.io._compressed import bytes_at_most, open_plain
from cryoai.io._mrc_header import MrcHeader, read_header
from cryoai.io.atomic import atomic_path
from cryoai.io.stack import StackReader, StackWriter
from cryoai.types import Map

__all__ = ["StackReader", "StackWriter", "read_map", "write_map"]

_ANISOTROPY = 1e-3
"""Largest relative difference of the voxel size between axes that is taken for rounding."""


def read_map(path: str | Path, *, voxel_size: float | None = None) -> Map:
    """Read a cubic density map.

    Parameters
    ----------
    path
        MRC or CCP4 file of mode 0, 1, 2, 6 or 12, of either byte order, with any axis order; ``.gz`` and
        ``.bz2`` too. The header's origin and start are ignored: the density is taken as centred.
    voxel_size
        Å; overrides the header's.

    Returns
    -------
    Map
        float32, axes zyx.

    Raises
    ------
    InputError
        Missing, truncated, not an MRC file, not cubic, not finite, or without a voxel size.
    """
    path = Path(path)
    with open_plain(path) as stream:
        header = read_header(stream, path)
        if len(set(header.shape)) != 1 or header.shape[0] < 2:
            sizes = " x ".join(str(header.shape[header.axes.index(axis)]) for axis in (1, 2, 3))
            raise InputError(f"is not a cubic map but {sizes} voxels", file=path, advice="crop or pad it to a cube")
        there = bytes_at_most(stream) - header.offset
        if there < header.length - header.offset:
            raise _truncated(header, max(0, there), path)
        density = _read_density(stream, header, path)
    return Map(density, float(voxel_size) if voxel_size else _isotropic_voxel_size(header, path))


def write_map(density_map: Map, path: str | Path) -> None:
    """Write a map as MRC mode 2 (float32), space group 1, origin 0; atomically.

    Parameters
    ----------
    density_map
        Axes zyx, voxel size in Å.
    path
        File to write or replace; its folder is made if need be.

    Raises
    ------
    CryoAIError
        The map is not finite, or the disk is full.
    """
    density = np.ascontiguousarray(density_map.density, dtype=np.float32)
    if not np.isfinite(density).all():
        raise CryoAIError(f"{path}: the map holds values that are not numbers, so it was not written")
    with atomic_path(path) as temporary, mrcfile.new(temporary, overwrite=True) as file:
        file.set_data(density)
        file.set_volume()
        file.voxel_size = density_map.voxel_size


def _read_density(stream: BufferedIOBase, header: MrcHeader, path: Path) -> Float[np.ndarray, "z y x"]:
    """The voxels as float32, section by section, so that little more than the result is in memory."""
    edge = header.shape[0]
    density = np.empty((edge, edge, edge), np.float32)
    # As stored: sections, rows, columns.
    stored = np.transpose(density, [(3, 2, 1).index(axis) for axis in header.axes])
    stream.seek(header.offset)
    for place in range(edge):
        raw = stream.read(header.section_bytes)
        if len(raw) < header.section_bytes:
            raise _truncated(header, place * header.section_bytes + len(raw), path)
        stored[place] = np.frombuffer(raw, header.dtype).reshape(edge, edge)
        if not np.isfinite(stored[place]).all():
            raise InputError("holds voxels that are not numbers (NaN or infinite)", file=path)
    return density


def _truncated(header: MrcHeader, there: int, path: Path) -> InputError:
    wanted = header.length - header.offset
    return InputError(
        f"is truncated: its header promises {wanted} bytes of data, {there} are there",
        file=path,
        advice="copy it again",
    )


def _isotropic_voxel_size(header: MrcHeader, path: Path) -> float:
    sizes = header.voxel_size_xyz
    if min(sizes) <= 0:
        raise InputError("has no voxel size in its header", file=path, advice="give the voxel size in Å")
    if max(sizes) - min(sizes) > _ANISOTROPY * max(sizes):
        text = ", ".join(f"{size:.4f}" for size in sizes)
        raise InputError(f"has voxels that are not cubes ({text} Å)", file=path, advice="resample it")
    return sizes[0]
