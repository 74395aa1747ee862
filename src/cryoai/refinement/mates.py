"""Near-symmetries of the map, and each particle tried at the mates of its pose under them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.metrics.alignment import MapAlignment, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.metrics.near_symmetry import find_near_symmetries
from cryoai.particles.dataset import ParticleData
from cryoai.poses.local import refine_poses
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState

# A rotation under which the map's FSC with itself falls short of what its noise allows by less than this, on
# average over at least so many shells, is a true symmetry.
_TRUE_SYMMETRY_DEFICIT, _SHELLS_FOR_SYMMETRY = 0.03, 8
_ITERATIONS = 4


def find_mates(halves: HalfMaps) -> list[MapAlignment]:
    """The map's near-symmetries; true ones are left out, since their mates are the same pose.

    A true symmetry makes the map agree with its turned self as well as the half-maps agree with each other.
    """
    first, second = halves.unfiltered
    density = (first + second) * halves.mask
    shells = max(_SHELLS_FOR_SYMMETRY, int(halves.fsc.crossing(0.5)))
    attainable = 2 * halves.fsc.correlation / (1 + np.abs(halves.fsc.correlation))
    found = []
    for mate in find_near_symmetries(density):
        turned = apply_alignment(density, mate)
        alike = compute_fsc(turned, density).correlation
        deficit = float((attainable - alike)[2:shells].mean())
        if deficit > _TRUE_SYMMETRY_DEFICIT:
            found.append(mate)
    return found


def try_mates(
    data: ParticleData,
    state: RefinementState,
    references: References,
    mates: Sequence[MapAlignment],
    radius: float,
    on_chunk: OnChunk = lambda done: None,
) -> tuple[RefinementState, Float[Tensor, " n"]]:
    """Try every particle at the mates of its pose under the map's near-symmetries; the likeliest pose wins.

    Parameters
    ----------
    data, state
        Particles and their poses.
    references
        Which map is whose.
    mates
        ``map(x) ≈ map(Q x + shift)``, shifts in px.
    radius
        Shells at which the mates compete; only high resolution can tell them apart.
    on_chunk
        Called with the particles done so far.

    Returns
    -------
    tuple
        The new state, and the posterior weight of each particle's new pose among its mates.
    """
    rotation, translation = state.rotation.clone(), state.translation.clone()
    weight = torch.ones(len(data))

    def compete(portion: Portion) -> None:
        at = portion.rows
        poses = [(rotation[at], translation[at])]
        poses += [_apply_mate(mate, *poses[0], data.pixel_size) for mate in mates]
        local = refine_poses(
            portion.batch, portion.volume, state.noise_power, torch.cat([r for r, _ in poses]),
            torch.cat([t for _, t in poses]), portion.image_of.repeat(len(poses)), _ITERATIONS,
        )  # fmt: skip
        cost = local.cost.view(len(poses), len(at))
        pick = cost.argmin(0) * len(at) + torch.arange(len(at))
        rotation[at], translation[at] = local.rotation[pick], local.translation[pick]
        weight[at] = torch.softmax(-cost, 0).amax(0).float()

    map_particles(data, references, compete, radius=radius, on_chunk=on_chunk)
    return replace(state, rotation=rotation, translation=translation), weight


def _apply_mate(
    mate: MapAlignment, rotation: Tensor, translation: Tensor, pixel_size: float
) -> tuple[Tensor, Tensor]:
    """The pose at which the nearly symmetric map looks the same: ``Q R``, and the shift seen in its plane."""
    turned = torch.from_numpy(mate.rotation).to(rotation) @ rotation
    shift = torch.from_numpy(mate.shift).to(translation) * pixel_size
    return turned, translation - (shift @ turned)[:, :2]
