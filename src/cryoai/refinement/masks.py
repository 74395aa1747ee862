"""Soft masks around the particle."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from skimage import measure
from torch import Tensor

from cryoai.geometry.fourier import fft3, ifft3
from cryoai.geometry.shells import half_space_radius, radial_distance
from cryoai.geometry.soft_masks import make_soft_sphere, soften_mask

# Components smaller than this share of the largest are noise, not parts of the particle.
_SMALLEST_COMPONENT = 0.1
# A voxel belongs to the particle where the local power exceeds this share of its high values, and the solvent's by
# this many standard deviations.
_RELATIVE_THRESHOLD = 0.02
_SOLVENT_SIGMAS = 4.0


def lowpass(density: Float[Tensor, "box box box"], radius: float) -> Float[Tensor, "box box box"]:
    """Gaussian low-pass filter that falls to one half at ``radius`` shells."""
    spectrum = fft3(density)
    distance = half_space_radius(spectrum.shape, device=density.device)
    return ifft3(spectrum * torch.exp(-math.log(2) * (distance / radius) ** 2), density.shape[-1])


def make_solvent_mask(
    density: Float[Tensor, "box box box"],
    diameter: float | None = None,
    filter_radius: float = 8.0,
    extend: float = 1.0,
    edge: float = 4.0,
) -> Float[Tensor, "box box box"]:
    """A soft mask around the density of a map.

    The local power of the map (its square, low-pass filtered) is cut at a threshold set by the solvent and by its
    high values; the large connected components are kept, filled, grown and given a cosine edge. Power rather than
    density, so that the negative fringes of a map without low frequencies belong to the particle too.

    Parameters
    ----------
    density
        Filtered, but not masked tightly.
    diameter
        px; nothing outside this sphere is kept (default: the inscribed sphere).
    filter_radius
        Shells of the low-pass filter on the power.
    extend, edge
        px by which the mask is grown, and the width of its edge.
    """
    box = density.shape[-1]
    distance = radial_distance(box, 3).numpy()
    radius = (box - 2) / 2 if diameter is None else min(diameter, box - 2) / 2
    power = lowpass(density**2, filter_radius).cpu().numpy()
    inside = distance <= radius
    solvent = power[distance > 0.9 * radius]
    centre, spread = np.median(solvent), 1.4826 * np.median(np.abs(solvent - np.median(solvent)))
    high = np.percentile(power[inside], 99.5)
    threshold = min(max(centre + _SOLVENT_SIGMAS * spread, _RELATIVE_THRESHOLD * high), 0.5 * high)
    core = _large_components((power > threshold) & inside)
    if not core.any():
        return make_soft_sphere(box, radius + 2, edge_px=4.0)
    filled = np.asarray(ndimage.binary_fill_holes(core))
    return soften_mask(filled, extend, edge).to(density)


def _large_components(core: np.ndarray) -> np.ndarray:
    labels = np.asarray(measure.label(core, connectivity=1))
    sizes = np.bincount(labels.ravel())[1:]
    if len(sizes) == 0:
        return core
    return np.isin(labels, 1 + np.flatnonzero(sizes >= _SMALLEST_COMPONENT * sizes.max()))
