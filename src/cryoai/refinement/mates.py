"""Symmetries of the map: poses that are the same under true ones, and each particle tried at its near-mates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.point_groups import point_group
from cryoai.geometry.rotations import rotation_angle
from cryoai.metrics.alignment import MIRROR, MapAlignment, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.metrics.near_symmetry import find_near_symmetries
from cryoai.particles.dataset import ParticleData
from cryoai.poses.local import refine_poses
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState

# A rotation under which the map's FSC with itself falls short of what its noise allows by less than this, on
# average over at least so many shells, is a true symmetry. It is 0.014 to 0.016 for β-galactosidase (D2) at -13 dB,
# whose particles lie unevenly at their mates, and 0.15 to 0.2 for a spike with one of three domains up.
TRUE_SYMMETRY_DEFICIT, SHELLS_FOR_SYMMETRY = 0.05, 8
# Rotations so close are the same element of a group, of which none but cyclic and dihedral ones is larger than I.
_SAME_ELEMENT_RADIANS, _LARGEST_GROUP = 0.17, 60
_ITERATIONS = 4
# Of a trace of 3: what is nearer is the identity.
_IDENTITY = 0.02


@dataclass(frozen=True, eq=False)
class Mates:
    """Which poses a map cannot, or can hardly, tell from each other.

    Attributes
    ----------
    near
        Under these it looks almost the same: ``map(x) ≈ map(Q x + shift)``, shifts in px.
    same
        (g, 3, 3) its true symmetries, a pose R of which is the same as Q R; the identity first.
    elements
        Those of them that were found, with their shifts.
    """

    near: tuple[MapAlignment, ...] = ()
    same: Float[Tensor, "g 3 3"] = field(default_factory=lambda: torch.eye(3)[None])
    elements: tuple[MapAlignment, ...] = ()

    @classmethod
    def of_imposed(cls, halves: HalfMaps) -> Mates:
        """Those of the symmetry that the maps were given."""
        group = torch.from_numpy(point_group(halves.accumulators[0].symmetry)).float()
        return cls(same=group)

    @property
    def rotations(self) -> Float[Tensor, "m 3 3"]:
        """Of all mates, true and near; the identity first."""
        near = [self.same @ torch.from_numpy(mate.rotation).float() for mate in self.near]
        return torch.cat((self.same, *near))


def find_mates(halves: HalfMaps) -> Mates:
    """The map's symmetries, those it was given and others, and its near-symmetries."""
    first, second = halves.unfiltered
    shells = max(SHELLS_FOR_SYMMETRY, int(halves.fsc.crossing(0.5)))
    near: list[MapAlignment] = []
    true: list[MapAlignment] = []
    same = list(Mates.of_imposed(halves).same)
    for mate in find_near_symmetries((first + second) * halves.mask, group=torch.stack(same).double()):
        if _deficit(halves, mate, shells) > TRUE_SYMMETRY_DEFICIT:
            near.append(mate)
        else:
            true.append(mate)
            same.append(torch.from_numpy(mate.rotation).float())
    return Mates(tuple(near), complete_group(torch.stack(same)), tuple(true))


def _deficit(halves: HalfMaps, mate: MapAlignment, shells: int) -> float:
    """How much less a map is like its turned self than its noise allows, mean FSC.

    A true symmetry makes it agree with that as well as the half-maps agree with each other. What is only in the one
    or the other counts: they are compared where either is.
    """
    mask = torch.maximum(halves.mask, apply_alignment(halves.mask, mate))
    first, second = halves.unfiltered
    of_halves = compute_fsc(first, second, mask).correlation
    attainable = 2 * of_halves / (1 + np.abs(of_halves))
    alike = compute_fsc(apply_alignment(first + second, mate), first + second, mask).correlation
    return float((attainable - alike)[2:shells].mean())


def complete_group(elements: Float[Tensor, "m 3 3"]) -> Float[Tensor, "g 3 3"]:
    """With all products of rotations that are part of a group; as they are where they are not."""
    complete = list(elements)
    for first in complete:  # which grows meanwhile
        for second in elements[1:]:
            product = first @ second
            known = torch.stack(complete)
            if rotation_angle(known, product.expand_as(known)).amin() > _SAME_ELEMENT_RADIANS:
                complete.append(product)
        if len(complete) > _LARGEST_GROUP:
            return elements
    return torch.stack(complete)


def group_about_one_point(
    group: Float[np.ndarray, "g 3 3"], elements: Sequence[MapAlignment]
) -> tuple[MapAlignment, ...]:
    """All elements of a group but the identity, about the point that explains the shifts of some of them best.

    Parameters
    ----------
    group
        Its rotations.
    elements
        Some of them as they were found; shifts in px, as those of the result.
    """
    lever = np.concatenate([np.eye(3) - one.rotation for one in elements])
    centre = np.linalg.lstsq(lever, np.concatenate([one.shift for one in elements]), rcond=1e-3)[0]
    turns = [rotation for rotation in group if np.trace(rotation) < 3 - _IDENTITY]
    return tuple(MapAlignment(rotation, centre - rotation @ centre, False, 1.0) for rotation in turns)


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
        poses += [apply_mate(mate, *poses[0], data.pixel_size) for mate in mates]
        local = refine_poses(
            portion.batch, portion.volume, state.noise_power, torch.cat([r for r, _ in poses]),
            torch.cat([t for _, t in poses]), portion.image_of.repeat(len(poses)), _ITERATIONS,
        )  # fmt: skip
        cost = local.cost.view(len(poses), len(at))
        pick = cost.argmin(0) * len(at) + torch.arange(len(at))
        rotation[at], translation[at] = local.rotation[pick], local.translation[pick]
        weight[at] = torch.softmax(-cost, 0).amax(0).float()

    map_particles(data, references, compete, radius=radius, on_chunk=on_chunk, views=state.rotation)
    return replace(state, rotation=rotation, translation=translation), weight


def apply_mate(
    mate: MapAlignment, rotation: Tensor, translation: Tensor, pixel_size: float
) -> tuple[Tensor, Tensor]:
    """The pose at which the other map, or the nearly symmetric one, looks the same.

    It is ``Q R``, and the shift seen in its plane; with ``S R S`` for R where the other map has the other hand
    (`cryoai.metrics.alignment`). Shifts of the mate are px, translations Å.
    """
    if mate.mirrored:
        reflect = torch.from_numpy(MIRROR).to(rotation)
        rotation = reflect @ rotation @ reflect
    turned = torch.from_numpy(mate.rotation).to(rotation) @ rotation
    shift = torch.from_numpy(mate.shift).to(translation) * pixel_size
    return turned, translation - (shift @ turned)[:, :2]
