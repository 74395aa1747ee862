"""A map on the grid of the images that are to be made of it."""

from __future__ import annotations

import numpy as np
import torch

from cryoai.errors import InputError
from cryoai.geometry.fourier import crop_or_pad, resample
from cryoai.types import Map


def fit_map_to_box(density_map: Map, box_size: int, pixel_size: float) -> Map:
    """A map on another grid: resampled in Fourier space, then cropped or padded with zeros.

    Fourier cropping reaches only voxel sizes of (old box · old voxel size) / integer, so the map is first
    padded by up to 32 voxels to the box that comes closest to ``pixel_size``.

    Parameters
    ----------
    density_map
        The map; its centre ``box // 2`` stays the centre.
    box_size
        px.
    pixel_size
        Å.

    Raises
    ------
    InputError
        No such box comes within 1 % of ``pixel_size``.
    """
    ratio = density_map.voxel_size / pixel_size
    padded = range(density_map.box_size, density_map.box_size + 33)
    errors = [abs(box * ratio / max(1, round(box * ratio)) - 1) for box in padded]
    # The first that is as good as exact, so that a map that needs no padding gets none.
    best = next((i for i, error in enumerate(errors) if error < 1e-4), int(np.argmin(errors)))
    if errors[best] > 0.01:
        raise InputError(
            f"a map of {density_map.box_size} voxels of {density_map.voxel_size:g} Å cannot be resampled to "
            f"{pixel_size:g} Å",
            advice="choose a smaller pixel size",
        )
    density = torch.from_numpy(np.array(density_map.density, dtype=np.float32))
    density = crop_or_pad(density, padded[best], (0, 1, 2))
    density = resample(density, round(padded[best] * ratio), 3)
    return Map(crop_or_pad(density, box_size, (0, 1, 2)).contiguous().numpy(), pixel_size)
