"""The rotations that leave a map nearly as it is."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.rotations import rotation_angle
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.alignment import MapAlignment
from cryoai.metrics.map_fit import make_target, padded_spectrum, refine_candidates, search_rotations


def find_near_symmetries(
    density: Float[Tensor, "box box box"],
    *,
    radius: int = 10,
    at_least: float = 0.75,
    smallest_angle: float = math.radians(25),
    keep: int = 8,
) -> list[MapAlignment]:
    """Rotations about any axis that leave a map nearly as it is, found from its own correlation.

    A particle posed at ``R`` looks almost the same at ``Q R``; a search at low resolution cannot tell them
    apart.

    Parameters
    ----------
    density
        The map (z, y, x).
    radius
        Shells up to which likeness is judged.
    at_least
        Smallest mean FSC of the map with its rotated self.
    smallest_angle
        Radians; smaller rotations are the map's own smoothness.
    keep
        At most this many, the most alike first.

    Returns
    -------
    list
        ``density(x) ≈ density(Q x + shift)``, the identity left out.
    """
    density = (density * make_soft_sphere(density.shape[-1]).to(density)).float()
    spectrum, targets = padded_spectrum(density), [make_target(density)]
    candidates = refine_candidates(
        spectrum, targets, search_rotations(spectrum, targets, density).distinct(40), radius, 8
    )
    found: list[MapAlignment] = []
    candidates = candidates.distinct(40)
    angles = rotation_angle(candidates.rotation, torch.eye(3, dtype=torch.float64).expand_as(candidates.rotation))
    for rotation, shift, score, angle in zip(
        candidates.rotation, candidates.shift, candidates.score.tolist(), angles.tolist(), strict=True
    ):
        if score >= at_least and angle > smallest_angle:
            found.append(MapAlignment(rotation.numpy(), shift.numpy(), False, score))
    return found[:keep]
