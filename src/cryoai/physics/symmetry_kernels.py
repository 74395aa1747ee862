"""Sums on a grid read at turned points, fused for the CPU; `cryoai.physics.symmetrize` defines what it computes."""

from __future__ import annotations

import math
from typing import no_type_check

import numba
import numpy as np

from cryoai.physics.samples import JIT


@numba.njit(**JIT)
@no_type_check
def add_turned_kernel(grid, shape, rotations, first_plane, last_plane, out):
    """Add to ``out`` (points, 3), in some planes, what ``grid`` (points, 3) holds at each turned point.

    The third column is real; of the first two the second changes its sign where the Friedel mate is read. Points
    whose neighbours may lie outside the grid are left as they are.
    """
    size_z, size_y, size_x = shape
    row, plane = size_x, size_x * size_y
    reach = (size_x - 2) ** 2
    one = np.float32(1)
    for iz in range(first_plane, last_plane):
        z = iz - size_z // 2
        for iy in range(size_y):
            y = iy - size_y // 2
            for x in range(size_x):
                if x * x + y * y + z * z > reach:
                    continue
                at = iz * plane + iy * row + x
                for g in range(rotations.shape[0]):
                    px = rotations[g, 0, 0] * x + rotations[g, 0, 1] * y + rotations[g, 0, 2] * z
                    py = rotations[g, 1, 0] * x + rotations[g, 1, 1] * y + rotations[g, 1, 2] * z
                    pz = rotations[g, 2, 0] * x + rotations[g, 2, 1] * y + rotations[g, 2, 2] * z
                    sign = one
                    if px < 0:
                        px, py, pz, sign = -px, -py, -pz, -one
                    floor_x, floor_y, floor_z = math.floor(px), math.floor(py), math.floor(pz)
                    fx, fy, fz = px - floor_x, py - floor_y, pz - floor_z
                    index = (int(floor_z) + size_z // 2) * plane + (int(floor_y) + size_y // 2) * row + int(floor_x)
                    for corner in range(8):
                        w = (fz if corner & 4 else one - fz) * (fy if corner & 2 else one - fy)
                        w *= fx if corner & 1 else one - fx
                        near = index + (corner >> 2) * plane + ((corner >> 1) & 1) * row + (corner & 1)
                        out[at, 0] += w * grid[near, 0]
                        out[at, 1] += sign * w * grid[near, 1]
                        out[at, 2] += w * grid[near, 2]
