"""What two half-maps agree on beyond a shape that looks alike from all sides."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import solveh_banded
from scipy.optimize import minimize
from torch import Tensor

from cryoai.geometry.fourier import resample
from cryoai.metrics.fsc import FscCurve, compute_fsc

# Knots of the radial profile per voxel.
_KNOTS = 2
# Maps are compared in so many px at most: what is round is so at low resolution too.
_LARGEST_BOX = 64
# The profile's centre is looked for in a map of so many px at most, in steps that start at so many of them.
_SMALL_BOX, _FIRST_STEP = 32, 1.0


def compute_fsc_of_views(
    half1: Float[Tensor, "box box box"], half2: Float[Tensor, "box box box"], mask: Float[Tensor, "box box box"]
) -> FscCurve:
    """Fourier shell correlation of two half-maps without the part of each that is the same in all directions.

    Views differ by what is left alone. Of a ball or a hollow sphere that is noise, however well the half-maps
    themselves agree, and poses say nothing.

    Parameters
    ----------
    half1, half2
        Independent half-maps (z, y, x).
    mask
        Between 0 and 1, around the particle.

    Returns
    -------
    FscCurve
        Of boxes of at most 64 px, whose shells are those of the maps.
    """
    box = min(half1.shape[-1], _LARGEST_BOX)
    first, second, inside = (resample(density.cpu(), box, 3) for density in (half1, half2, mask))
    inside = inside.clamp(0, 1)
    centre = _find_centre(first + second, inside)
    rest = [_without_profile(density, inside, centre) for density in (first, second)]
    return compute_fsc(rest[0], rest[1], inside)


def _without_profile(density: Tensor, mask: Tensor, centre: np.ndarray) -> Tensor:
    values = density.double().numpy()
    return torch.from_numpy(values - _fit_profile(values, mask.double().numpy(), centre)).to(density)


def _find_centre(density: Tensor, mask: Tensor) -> np.ndarray:
    """The point (z, y, x; px) about which a radial profile leaves the least of a map."""
    box = density.shape[-1]
    small = min(box, _SMALL_BOX)
    values, weight = (resample(map_, small, 3).double().numpy() for map_ in (density, mask))
    weight = weight.clip(0, 1)
    share = (np.abs(values) * weight).ravel()
    start = np.indices(values.shape).reshape(3, -1) @ share / max(share.sum(), 1e-30)

    def remainder(centre: np.ndarray) -> float:
        return float((weight * (values - _fit_profile(values, weight, centre)) ** 2).sum())

    simplex = np.vstack((start, start + _FIRST_STEP * np.eye(3)))
    options = {"initial_simplex": simplex, "xatol": 0.01, "fatol": 0.0, "maxiter": 100}
    found = minimize(remainder, start, method="Nelder-Mead", options=options).x
    return (found - small // 2) * (box / small) + box // 2


def _fit_profile(density: np.ndarray, mask: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The function of the distance from a point, linear between knots, that is nearest to a map in its mask."""
    z, y, x = (np.arange(size) - c for size, c in zip(density.shape, centre, strict=True))
    place = _KNOTS * np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).ravel()
    knot = place.astype(int)
    after, weight = place - knot, mask.ravel()
    before, values = 1 - after, density.ravel()
    count = int(knot.max()) + 2

    def total(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
        """Sums at the knots before; with those at the knots after."""
        sums = np.bincount(knot, weight * first, count)
        return sums if second is None else sums + np.bincount(knot + 1, weight * second, count)

    # The normal equations of neighbouring hat functions: a band; where the mask is 0, so is the profile.
    band = np.zeros((2, count))
    band[1] = total(before**2, after**2)
    band[1] += 1e-6 * band[1].max() + 1e-30
    band[0, 1:] = total(before * after)[:-1]
    profile = solveh_banded(band, total(before * values, after * values))
    return (before * profile[knot] + after * profile[knot + 1]).reshape(density.shape)
