"""Soft masks around the particle."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from skimage import measure
from torch import Tensor

from cryoai.geometry.fourier import fft3, ifft3, radial_distance

# Components smaller than this share of the largest are noise, not parts of the particle.
_SMALLEST_COMPONENT = 0.1
# A voxel belongs to the particle where the local power exceeds this share of its high values, and the solvent's by
# this many standard deviations.
_RELATIVE_THRESHOLD = 0.02
_SOLVENT_SIGMAS = 4.0


def make_sphere_mask(box_size: int, diameter: float, edge: float = 4.0) -> Float[Tensor, "box box box"]:
    """1 inside a sphere of ``diameter`` px, falling to 0 over ``edge`` px by a raised cosine."""
    depth = ((diameter / 2 + edge - radial_distance(box_size, 3)) / edge).clamp(0, 1)
    return 0.5 - 0.5 * torch.cos(math.pi * depth)


def lowpass(density: Float[Tensor, "box box box"], radius: float) -> Float[Tensor, "box box box"]:
    """Gaussian low-pass filter that falls to one half at ``radius`` shells."""
    box = density.shape[-1]
    axis = torch.arange(box) - box // 2
    half = torch.arange(box // 2 + 1)
    squared = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + half**2).to(density)
    return ifft3(fft3(density) * torch.exp(-math.log(2) * squared / radius**2), box)


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
        return make_sphere_mask(box, 2 * radius - 4)
    filled = np.asarray(ndimage.binary_fill_holes(core))
    outside = np.asarray(ndimage.distance_transform_edt(~filled))
    depth = np.clip((extend + edge - outside) / edge, 0, 1)
    return torch.from_numpy((0.5 - 0.5 * np.cos(np.pi * depth)).astype(np.float32)).to(density.device)


def _large_components(core: np.ndarray) -> np.ndarray:
    labels = np.asarray(measure.label(core, connectivity=1))
    sizes = np.bincount(labels.ravel())[1:]
    if len(sizes) == 0:
        return core
    return np.isin(labels, 1 + np.flatnonzero(sizes >= _SMALLEST_COMPONENT * sizes.max()))
