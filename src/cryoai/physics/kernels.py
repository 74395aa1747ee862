"""Fused CPU kernels: slicing, insertion, scoring and local pose refinement, one particle at a time.

Each does what a reference in plain torch does (`cryoai.physics.slicing`, `cryoai.poses.local`), without
materialising the trilinear neighbours. They release the GIL; `run_in_threads` spreads particles over threads, so
that no second OpenMP runtime competes with torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, no_type_check

import numba
import numpy as np
import torch

JIT: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
"""How kernels are compiled. `no_type_check` keeps the tests' shape checker from wrapping what numba compiles."""


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


@numba.njit(inline="always")
@no_type_check
def _locate(rotation, kx, ky, padding, size_z, size_y, size_x):
    """Grid index below a sample, its fractions, the sample itself, and +1 or -1 for a read at the Friedel mate."""
    x = padding * (rotation[0, 0] * kx + rotation[0, 1] * ky)
    y = padding * (rotation[1, 0] * kx + rotation[1, 1] * ky)
    z = padding * (rotation[2, 0] * kx + rotation[2, 1] * ky)
    sign = np.float32(1.0)
    if x < 0:
        x, y, z, sign = -x, -y, -z, np.float32(-1.0)
    floor_x, floor_y, floor_z = math.floor(x), math.floor(y), math.floor(z)
    index = ((int(floor_z) + size_z // 2) * size_y + int(floor_y) + size_y // 2) * size_x + int(floor_x)
    return index, x - floor_x, y - floor_y, z - floor_z, x, y, z, sign


@numba.njit(inline="always")
@no_type_check
def _read(grid, index, fx, fy, fz, size_y, size_x):
    """Trilinear value at a sample; ``grid`` is (points, 2)."""
    row, plane = size_x, size_x * size_y
    gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
    w00, w01, w10, w11 = gz * gy, gz * fy, fz * gy, fz * fy
    a, b, c, d = index, index + row, index + plane, index + plane + row
    re = (
        w00 * (gx * grid[a, 0] + fx * grid[a + 1, 0])
        + w01 * (gx * grid[b, 0] + fx * grid[b + 1, 0])
        + w10 * (gx * grid[c, 0] + fx * grid[c + 1, 0])
        + w11 * (gx * grid[d, 0] + fx * grid[d + 1, 0])
    )
    im = (
        w00 * (gx * grid[a, 1] + fx * grid[a + 1, 1])
        + w01 * (gx * grid[b, 1] + fx * grid[b + 1, 1])
        + w10 * (gx * grid[c, 1] + fx * grid[c + 1, 1])
        + w11 * (gx * grid[d, 1] + fx * grid[d + 1, 1])
    )
    return re, im


@numba.njit(**JIT)
@no_type_check
def slice_kernel(grid, shape, rotations, kx, ky, padding, out):
    """Central slices: ``out`` (m, n, 2) from ``grid`` (points, 2) at ``rotations`` (m, 3, 3)."""
    size_z, size_y, size_x = shape
    for i in range(rotations.shape[0]):
        for j in range(kx.shape[0]):
            index, fx, fy, fz, _, _, _, sign = _locate(rotations[i], kx[j], ky[j], padding, size_z, size_y, size_x)
            re, im = _read(grid, index, fx, fy, fz, size_y, size_x)
            out[i, j, 0] = re
            out[i, j, 1] = sign * im


@numba.njit(inline="always")
@no_type_check
def _phase_tables(shift_x, shift_y, radius, table_x, table_y):
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
def insert_kernel(
    total,
    shape,
    images,
    ctf,
    precision,
    rotations,
    shifts,
    image_of,
    weights,
    kx,
    ky,
    radius,
    padding,
):
    """Add weighted images to ``total`` (points, 3): CTF · image · ramp* · precision, and CTF² · precision."""
    size_z, size_y, size_x = shape
    table_x = np.empty((radius + 1, 2), np.float32)
    table_y = np.empty((2 * radius + 1, 2), np.float32)
    row, plane = size_x, size_x * size_y
    for i in range(rotations.shape[0]):
        image = image_of[i]
        _phase_tables(shifts[i, 0], shifts[i, 1], radius, table_x, table_y)
        for j in range(kx.shape[0]):
            index, fx, fy, fz, _, _, _, sign = _locate(rotations[i], kx[j], ky[j], padding, size_z, size_y, size_x)
            ix, iy = int(kx[j]), int(ky[j]) + radius
            ramp_re = table_x[ix, 0] * table_y[iy, 0] - table_x[ix, 1] * table_y[iy, 1]
            ramp_im = table_x[ix, 0] * table_y[iy, 1] + table_x[ix, 1] * table_y[iy, 0]
            scale = weights[i] * precision[j] * ctf[image, j]
            y_re, y_im = images[image, j, 0], images[image, j, 1]
            re = scale * (ramp_re * y_re + ramp_im * y_im)
            im = sign * scale * (ramp_re * y_im - ramp_im * y_re)
            mass = scale * ctf[image, j]
            gx, gy, gz = np.float32(1) - fx, np.float32(1) - fy, np.float32(1) - fz
            for corner in range(8):
                at = index + (corner >> 2) * plane + ((corner >> 1) & 1) * row + (corner & 1)
                w = (fz if corner & 4 else gz) * (fy if corner & 2 else gy) * (fx if corner & 1 else gx)
                total[at, 0] += w * re
                total[at, 1] += w * im
                total[at, 2] += w * mass


@numba.njit(**JIT)
@no_type_check
def score_kernel(
    grid,
    shape,
    images,
    ctf,
    precision,
    rotations,
    shifts,
    image_of,
    kx,
    ky,
    radius,
    padding,
    out,
):
    """Weighted squared residual of each hypothesis: ``Σ precision |image - CTF · ramp · slice|²`` into ``out``."""
    size_z, size_y, size_x = shape
    table_x = np.empty((radius + 1, 2), np.float32)
    table_y = np.empty((2 * radius + 1, 2), np.float32)
    for i in range(rotations.shape[0]):
        image = image_of[i]
        _phase_tables(shifts[i, 0], shifts[i, 1], radius, table_x, table_y)
        cost = 0.0
        for j in range(kx.shape[0]):
            index, fx, fy, fz, _, _, _, sign = _locate(rotations[i], kx[j], ky[j], padding, size_z, size_y, size_x)
            re, im = _read(grid, index, fx, fy, fz, size_y, size_x)
            im *= sign
            ix, iy = int(kx[j]), int(ky[j]) + radius
            a_re = ctf[image, j] * (table_x[ix, 0] * table_y[iy, 0] - table_x[ix, 1] * table_y[iy, 1])
            a_im = ctf[image, j] * (table_x[ix, 0] * table_y[iy, 1] + table_x[ix, 1] * table_y[iy, 0])
            d_re = a_re * re - a_im * im - images[image, j, 0]
            d_im = a_re * im + a_im * re - images[image, j, 1]
            cost += precision[j] * (d_re * d_re + d_im * d_im)
        out[i] = cost


@numba.njit(**JIT)
@no_type_check
def _normal_equations(
    grid,
    shape,
    image,
    ctf,
    precision,
    rotation,
    shift,
    kx,
    ky,
    radius,
    padding,
    table_x,
    table_y,
    hessian,
    gradient,
):
    """Cost, and ``Jᵀ W J`` and ``Jᵀ W r`` over (rotation vector, shift), of one particle.

    The shift's unit is 1 / (2π) box lengths, so that its derivative of the ramp is ``-i k``.
    """
    size_z, size_y, size_x = shape
    row, plane = size_x, size_x * size_y
    _phase_tables(shift[0], shift[1], radius, table_x, table_y)
    cost = 0.0
    h = np.zeros(15, np.float64)
    g = np.zeros(5, np.float64)
    jr = np.empty(5, np.float32)
    ji = np.empty(5, np.float32)
    one = np.float32(1)
    for j in range(kx.shape[0]):
        index, fx, fy, fz, x, y, z, sign = _locate(rotation, kx[j], ky[j], padding, size_z, size_y, size_x)
        gx, gy, gz = one - fx, one - fy, one - fz
        a, b, c, d = index, index + row, index + plane, index + plane + row
        # Real part: blend along x, then y, then z; differences give the gradient on the way.
        p0, p1, p2, p3 = grid[a, 0], grid[b, 0], grid[c, 0], grid[d, 0]
        q0, q1, q2, q3 = grid[a + 1, 0], grid[b + 1, 0], grid[c + 1, 0], grid[d + 1, 0]
        x0, x1, x2, x3 = gx * p0 + fx * q0, gx * p1 + fx * q1, gx * p2 + fx * q2, gx * p3 + fx * q3
        y0, y1 = gy * x0 + fy * x1, gy * x2 + fy * x3
        re = gz * y0 + fz * y1
        gz_re = y1 - y0
        gy_re = gz * (x1 - x0) + fz * (x3 - x2)
        gx_re = gz * (gy * (q0 - p0) + fy * (q1 - p1)) + fz * (gy * (q2 - p2) + fy * (q3 - p3))
        # Imaginary part.
        p0, p1, p2, p3 = grid[a, 1], grid[b, 1], grid[c, 1], grid[d, 1]
        q0, q1, q2, q3 = grid[a + 1, 1], grid[b + 1, 1], grid[c + 1, 1], grid[d + 1, 1]
        x0, x1, x2, x3 = gx * p0 + fx * q0, gx * p1 + fx * q1, gx * p2 + fx * q2, gx * p3 + fx * q3
        y0, y1 = gy * x0 + fy * x1, gy * x2 + fy * x3
        im = sign * (gz * y0 + fz * y1)
        gz_im = sign * (y1 - y0)
        gy_im = sign * (gz * (x1 - x0) + fz * (x3 - x2))
        gx_im = sign * (gz * (gy * (q0 - p0) + fy * (q1 - p1)) + fz * (gy * (q2 - p2) + fy * (q3 - p3)))
        ix, iy = int(kx[j]), int(ky[j]) + radius
        a_re = ctf[j] * (table_x[ix, 0] * table_y[iy, 0] - table_x[ix, 1] * table_y[iy, 1])
        a_im = ctf[j] * (table_x[ix, 0] * table_y[iy, 1] + table_x[ix, 1] * table_y[iy, 0])
        m_re, m_im = a_re * re - a_im * im, a_re * im + a_im * re
        r_re, r_im = m_re - image[j, 0], m_im - image[j, 1]
        # d slice / d ω = p × ∇V; times the ramp and the CTF.
        w0_re, w0_im = y * gz_re - z * gy_re, y * gz_im - z * gy_im
        w1_re, w1_im = z * gx_re - x * gz_re, z * gx_im - x * gz_im
        w2_re, w2_im = x * gy_re - y * gx_re, x * gy_im - y * gx_im
        jr[0], ji[0] = a_re * w0_re - a_im * w0_im, a_re * w0_im + a_im * w0_re
        jr[1], ji[1] = a_re * w1_re - a_im * w1_im, a_re * w1_im + a_im * w1_re
        jr[2], ji[2] = a_re * w2_re - a_im * w2_im, a_re * w2_im + a_im * w2_re
        jr[3], ji[3] = kx[j] * m_im, -kx[j] * m_re
        jr[4], ji[4] = ky[j] * m_im, -ky[j] * m_re
        weight = precision[j]
        cost += weight * (r_re * r_re + r_im * r_im)
        at = 0
        for s in range(5):
            ws_re, ws_im = weight * jr[s], weight * ji[s]
            g[s] += ws_re * r_re + ws_im * r_im
            for t in range(s, 5):
                h[at] += ws_re * jr[t] + ws_im * ji[t]
                at += 1
    at = 0
    for s in range(5):
        gradient[s] = g[s]
        for t in range(s, 5):
            hessian[s, t] = h[at]
            hessian[t, s] = h[at]
            at += 1
    return cost


@numba.njit(**JIT)
@no_type_check
def _rotate_by_vector(vector, rotation, out):
    """``out = exp([vector]×) rotation`` (Rodrigues)."""
    angle = math.sqrt(vector[0] ** 2 + vector[1] ** 2 + vector[2] ** 2)
    if angle < 1e-12:
        out[:] = rotation
        return
    s, c = math.sin(angle), math.cos(angle)
    u, v, w = vector[0] / angle, vector[1] / angle, vector[2] / angle
    d = 1 - c
    for col in range(3):
        x, y, z = rotation[0, col], rotation[1, col], rotation[2, col]
        dot = u * x + v * y + w * z
        out[0, col] = c * x + s * (v * z - w * y) + d * dot * u
        out[1, col] = c * y + s * (w * x - u * z) + d * dot * v
        out[2, col] = c * z + s * (u * y - v * x) + d * dot * w


@numba.njit(**JIT)
@no_type_check
def _solve_damped(hessian, gradient, damping, step):
    """Newton step ``-(H + damping · diag H)⁻¹ g`` by Cholesky; False when the matrix is not positive."""
    n = gradient.shape[0]
    lower = np.empty((n, n))
    for s in range(n):
        for t in range(s + 1):
            value = hessian[s, t]
            if s == t:
                value += damping * hessian[s, s] + 1e-12
            for k in range(t):
                value -= lower[s, k] * lower[t, k]
            if s == t:
                if value <= 0:
                    return False
                lower[s, s] = math.sqrt(value)
            else:
                lower[s, t] = value / lower[t, t]
    for s in range(n):
        value = -gradient[s]
        for k in range(s):
            value -= lower[s, k] * step[k]
        step[s] = value / lower[s, s]
    for s in range(n - 1, -1, -1):
        value = step[s]
        for k in range(s + 1, n):
            value -= lower[k, s] * step[k]
        step[s] = value / lower[s, s]
    return True


@numba.njit(**JIT)
@no_type_check
def refine_kernel(
    grid, shape, images, ctf, precision, rotations, shifts, image_of, kx, ky, radius, padding,
    iterations, max_angle, max_shift, costs, hessians,
):  # fmt: skip
    """Levenberg-Marquardt over (rotation vector, shift) of each hypothesis, in place.

    ``rotations`` (m, 3, 3) and ``shifts`` (m, 2, box lengths) are float64 and updated; ``costs`` (m,) and
    ``hessians`` (m, 5, 5; the shift's unit is 1/2π box lengths) are those at the final pose. A step is at most
    ``max_angle`` radians and ``max_shift`` box lengths.
    """
    table_x = np.empty((radius + 1, 2), np.float32)
    table_y = np.empty((2 * radius + 1, 2), np.float32)
    hessian, gradient, step = np.empty((5, 5)), np.empty(5), np.empty(5)
    trial_rotation, trial_shift = np.empty((3, 3)), np.empty(2)
    rotation32 = np.empty((3, 3), np.float32)
    for i in range(rotations.shape[0]):
        trial_rotation[:] = rotations[i]
        trial_shift[:] = shifts[i]
        accepted_gradient = np.zeros(5)
        costs[i] = np.inf
        hessians[i] = 0.0
        damping, angle = 1e-3, 1.0
        for _ in range(iterations + 1):
            rotation32[:] = trial_rotation
            cost = _normal_equations(
                grid, shape, images[image_of[i]], ctf[image_of[i]], precision, rotation32, trial_shift,
                kx, ky, radius, padding, table_x, table_y, hessian, gradient,
            )  # fmt: skip
            if cost <= costs[i]:
                gain = costs[i] - cost
                costs[i] = cost
                rotations[i] = trial_rotation
                shifts[i] = trial_shift
                hessians[i] = hessian
                accepted_gradient[:] = gradient
                damping = max(damping * 0.2, 1e-6)
                # A gain below float32's resolution of the cost: nothing more to be had.
                if gain < 1e-6 * cost and angle < 1e-4:
                    break
            else:
                damping *= 10
            if not _solve_damped(hessians[i], accepted_gradient, damping, step):
                break
            angle = math.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2)
            # Images or a noise that are not numbers would send the samples anywhere.
            if not math.isfinite(angle):
                break
            if angle > max_angle:
                step[:3] *= max_angle / angle
            length = math.sqrt(step[3] ** 2 + step[4] ** 2) / (2 * math.pi)
            if length > max_shift:
                step[3:] *= max_shift / length
            _rotate_by_vector(step[:3], rotations[i], trial_rotation)
            trial_shift[0] = shifts[i, 0] + step[3] / (2 * math.pi)
            trial_shift[1] = shifts[i, 1] + step[4] / (2 * math.pi)
