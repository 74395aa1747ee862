"""Shapes some or all of whose views look alike, as maps.

Sizes are shares of the box, of which each spans about half. Edges are one voxel wide.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cryoai.io import write_map
from cryoai.types import Map

_OUTER, _INNER = 0.25, 0.16
_TUBE_OUTER, _TUBE_INNER, _TUBE_LENGTH = 0.14, 0.07, 0.5
_DIMER_BALL = 0.125
_BALL = 0.2


def _hollow_sphere(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    radius = np.sqrt(x**2 + y**2 + z**2)
    return np.minimum(_OUTER - radius, radius - _INNER)


def _tube(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Along z, open at both ends."""
    radius = np.hypot(x, y)
    wall = np.minimum(_TUBE_OUTER - radius, radius - _TUBE_INNER)
    return np.minimum(wall, _TUBE_LENGTH / 2 - np.abs(z))


def _dimer(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Along x; the balls touch."""
    return _DIMER_BALL - np.sqrt((np.abs(x) - _DIMER_BALL) ** 2 + y**2 + z**2)


def _ball(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return _BALL - np.sqrt(x**2 + y**2 + z**2)


# Depths below the surface, in box lengths; negative outside.
_DEPTHS: dict[str, Callable[..., np.ndarray]] = {
    "hollow sphere": _hollow_sphere, "tube": _tube, "dimer": _dimer, "ball": _ball,
}  # fmt: skip
SHAPES = tuple(_DEPTHS)


def make_shape(name: str, box: int) -> np.ndarray:
    """(box, box, box) float32, zyx: 1 inside, 0 outside."""
    axis = (np.arange(box) - box // 2) / box
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.clip(_DEPTHS[name](x, y, z) * box + 0.5, 0, 1).astype(np.float32)


def write_shape(name: str, box: int, voxel_size: float, path: Path) -> None:
    """A shape as an MRC file; voxels in Å."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_map(Map(make_shape(name, box), voxel_size), path)
