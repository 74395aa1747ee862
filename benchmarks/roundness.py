"""What a map is like by its radial profile: how large, hollow or not, protein white or black."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A hollow particle is measured at its centre within so much of its outer radius.
_CENTRE = 0.25


@dataclass(frozen=True)
class Roundness:
    """Of a particle taken for a ball or a hollow sphere.

    Attributes
    ----------
    outer_diameter
        Å, twice the radius at which the profile, beyond its peak, falls to half of it; None where it never does.
    centre
        Mean density at the centre over that at the profile's peak: about 1 for a ball, 0 for a hollow sphere.
    positive
        Whether the peak is denser than the surroundings.
    """

    outer_diameter: float | None
    centre: float | None
    positive: bool


def measure_roundness(density: np.ndarray, voxel_size: float) -> Roundness:
    """The profile about the centre of the squared density, which no sign and no reference decides.

    Parameters
    ----------
    density
        (box, box, box), zyx; its surroundings are what lies beyond half of the box.
    voxel_size
        Å.
    """
    box = density.shape[0]
    axes = np.meshgrid(*(np.arange(box),) * 3, indexing="ij")
    about_middle = np.sqrt(sum((axis - box // 2) ** 2 for axis in axes))
    density = density.astype(np.float64) - density[about_middle > box / 2].mean()
    weight = density**2
    centre = [float((axis * weight).sum() / max(weight.sum(), 1e-300)) for axis in axes]
    distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)))
    # Too few voxels are nearer than 1.5 px.
    ring = np.maximum(np.round(distance).astype(int), 1).ravel()
    inside = ring < box / 2
    count = np.maximum(np.bincount(ring[inside])[1:], 1)
    radius = np.bincount(ring[inside], distance.ravel()[inside])[1:] / count
    profile = np.bincount(ring[inside], density.ravel()[inside])[1:] / count
    peak = int(np.abs(profile).argmax())
    height = profile[peak]
    if height == 0:
        return Roundness(None, None, False)
    outwards = profile[peak:] / height
    low = np.flatnonzero(outwards < 0.5)
    if not len(low):
        return Roundness(None, None, bool(height > 0))
    # Linear between the last ring above a half and the first one below.
    above, below = outwards[low[0] - 1], outwards[low[0]]
    near, far = radius[peak + low[0] - 1], radius[peak + low[0]]
    outer = near + (far - near) * (above - 0.5) / (above - below)
    core = distance <= max(_CENTRE * outer, 1.5)
    return Roundness(float(2 * outer * voxel_size), float(density[core].mean() / height), bool(height > 0))
