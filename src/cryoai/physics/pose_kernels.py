"""Fused CPU kernels: scoring and local refinement of poses, one particle at a time.

Each does what a reference in plain torch does (`cryoai.poses.local`), by blocks of `cryoai.physics.samples`.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numba
import numpy as np

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

SETTLED = 0.1
"""Nats: a step that promises less is taken unseen, and is the last."""


@numba.njit(**JIT)
@no_type_check
def _make_model(place, ctf, root, start, count, model):
    """Slices, the first two rows of ``model``, become CTF · ramp · slice, times ``root``."""
    for n in range(count):
        re, im = model[0, n], model[1, n]
        scale = root[start + n] * ctf[start + n]
        a_re, a_im = scale * place[7, n], scale * place[8, n]
        model[0, n], model[1, n] = a_re * re - a_im * im, a_re * im + a_im * re


@numba.njit(**JIT)
@no_type_check
def score_kernel(
    grid, shape, images, ctf, root, rotations, shifts, image_of, kx, ky, radius, padding, out
):  # fmt: skip
    """Cost, product and power of each hypothesis into ``out`` (m, 3), all over the noise.

    ``Σ |image - model|²``, ``Σ Re(image · model*)`` and ``Σ |model|²`` of the model ``CTF · ramp · slice``;
    ``root`` (n,) is the square root of the precision.
    """
    table_x = np.empty((radius + 1, 2), np.float32)
    table_y = np.empty((2 * radius + 1, 2), np.float32)
    index, place, near, model = make_scratch()
    for i in range(rotations.shape[0]):
        image, contrast = images[image_of[i]], ctf[image_of[i]]
        phase_tables(shifts[i, 0], shifts[i, 1], radius, table_x, table_y)
        cost, product, power = 0.0, 0.0, 0.0
        for start in range(0, kx.shape[0], BLOCK):
            count = min(BLOCK, kx.shape[0] - start)
            place_samples(rotations[i], kx, ky, start, count, padding, shape, index, place)
            read_neighbours(grid, shape, index, count, near)
            ramp_samples(kx, ky, start, count, radius, table_x, table_y, place)
            blend_neighbours(place, near, count, model)
            _make_model(place, contrast, root, start, count, model)
            squares, common, own = np.float32(0), np.float32(0), np.float32(0)
            for n in range(count):
                m_re, m_im = model[0, n], model[1, n]
                y_re, y_im = root[start + n] * image[start + n, 0], root[start + n] * image[start + n, 1]
                squares += (m_re - y_re) * (m_re - y_re) + (m_im - y_im) * (m_im - y_im)
                common += m_re * y_re + m_im * y_im
                own += m_re * m_re + m_im * m_im
            cost += squares
            product += common
            power += own
        out[i, 0], out[i, 1], out[i, 2] = cost, product, power


@numba.njit(**JIT)
@no_type_check
def _derivatives(place, near, image, ctf, root, kx, ky, start, count, rows):
    """Derivatives of the model over (rotation vector, shift) and the residual, times ``root``, of samples.

    The shift's unit is 1 / (2π) box lengths, so that its derivative of the ramp is ``-i k``. Rows of ``rows`` hold
    real and imaginary parts in turn.
    """
    one = np.float32(1)
    for n in range(count):
        j = start + n
        fx, fy, fz = place[0, n], place[1, n], place[2, n]
        x, y, z, sign = place[3, n], place[4, n], place[5, n], place[6, n]
        gy, gz = one - fy, one - fz
        # Real part: blend along x, then y, then z; differences give the gradient on the way.
        p0, p1, p2, p3 = near[0, n], near[4, n], near[8, n], near[12, n]
        d0, d1, d2, d3 = near[2, n] - p0, near[6, n] - p1, near[10, n] - p2, near[14, n] - p3
        x0, x1, x2, x3 = p0 + fx * d0, p1 + fx * d1, p2 + fx * d2, p3 + fx * d3
        y0, y1 = x0 + fy * (x1 - x0), x2 + fy * (x3 - x2)
        re = y0 + fz * (y1 - y0)
        gz_re = y1 - y0
        gy_re = gz * (x1 - x0) + fz * (x3 - x2)
        gx_re = gz * (gy * d0 + fy * d1) + fz * (gy * d2 + fy * d3)
        # Imaginary part.
        p0, p1, p2, p3 = near[1, n], near[5, n], near[9, n], near[13, n]
        d0, d1, d2, d3 = near[3, n] - p0, near[7, n] - p1, near[11, n] - p2, near[15, n] - p3
        x0, x1, x2, x3 = p0 + fx * d0, p1 + fx * d1, p2 + fx * d2, p3 + fx * d3
        y0, y1 = x0 + fy * (x1 - x0), x2 + fy * (x3 - x2)
        im = sign * (y0 + fz * (y1 - y0))
        gz_im = sign * (y1 - y0)
        gy_im = sign * (gz * (x1 - x0) + fz * (x3 - x2))
        gx_im = sign * (gz * (gy * d0 + fy * d1) + fz * (gy * d2 + fy * d3))
        scale = root[j] * ctf[j]
        a_re, a_im = scale * place[7, n], scale * place[8, n]
        m_re, m_im = a_re * re - a_im * im, a_re * im + a_im * re
        # d slice / d ω = p × ∇V; times the ramp and the CTF.
        w_re, w_im = y * gz_re - z * gy_re, y * gz_im - z * gy_im
        rows[0, n], rows[1, n] = a_re * w_re - a_im * w_im, a_re * w_im + a_im * w_re
        w_re, w_im = z * gx_re - x * gz_re, z * gx_im - x * gz_im
        rows[2, n], rows[3, n] = a_re * w_re - a_im * w_im, a_re * w_im + a_im * w_re
        w_re, w_im = x * gy_re - y * gx_re, x * gy_im - y * gx_im
        rows[4, n], rows[5, n] = a_re * w_re - a_im * w_im, a_re * w_im + a_im * w_re
        rows[6, n], rows[7, n] = kx[j] * m_im, -kx[j] * m_re
        rows[8, n], rows[9, n] = ky[j] * m_im, -ky[j] * m_re
        rows[10, n], rows[11, n] = m_re - root[j] * image[j, 0], m_im - root[j] * image[j, 1]


@numba.njit(**JIT)
@no_type_check
def _add_products(rows, count, total):
    """Sums over samples of the products of all pairs of ``rows``, added to ``total`` (21,)."""
    at = 0
    for s in range(6):
        for t in range(s, 6):
            value = np.float32(0)
            for n in range(count):
                value += rows[2 * s, n] * rows[2 * t, n] + rows[2 * s + 1, n] * rows[2 * t + 1, n]
            total[at] += value
            at += 1


@numba.njit(**JIT)
@no_type_check
def _normal_equations(
    grid, shape, image, ctf, root, rotation, shift, kx, ky, radius, padding, table_x, table_y,
    index, place, near, rows, total, hessian, gradient,
):  # fmt: skip
    """Cost, and ``Jᵀ W J`` and ``Jᵀ W r`` over (rotation vector, shift), of one particle."""
    phase_tables(shift[0], shift[1], radius, table_x, table_y)
    total[:] = 0.0
    for start in range(0, kx.shape[0], BLOCK):
        count = min(BLOCK, kx.shape[0] - start)
        place_samples(rotation, kx, ky, start, count, padding, shape, index, place)
        read_neighbours(grid, shape, index, count, near)
        ramp_samples(kx, ky, start, count, radius, table_x, table_y, place)
        _derivatives(place, near, image, ctf, root, kx, ky, start, count, rows)
        _add_products(rows, count, total)
    at = 0
    for s in range(5):
        for t in range(s, 5):
            hessian[s, t], hessian[t, s] = total[at], total[at]
            at += 1
        gradient[s] = total[at]
        at += 1
    return total[at]


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
    grid, shape, images, ctf, root, rotations, shifts, image_of, kx, ky, radius, padding,
    iterations, max_angle, max_shift, costs, hessians,
):  # fmt: skip
    """Levenberg-Marquardt over (rotation vector, shift) of each hypothesis, in place.

    ``rotations`` (m, 3, 3) and ``shifts`` (m, 2, box lengths) are float64 and updated; ``costs`` (m,) and
    ``hessians`` (m, 5, 5; the shift's unit is 1/2π box lengths) are those at the final pose, or one step of less
    than `SETTLED` nats before it. A step is at most ``max_angle`` radians and ``max_shift`` box lengths.
    """
    table_x = np.empty((radius + 1, 2), np.float32)
    table_y = np.empty((2 * radius + 1, 2), np.float32)
    index, place, near, rows = make_scratch()
    total = np.empty(21)
    hessian, gradient, step = np.empty((5, 5)), np.empty(5), np.empty(5)
    trial_rotation, trial_shift = np.empty((3, 3)), np.empty(2)
    rotation32 = np.empty((3, 3), np.float32)
    for i in range(rotations.shape[0]):
        trial_rotation[:] = rotations[i]
        trial_shift[:] = shifts[i]
        accepted_gradient = np.zeros(5)
        costs[i] = np.inf
        hessians[i] = 0.0
        damping = 1e-3
        for iteration in range(iterations + 1):
            rotation32[:] = trial_rotation
            cost = _normal_equations(
                grid, shape, images[image_of[i]], ctf[image_of[i]], root, rotation32, trial_shift,
                kx, ky, radius, padding, table_x, table_y, index, place, near, rows, total, hessian, gradient,
            )  # fmt: skip
            if cost <= costs[i]:
                costs[i] = cost
                rotations[i] = trial_rotation
                shifts[i] = trial_shift
                hessians[i] = hessian
                accepted_gradient[:] = gradient
                damping = max(damping * 0.2, 1e-6)
            else:
                damping *= 10
            if iteration == iterations or not _solve_damped(hessians[i], accepted_gradient, damping, step):
                break
            angle = math.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2)
            # Images or a noise that are not numbers would send the samples anywhere.
            if not math.isfinite(angle):
                break
            promised = 0.0
            for s in range(5):
                promised -= step[s] * accepted_gradient[s]
            if angle > max_angle:
                step[:3] *= max_angle / angle
            length = math.sqrt(step[3] ** 2 + step[4] ** 2) / (2 * math.pi)
            if length > max_shift:
                step[3:] *= max_shift / length
            _rotate_by_vector(step[:3], rotations[i], trial_rotation)
            trial_shift[0] = shifts[i, 0] + step[3] / (2 * math.pi)
            trial_shift[1] = shifts[i, 1] + step[4] / (2 * math.pi)
            if promised < SETTLED and angle <= max_angle and length <= max_shift:
                rotations[i] = trial_rotation
                shifts[i] = trial_shift
                break
