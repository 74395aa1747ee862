"""The level at which a map is shown, and its isosurface as a mesh small enough for a web page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Int16

from cryoai.geometry.fourier import resample

# The level keeps this share of Σρ² over the positive voxels, which suits noisy masked maps as well as clean ones.
_KEPT_POWER = 0.86
# Boxes tried for a mesh; below the first, surfaces look faceted, and above the last nothing is gained on a screen.
_LARGEST_BOX, _SMALLEST_BOX = 128, 32
# A 16-bit index reaches so many vertices.
_MOST_VERTICES = 65_535
_COORDINATE_RANGE = 30_000


@dataclass(frozen=True, eq=False)
class Surface:
    """A triangle mesh; coordinates are scaled to integers, since a picture needs no unit.

    Attributes
    ----------
    vertices
        (n, 3), xyz; 0 is the centre of the box, ±30,000 its border.
    faces
        (m, 3) rows of ``vertices``.
    level
        Density at the surface.
    box_size
        px of the resampled map it was found in.
    """

    vertices: Int16[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "m 3"]
    level: float
    box_size: int


def choose_level(density: Float[np.ndarray, "box box box"]) -> float:
    """Density level that encloses most of a map's power and little of its noise.

    Parameters
    ----------
    density
        Protein positive.
    """
    positive = np.sort(density[density > 0].astype(np.float64))[::-1]
    if len(positive) == 0:
        return 0.0
    power = np.cumsum(positive**2)
    return float(positive[min(np.searchsorted(power, _KEPT_POWER * power[-1]), len(positive) - 1)])


def resample_map(density: Float[np.ndarray, "box box box"], box_size: int) -> Float[np.ndarray, "new new new"]:
    """Fourier crop or pad a map to ``box_size`` px; values are kept."""
    return resample(torch.from_numpy(np.array(density, np.float32)), box_size, 3).numpy()


def make_surfaces(
    density: Float[np.ndarray, "box box box"], factors: tuple[float, ...], most_vertices: int
) -> list[Surface]:
    """Isosurfaces at multiples of the automatic level, in the finest box that keeps them small.

    Parameters
    ----------
    density
        Protein positive.
    factors
        Of `choose_level`; levels that the map does not reach are left out.
    most_vertices
        Of all surfaces together.
    """
    level = choose_level(density)
    # Small boxes are padded: their surfaces would look faceted.
    box = min(_LARGEST_BOX, 2 * density.shape[0])
    while box >= min(_SMALLEST_BOX, density.shape[0]):
        small = resample_map(density, box)
        surfaces = [s for factor in factors if (s := _make_surface(small, factor * level)) is not None]
        counts = [len(surface.vertices) for surface in surfaces]
        if sum(counts) <= most_vertices and max(counts, default=0) <= _MOST_VERTICES:
            return surfaces
        # The number of vertices grows faster than the square of the box: a finer box shows finer detail.
        excess = max(sum(counts) / most_vertices, max(counts) / _MOST_VERTICES)
        box = min(box - 4, int(box / excess**0.3) // 4 * 4)
    return []


def _make_surface(density: Float[np.ndarray, "box box box"], level: float) -> Surface | None:
    from skimage.measure import marching_cubes

    box = density.shape[0]
    if not density.min() < level < density.max():
        return None
    # A border of zeros closes surfaces that leave the box.
    vertices, faces, _, _ = marching_cubes(
        np.pad(density, 1, constant_values=min(0.0, float(density.min()))), level
    )
    centred = (vertices[:, ::-1] - 1 - box // 2) * (_COORDINATE_RANGE / (box / 2 + 1))
    return Surface(centred.round().astype(np.int16), faces.astype(np.int32), level, box)
