"""How large the particle is, from images whose poses are not known yet."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, disk_to_images
from cryoai.geometry.shells import mean_per_shell, radial_distance
from cryoai.tensors import ParticleBatch

# The edge is where a profile has fallen to this share of its peak.
_EDGE_LEVEL = 0.1
# Background is measured between these distances from the centre, box lengths: where corners begin.
_BACKGROUND = (0.5, 0.6)
# Variance beyond this radius is that of neighbours, not of one particle.
_WIDEST = 0.48
# The mean image loses what is not in every view.
_OF_MEAN = 1.15
# What a particle is taken to span at least and at most, box lengths.
SMALLEST_SUPPORT, LARGEST_SUPPORT = 0.15, 0.44


def measure_support(batch: ParticleBatch) -> float:
    """Radius that holds the particle in every view and at its translations, box lengths (0.15 to 0.44).

    The variance over images of a pixel, of images multiplied by their CTF, is that of the noise outside the
    particle and larger inside. Where it is not (neighbours vary more than the particle does), the mean image tells:
    its profile about the centre falls to the background at the edge of what all views share.

    Parameters
    ----------
    batch
        Images at low resolution; a few thousand are enough.
    """
    images = _filtered_images(batch)
    centre, background = _profile(images.var(0))
    excess = centre - background
    # A profile that is highest in the middle, and back at the background inside the box, is one particle's.
    radius = _edge(excess)
    if int(excess.argmax()) * 4 <= len(excess) and excess[0] > 0 and radius <= _WIDEST * images.shape[-1]:
        return _clip(radius / images.shape[-1])
    centre, background = _profile(images.mean(0))
    return _clip(_OF_MEAN * _edge((centre - background)[: images.shape[-1] // 2]) / images.shape[-1])


def support_of_map(density: Float[Tensor, "box box box"]) -> float:
    """Radius that holds what a map shows, box lengths (0.15 to 0.44).

    Where the root mean square over spheres about the centre has fallen to a tenth of its peak; one sample of a map
    that is sampled no finer than its resolution is left as a margin.
    """
    box = density.shape[-1]
    distance = radial_distance(box, 3).round().long().flatten()
    profile = mean_per_shell(density.flatten() ** 2, distance)[: box // 2 + 1].sqrt()
    return _clip((_edge(profile) + 1) / box)


def _filtered_images(batch: ParticleBatch) -> Float[Tensor, "batch box box"]:
    """CTF · image in the smallest box that holds the coefficients."""
    disk = batch.disk
    box = 2 * (math.floor(disk.reach) + 2)
    place = (disk.ky.long() % box) * (box // 2 + 1) + disk.kx.long()
    return disk_to_images(
        batch.images * batch.ctf, FourierDisk(box, disk.kx, disk.ky, disk.radius, disk.shell, place)
    )


def _profile(image: Float[Tensor, "box box"]) -> tuple[Float[Tensor, " px"], float]:
    """Mean over circles out to the corners' beginning, and over the background."""
    distance = radial_distance(image.shape[-1], 2)
    profile = mean_per_shell(image.flatten(), distance.round().long().flatten())
    low, high = (level * image.shape[-1] for level in _BACKGROUND)
    background = image[(distance > low) & (distance <= high)]
    return profile[: image.shape[-1] // 2 + 1], float(background.mean())


def _edge(excess: Float[Tensor, " px"]) -> int:
    """Where a profile first falls to `_EDGE_LEVEL` of its peak, beyond that peak; px."""
    peak = int(excess.argmax())
    below = (excess[peak:] < _EDGE_LEVEL * excess[peak]).nonzero()
    return peak + int(below[0]) if len(below) else len(excess)


def _clip(radius: float) -> float:
    return min(max(radius, SMALLEST_SUPPORT), LARGEST_SUPPORT)
