"""The posterior of an image over all views, in-plane angles and shifts: the CPU's fused kernel.

What it does is written in plain torch in `cryoai.poses.posterior`, which the tests compare it with. Directions are
the lanes of the vector unit, in blocks of `LANES`; the scores of a block are dropped while they are in the cache
where all of them are negligible.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numba
import numpy as np

from cryoai.physics.samples import JIT

LANES = 32
"""Directions in a block."""
NEGLIGIBLE = np.float32(14.0)
"""Nats below the best pose from which a block of poses is left out: e⁻¹⁴ of its weight."""


@numba.njit(inline="always")
@no_type_check
def _exp(x):
    """exp(x) for x ≤ 0 to 1e-4, in operations that vectorise: (exp(x / 256))²⁵⁶."""
    x = x if x > np.float32(-24.0) else np.float32(-24.0)
    x *= np.float32(1 / 256)
    y = np.float32(1) + x * (np.float32(1) + x * (np.float32(0.5) + x * np.float32(1 / 6)))
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    y *= y
    return y


@numba.njit(**JIT)
@no_type_check
def _multiply(image, slices, first_term, sums, product):
    """Per mode and direction: conj and plain products of an image's and a slice's terms, summed over shells.

    ``product`` (modes, 4 · LANES) holds real and negative imaginary parts for the direction, then for its mirror.
    """
    for m in range(first_term.shape[0] - 1):
        for d in range(4 * LANES):
            sums[d] = np.float32(0)
        for q in range(first_term[m], first_term[m + 1], 4):
            a0, b0, a1, b1 = image[q, 0], image[q, 1], image[q + 1, 0], image[q + 1, 1]
            a2, b2, a3, b3 = image[q + 2, 0], image[q + 2, 1], image[q + 3, 0], image[q + 3, 1]
            s0, s1, s2, s3 = slices[q], slices[q + 1], slices[q + 2], slices[q + 3]
            for d in range(LANES):
                c0, c1, c2, c3 = s0[0, d], s1[0, d], s2[0, d], s3[0, d]
                e0, e1, e2, e3 = s0[1, d], s1[1, d], s2[1, d], s3[1, d]
                sums[d] += a0 * c0 + a1 * c1 + a2 * c2 + a3 * c3
                sums[LANES + d] += b0 * e0 + b1 * e1 + b2 * e2 + b3 * e3
                sums[2 * LANES + d] += b0 * c0 + b1 * c1 + b2 * c2 + b3 * c3
                sums[3 * LANES + d] += a0 * e0 + a1 * e1 + a2 * e2 + a3 * e3
        x = product[m]
        for d in range(LANES):
            x[d] = sums[d] + sums[LANES + d]
            x[LANES + d] = sums[3 * LANES + d] - sums[2 * LANES + d]
            x[2 * LANES + d] = sums[d] - sums[LANES + d]
            x[3 * LANES + d] = -sums[3 * LANES + d] - sums[2 * LANES + d]


@numba.njit(**JIT)
@no_type_check
def _transform(product, power, cosine, sine, parts, score, largest):
    """Scores (2, angles, LANES) at every in-plane angle from products per mode, and the largest of each lane.

    Angles come in fours, ψ, -ψ, π - ψ and π + ψ, whose cosines and sines differ in sign only.
    """
    modes, quarter = cosine.shape
    angles = 4 * quarter
    for d in range(LANES):
        largest[d] = np.float32(-1e30)
    for j in range(quarter):
        for d in range(8 * LANES):
            parts[d] = np.float32(0)
        m = 0
        while m + 3 < modes:
            x0, x1, x2, x3 = product[m], product[m + 1], product[m + 2], product[m + 3]
            c0, c1, c2, c3 = cosine[m, j], cosine[m + 1, j], cosine[m + 2, j], cosine[m + 3, j]
            s0, s1, s2, s3 = sine[m, j], sine[m + 1, j], sine[m + 2, j], sine[m + 3, j]
            for d in range(LANES):
                parts[d] += c0 * x0[d] + c2 * x2[d]
                parts[LANES + d] += c1 * x1[d] + c3 * x3[d]
                parts[2 * LANES + d] += s0 * x0[LANES + d] + s2 * x2[LANES + d]
                parts[3 * LANES + d] += s1 * x1[LANES + d] + s3 * x3[LANES + d]
            for d in range(LANES):
                parts[4 * LANES + d] += c0 * x0[2 * LANES + d] + c2 * x2[2 * LANES + d]
                parts[5 * LANES + d] += c1 * x1[2 * LANES + d] + c3 * x3[2 * LANES + d]
                parts[6 * LANES + d] += s0 * x0[3 * LANES + d] + s2 * x2[3 * LANES + d]
                parts[7 * LANES + d] += s1 * x1[3 * LANES + d] + s3 * x3[3 * LANES + d]
            m += 4
        while m < modes:
            x0, c0, s0, odd = product[m], cosine[m, j], sine[m, j], (m % 2) * LANES
            for d in range(LANES):
                parts[odd + d] += c0 * x0[d]
                parts[odd + 2 * LANES + d] += s0 * x0[LANES + d]
                parts[odd + 4 * LANES + d] += c0 * x0[2 * LANES + d]
                parts[odd + 6 * LANES + d] += s0 * x0[3 * LANES + d]
            m += 1
        for side in range(2):
            h = side * 4 * LANES
            near, back = score[side, j], score[side, angles - 1 - j]
            across, beyond = score[side, angles // 2 - 1 - j], score[side, angles // 2 + j]
            for d in range(LANES):
                even_cos, odd_cos = parts[h + d] - power[d], parts[h + LANES + d]
                even_sin, odd_sin = parts[h + 2 * LANES + d], parts[h + 3 * LANES + d]
                u, v = even_cos + odd_cos, even_sin + odd_sin
                w, y = even_cos - odd_cos, even_sin - odd_sin
                near[d], back[d], across[d], beyond[d] = u + v, u - v, w - y, w + y
                best_near, best_far = u + abs(v), w + abs(y)
                best = best_near if best_near > best_far else best_far
                largest[d] = best if best > largest[d] else largest[d]


@numba.njit(**JIT)
@no_type_check
def _add_turned(total, rings, weight, angle, mirrored):
    """Add the rings of an image, turned back by an in-plane angle, to those of its direction."""
    shells, angles = rings.shape
    for k in range(shells):
        row, ring = total[k], rings[k]
        if mirrored:
            for i in range(angle + 1):
                row[angle - i] += weight * ring[i]
            for i in range(angle + 1, angles):
                row[angle - i + angles] += weight * ring[i]
        else:
            for i in range(angle, angles):
                row[i - angle] += weight * ring[i]
            for i in range(angle):
                row[i - angle + angles] += weight * ring[i]


@numba.njit(**JIT)
@no_type_check
def _sum_block(score, best, lane_sum, lane_square):
    """Σ exp(score - best) and Σ exp(2 (score - best)) of a block."""
    for d in range(LANES):
        lane_sum[d] = np.float32(0)
        lane_square[d] = np.float32(0)
    for side in range(2):
        for j in range(score.shape[1]):
            row = score[side, j]
            for d in range(LANES):
                e = _exp(row[d] - best)
                lane_sum[d] += e
                lane_square[d] += e * e
    total, square = 0.0, 0.0
    for d in range(LANES):
        total += lane_sum[d]
        square += lane_square[d]
    return total, square


@numba.njit(**JIT)
@no_type_check
def posterior_kernel(
    images,
    rings,
    ctf_power,
    slices,
    power,
    closed,
    first_term,
    cosine,
    sine,
    draws,
    offset,
    against,
    score,
    total,
    weight,
    gain,
    effective,
    where,
    start,
    stop,
):
    """Marginal likelihood of each image, and draws from its posterior added to the sums of their directions.

    ``images`` (batch, shifts, terms, 2), ``rings`` (batch, shifts, shells, angles), ``slices`` (blocks, terms, 2,
    LANES), ``power`` (batch, blocks, LANES), ``score`` (shifts · blocks + 1, 2, angles, LANES) scratch. ``draws``
    poses are drawn systematically from ``offset`` on (0: none); ``total`` (directions, shells, angles) and
    ``weight`` (directions, shells) are added to, with a share of exp(gain) in exp(gain) + exp(against) of each
    image. ``gain`` is log Σ exp(score), ``effective`` 1 / Σ p², ``where`` (batch, maps, shifts) the part of
    exp(gain) that poses of each map and shift have. What is ``closed`` (as ``where``), never all, is left out.
    """
    shifts, blocks, angles, shells = images.shape[1], slices.shape[0], 4 * cosine.shape[1], rings.shape[2]
    sums, parts = np.empty(4 * LANES, np.float32), np.empty(8 * LANES, np.float32)
    product = np.empty((first_term.shape[0] - 1, 4 * LANES), np.float32)
    lane, other = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    place = np.empty(shifts * blocks, np.int32)
    largest, mass = np.empty(shifts * blocks, np.float32), np.empty(shifts * blocks, np.float64)
    for i in range(start, stop):
        best, kept = np.float32(-1e30), 0
        for b in range(blocks):
            k = b * where.shape[1] // blocks
            for t in range(shifts):
                if closed[i, k, t]:
                    continue
                _multiply(images[i, t], slices[b], first_term, sums, product)
                _transform(product, power[i, b], cosine, sine, parts, score[kept], lane)
                highest = np.float32(-1e30)
                for d in range(LANES):
                    if lane[d] > highest:
                        highest = lane[d]
                if highest > best:
                    best = highest
                if highest > best - NEGLIGIBLE:
                    place[kept], largest[kept] = b * shifts + t, highest
                    kept += 1
        everything, squares = 0.0, 0.0
        where[i] = 0.0
        for n in range(kept):
            mass[n] = 0.0
            if largest[n] > best - NEGLIGIBLE:
                mass[n], square = _sum_block(score[n], best, lane, other)
                everything += mass[n]
                squares += square
                b = place[n] // shifts
                where[i, b * where.shape[1] // blocks, place[n] - b * shifts] += mass[n]
        where[i] /= everything
        gain[i] = best + math.log(everything)
        effective[i] = everything * everything / squares
        if draws == 0:
            continue
        # Of what is not present nothing is added; where the map is much likelier, exp(…) is 0.
        odds = against[i] - gain[i]
        present = 0.0 if odds > 40 else 1 / (1 + math.exp(odds)) / draws
        if present == 0:
            continue
        step = everything / draws
        following, reached = offset[i] * step, 0.0
        for n in range(kept):
            end = reached + mass[n]
            if end > following:
                b = place[n] // shifts
                t = place[n] - b * shifts
                for side in range(2):
                    for j in range(angles):
                        row = score[n, side, j]
                        for d in range(LANES):
                            lane[d] = _exp(row[d] - best)
                        row_mass = np.float32(0)
                        for d in range(LANES):
                            row_mass += lane[d]
                        if reached + row_mass <= following:
                            reached += row_mass
                            continue
                        for d in range(LANES):
                            reached += lane[d]
                            hits = 0
                            while reached > following:
                                following += step
                                hits += 1
                            if hits:
                                share = np.float32(hits * present)
                                direction = b * LANES + d
                                for k in range(shells):
                                    weight[direction, k] += share * ctf_power[i, k]
                                _add_turned(total[direction], rings[i, t], share, j, side == 1)
            reached = end


@numba.njit(**JIT)
@no_type_check
def _keep_best(score, shift, best, best_shift, best_angle):
    """Each lane's best score on each side, and where it is, if this block has a better one."""
    angles = score.shape[1]
    for side in range(2):
        high, place, moved = best[side], best_angle[side], best_shift[side]
        for j in range(angles):
            row = score[side, j]
            for d in range(LANES):
                better = row[d] > high[d]
                high[d] = row[d] if better else high[d]
                place[d] = np.float32(j) if better else place[d]
                moved[d] = shift if better else moved[d]


@numba.njit(**JIT)
@no_type_check
def best_views_kernel(
    images,
    slices,
    power,
    first_term,
    cosine,
    sine,
    begin,
    end,
    block,
    shift,
    best,
    best_shift,
    best_angle,
    start,
    stop,
):
    """The best shift and in-plane angle of every direction and of its mirror image, where they are asked for.

    ``images``, ``slices``, ``power`` as in `posterior_kernel`. Image i is compared with the blocks of directions
    ``block[begin[i]:end[i]]``, each moved by the ``shift`` of the same place. ``best``, ``best_shift``,
    ``best_angle`` (batch, blocks, 2, LANES), float32, are written: the score and the indices of shift and angle;
    the score is -1e30 where nothing was asked.
    """
    angles = 4 * cosine.shape[1]
    sums, parts = np.empty(4 * LANES, np.float32), np.empty(8 * LANES, np.float32)
    product = np.empty((first_term.shape[0] - 1, 4 * LANES), np.float32)
    score, lane = np.empty((2, angles, LANES), np.float32), np.empty(LANES, np.float32)
    for i in range(start, stop):
        best[i] = np.float32(-1e30)
        for n in range(begin[i], end[i]):
            b, t = block[n], shift[n]
            _multiply(images[i, t], slices[b], first_term, sums, product)
            _transform(product, power[i, b], cosine, sine, parts, score, lane)
            improves = False
            for d in range(LANES):
                low = best[i, b, 0, d] if best[i, b, 0, d] < best[i, b, 1, d] else best[i, b, 1, d]
                improves = improves or lane[d] > low
            if improves:
                _keep_best(score, np.float32(t), best[i, b], best_shift[i, b], best_angle[i, b])
