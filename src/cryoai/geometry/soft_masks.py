"""Masks with a raised-cosine edge."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from cryoai.geometry.shells import radial_distance


def make_soft_sphere(
    box_size: int, radius_px: float | None = None, edge_px: float = 3.0
) -> Float[Tensor, "box box box"]:
    """A sphere about the centre: 0 from ``radius_px`` (default ``box / 2 - 1``), 1 from ``edge_px`` further in."""
    outer = box_size / 2 - 1 if radius_px is None else radius_px
    return _raised_cosine((outer - radial_distance(box_size, 3)) / edge_px)


def make_soft_disc(box_size: int, radius_px: float, edge_px: float) -> Float[Tensor, "box box"]:
    """A disc about the centre of an image: 0 from ``radius_px``, 1 from ``edge_px`` further in."""
    return _raised_cosine((radius_px - radial_distance(box_size, 2)) / edge_px)


def soften_mask(core: Bool[np.ndarray, "*box"], extend_px: float, edge_px: float) -> Float[Tensor, "*box"]:
    """1 in a core and up to ``extend_px`` from it, 0 from ``edge_px`` further out."""
    outside = torch.from_numpy(np.asarray(distance_transform_edt(np.logical_not(core))))
    return _raised_cosine((extend_px + edge_px - outside) / edge_px)


def _raised_cosine(depth: Float[Tensor, "*box"]) -> Float[Tensor, "*box"]:
    """From 0 at depth 0 to 1 at depth 1."""
    return 0.5 - 0.5 * torch.cos(math.pi * depth.clamp(0, 1))
