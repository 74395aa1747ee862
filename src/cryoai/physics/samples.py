"""Samples of slices, a block at a time: where they lie on a padded grid, and what is around them.

Each step is a loop of its own over a block, so that all but the reading of neighbours runs in the vector unit, and
a block stays in the first cache.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numba
import numpy as np

JIT: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""How kernels are compiled. `no_type_check` keeps the tests' shape checker from wrapping what numba compiles."""

BLOCK = 64
"""Samples at once."""


@numba.njit(**JIT)
@no_type_check
def make_scratch():
    """Room for a block: grid indices, places, neighbours, and what is made of them."""
    return (
        np.empty(BLOCK, np.int32),
        np.empty((9, BLOCK), np.float32),
        np.empty((16, BLOCK), np.float32),
        np.empty((12, BLOCK), np.float32),
    )


@numba.njit(**JIT)
@no_type_check
def place_samples(rotation, kx, ky, start, count, padding, shape, index, place):
    """Where samples from ``start`` on lie: the grid point below each, and rows of ``place``.

    These are its fractions (x, y, z), the sample itself (x, y, z), and +1, or -1 for a read at the Friedel mate.
    """
    size_z, size_y, size_x = shape
    r00, r10, r20 = padding * rotation[0, 0], padding * rotation[1, 0], padding * rotation[2, 0]
    r01, r11, r21 = padding * rotation[0, 1], padding * rotation[1, 1], padding * rotation[2, 1]
    half_y, half_z = size_y // 2, size_z // 2
    for n in range(count):
        u, v = kx[start + n], ky[start + n]
        x = r00 * u + r01 * v
        sign = np.float32(-1) if x < 0 else np.float32(1)
        x, y, z = sign * x, sign * (r10 * u + r11 * v), sign * (r20 * u + r21 * v)
        low_x, low_y, low_z = np.floor(x), np.floor(y), np.floor(z)
        index[n] = ((np.int32(low_z) + half_z) * size_y + np.int32(low_y) + half_y) * size_x + np.int32(low_x)
        place[0, n], place[1, n], place[2, n] = x - low_x, y - low_y, z - low_z
        place[3, n], place[4, n], place[5, n], place[6, n] = x, y, z, sign


@numba.njit(**JIT)
@no_type_check
def read_neighbours(grid, shape, index, count, near):
    """The eight grid points about each sample: rows of ``near`` are (z, y, x, part)."""
    row, plane = shape[2], shape[2] * shape[1]
    for n in range(count):
        a = index[n]
        b, c = a + row, a + plane
        d = c + row
        near[0, n], near[1, n], near[2, n], near[3, n] = grid[a, 0], grid[a, 1], grid[a + 1, 0], grid[a + 1, 1]
        near[4, n], near[5, n], near[6, n], near[7, n] = grid[b, 0], grid[b, 1], grid[b + 1, 0], grid[b + 1, 1]
        near[8, n], near[9, n], near[10, n], near[11, n] = grid[c, 0], grid[c, 1], grid[c + 1, 0], grid[c + 1, 1]
        near[12, n], near[13, n], near[14, n], near[15, n] = grid[d, 0], grid[d, 1], grid[d + 1, 0], grid[d + 1, 1]


@numba.njit(**JIT)
@no_type_check
def blend_neighbours(place, near, count, value):
    """The trilinear value at each sample: real and imaginary parts in the rows of ``value``."""
    for n in range(count):
        fx, fy, fz = place[0, n], place[1, n], place[2, n]
        p0, p1, p2, p3 = near[0, n], near[4, n], near[8, n], near[12, n]
        x0, x1 = p0 + fx * (near[2, n] - p0), p1 + fx * (near[6, n] - p1)
        x2, x3 = p2 + fx * (near[10, n] - p2), p3 + fx * (near[14, n] - p3)
        y0, y1 = x0 + fy * (x1 - x0), x2 + fy * (x3 - x2)
        value[0, n] = y0 + fz * (y1 - y0)
        p0, p1, p2, p3 = near[1, n], near[5, n], near[9, n], near[13, n]
        x0, x1 = p0 + fx * (near[3, n] - p0), p1 + fx * (near[7, n] - p1)
        x2, x3 = p2 + fx * (near[11, n] - p2), p3 + fx * (near[15, n] - p3)
        y0, y1 = x0 + fy * (x1 - x0), x2 + fy * (x3 - x2)
        value[1, n] = place[6, n] * (y0 + fz * (y1 - y0))


@numba.njit(inline="always")
@no_type_check
def phase_tables(shift_x, shift_y, radius, table_x, table_y):
    """``exp(-2πi k s)`` for k = 0…radius along x and -radius…radius along y; shifts in box lengths.

    The shells are integers, so the ramp of a whole image is a product of two short tables.
    """
    for k in range(radius + 1):
        table_x[k, 0] = math.cos(2 * math.pi * k * shift_x)
        table_x[k, 1] = -math.sin(2 * math.pi * k * shift_x)
    for k in range(-radius, radius + 1):
        table_y[k + radius, 0] = math.cos(2 * math.pi * k * shift_y)
        table_y[k + radius, 1] = -math.sin(2 * math.pi * k * shift_y)


@numba.njit(**JIT)
@no_type_check
def ramp_samples(kx, ky, start, count, radius, table_x, table_y, place):
    """``exp(-2πi k · shift)`` of samples into rows 7 and 8 of ``place``."""
    for n in range(count):
        ix, iy = int(kx[start + n]), int(ky[start + n]) + radius
        a, b, c, d = table_x[ix, 0], table_x[ix, 1], table_y[iy, 0], table_y[iy, 1]
        place[7, n], place[8, n] = a * c - b * d, a * d + b * c
