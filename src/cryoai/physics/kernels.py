"""Fused CPU kernels: slicing and insertion, one particle at a time.

Each does what a reference in plain torch does (`cryoai.physics.slicing`), without materialising the trilinear
neighbours. They release the GIL; `run_in_threads` spreads particles over threads, so that no second OpenMP runtime
competes with torch's. Particles with like views one after the other read and write the same part of the grid, which
is in the cache then: the grid of a box of 128 px is larger than it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import no_type_check

import numba
import numpy as np
import torch

from cryoai.physics.samples import (
    BLOCK,
    JIT,
    blend_neighbours,
    make_scratch,
    phase_tables,
    place_samples,
    ramp_samples,
    read_neighbours,
)


def runs_kernels(device: torch.device) -> bool:
    """Whether work on a device is done by these kernels; elsewhere the references in plain torch do it."""
    return device.type == "cpu"


def run_in_threads(work: Callable[[int, int, int], None], count: int, threads: int | None = None) -> None:
    """Call ``work(start, stop, thread)`` on consecutive ranges that cover ``count`` items."""
    threads = max(1, min(threads or torch.get_num_threads(), count))
    edges = [count * i // threads for i in range(threads + 1)]
    if threads == 1:
        work(0, count, 0)
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, edges[i], edges[i + 1], i) for i in range(threads)]:
            future.result()


@numba.njit(**JIT)
@no_type_check
def slice_kernel(grid, shape, rotations, kx, ky, padding, out):
    """Central slices: ``out`` (m, n, 2) from ``grid`` (points, 2) at ``rotations`` (m, 3, 3)."""
    index, place, near, value = make_scratch()
    for i in range(rotations.shape[0]):
        for start in range(0, kx.shape[0], BLOCK):
            count = min(BLOCK, kx.shape[0] - start)
            place_samples(rotations[i], kx, ky, start, count, padding, shape, index, place)
            read_neighbours(grid, shape, index, count, near)
            blend_neighbours(place, near, count, value)
            for n in range(count):
                out[i, start + n, 0], out[i, start + n, 1] = value[0, n], value[1, n]


@numba.njit(**JIT)
@no_type_check
def _spread(total, shape, index, place, value, count):
    """Add values (real part, imaginary part, mass) to the eight grid points about each sample."""
    row, plane = shape[2], shape[2] * shape[1]
    one = np.float32(1)
    for n in range(count):
        fx, fy, fz = place[0, n], place[1, n], place[2, n]
        re, im, mass = value[0, n], value[1, n], value[2, n]
        for corner in range(4):
            at = index[n] + (corner >> 1) * plane + (corner & 1) * row
            both = (fz if corner & 2 else one - fz) * (fy if corner & 1 else one - fy)
            left, right = both * (one - fx), both * fx
            total[at, 0] += left * re
            total[at, 1] += left * im
            total[at, 2] += left * mass
            total[at + 1, 0] += right * re
            total[at + 1, 1] += right * im
            total[at + 1, 2] += right * mass


@numba.njit(**JIT)
@no_type_check
def insert_kernel(
    total, shape, images, ctf, precision, rotations, shifts, image_of, weights, kx, ky, radius, padding
):  # fmt: skip
    """Add weighted images to ``total`` (points, 3): CTF · image · ramp* · precision, and CTF² · precision."""
    table_x = np.empty((radius + 1, 2), np.float32)
    table_y = np.empty((2 * radius + 1, 2), np.float32)
    index, place, _, value = make_scratch()
    for i in range(rotations.shape[0]):
        image, contrast = images[image_of[i]], ctf[image_of[i]]
        phase_tables(shifts[i, 0], shifts[i, 1], radius, table_x, table_y)
        for start in range(0, kx.shape[0], BLOCK):
            count = min(BLOCK, kx.shape[0] - start)
            place_samples(rotations[i], kx, ky, start, count, padding, shape, index, place)
            ramp_samples(kx, ky, start, count, radius, table_x, table_y, place)
            for n in range(count):
                j = start + n
                scale = weights[i] * precision[j] * contrast[j]
                ramp_re, ramp_im, y_re, y_im = place[7, n], place[8, n], image[j, 0], image[j, 1]
                value[0, n] = scale * (ramp_re * y_re + ramp_im * y_im)
                value[1, n] = place[6, n] * scale * (ramp_re * y_im - ramp_im * y_re)
                value[2, n] = scale * contrast[j]
            _spread(total, shape, index, place, value, count)
