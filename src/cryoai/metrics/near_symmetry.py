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

# Rotations that are refined, and twice as many more as there are elements of a known symmetry.
_TRIED = 40


def find_near_symmetries(
    density: Float[Tensor, "box box box"],
    *,
    radius: int = 10,
    at_least: float = 0.75,
    smallest_angle: float = math.radians(25),
    keep: int = 8,
    group: Float[Tensor, "g 3 3"] | None = None,
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
    group
        Of a symmetry that the map is known to have: it is left out, and of rotations that it makes the same one is
        kept.

    Returns
    -------
    list
        ``density(x) ≈ density(Q x + shift)``, the identity left out.
    """
    density = (density * make_soft_sphere(density.shape[-1]).to(density)).float()
    spectrum, targets = padded_spectrum(density), [make_target(density)]
    group = torch.eye(3)[None].double() if group is None else group.double().cpu()
    tried = _TRIED + 2 * len(group)
    candidates = refine_candidates(
        spectrum, targets, search_rotations(spectrum, targets, density).distinct(tried), radius, 8
    )
    found: list[MapAlignment] = []
    candidates = candidates.distinct(tried)
    known = group
    for rotation, shift, score in zip(
        candidates.rotation, candidates.shift, candidates.score.tolist(), strict=True
    ):
        far = rotation_angle(known, rotation.expand_as(known)).amin() > smallest_angle
        if score >= at_least and far:
            found.append(MapAlignment(rotation.numpy(), shift.numpy(), False, score))
            if len(group) > 1:
                known = torch.cat((known, group @ rotation))
    return found[:keep]
