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
# A voxel belongs to the particle where the local power exceeds this share of its high values, and the noise's by so
# many standard deviations: power is skewed, about one per cent of pure noise exceeds eight.
_RELATIVE_THRESHOLD = 0.02
_NOISE_SIGMAS = 8.0
# However strong the noise: a particle that is cut off is worse than a mask that is too wide.
_LARGEST_THRESHOLD = 0.5
# The map's high values must exceed those of the noise by this factor, or there is nothing to mask.
_CLEARLY = 1.5


def lowpass(density: Float[Tensor, "box box box"], radius: float) -> Float[Tensor, "box box box"]:
    """Gaussian low-pass filter that falls to one half at ``radius`` shells."""
    spectrum = fft3(density)
    distance = half_space_radius(spectrum.shape, device=density.device)
    return ifft3(spectrum * torch.exp(-math.log(2) * (distance / radius) ** 2), density.shape[-1])


def make_solvent_mask(
    density: Float[Tensor, "box box box"],
    noise: Float[Tensor, "box box box"],
    diameter_px: float | None = None,
    filter_radius: float = 8.0,
    extend_px: float = 1.0,
    edge_px: float = 4.0,
) -> Float[Tensor, "box box box"]:
    """A soft mask around the density of a map.

    The local power of the map (its square, low-pass filtered) is cut at a threshold set by that of the noise and
    by its own high values; the large connected components are kept, filled, grown and given a cosine edge. Power
    rather than density, so that the negative fringes of a map without low frequencies belong to the particle too.
    Where nothing stands out from the noise the mask is the sphere.

    Parameters
    ----------
    density
        Filtered, solvent at zero, not masked.
    noise
        That of ``density``, from the difference of its halves: as strong, with the same filter, but without the
        particle. So it can be measured everywhere, however much of the box the particle fills.
    diameter_px
        Nothing outside this sphere is kept (default: the inscribed sphere).
    filter_radius
        Shells of the low-pass filter on the power.
    extend_px, edge_px
        By how much the mask is grown, and the width of its edge.
    """
    box = density.shape[-1]
    radius = (box - 2) / 2 if diameter_px is None else min(diameter_px, box - 2) / 2
    inside = radial_distance(box, 3).numpy() <= radius
    power, noise_power = (lowpass(d**2, filter_radius).cpu().numpy() for d in (density, noise))
    # Medians: where poses are wrong the halves differ in the particle too.
    centre = np.median(noise_power)
    noise_level = centre + _NOISE_SIGMAS * 1.4826 * np.median(np.abs(noise_power - centre))
    high, noise_high = (float(np.percentile(p[inside], 99.5)) for p in (power, noise_power))
    threshold = min(max(noise_level, _RELATIVE_THRESHOLD * high), _LARGEST_THRESHOLD * high)
    core = _large_components((power > threshold) & inside)
    if high < _CLEARLY * noise_high or not core.any():
        return make_soft_sphere(box, radius + 2, edge_px).to(density)
    return soften_mask(np.asarray(ndimage.binary_fill_holes(core)), extend_px, edge_px).to(density)


def _large_components(core: np.ndarray) -> np.ndarray:
    labels = np.asarray(measure.label(core, connectivity=1))
    sizes = np.bincount(labels.ravel())[1:]
    if len(sizes) == 0:
        return core
    return np.isin(labels, 1 + np.flatnonzero(sizes >= _SMALLEST_COMPONENT * sizes.max()))
