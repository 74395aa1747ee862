"""Particles that go from one class to another, where maps of both are related: by the likelihood in all shells.

A bootstrap's few shells leave some images of one state in the class of another, and two of its classes may hold
one molecule. Once classes have maps of more shells, these are laid on each other, which takes every pose of one
class to a pose in the other; no pose is searched. A particle is compared with the maps of the half-set that it is
not in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.ab_initio.alike import compare_volumes
from cryoai.metrics.alignment import MapAlignment, align_maps
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import volume_from_map
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.mates import apply_mate
from cryoai.refinement.posed import PosedParticles
from cryoai.refinement.rounds import own_references
from cryoai.refinement.state import RefinementState, merge_states

# Maps are related if they agree so well in the shells of a bootstrap, so many of them.
_RELATED, _RELATED_SHELLS = 0.4, 12
# A class that its images need by fewer nats than this each is the other one.
_NEEDED_NATS = 2.0


@dataclass(frozen=True, eq=False)
class PosedClass:
    """A class on its way: its particles with poses, and the half-maps that these make.

    Attributes
    ----------
    state
        What is not of the class takes no part.
    halves
        Its half-maps.
    """

    state: RefinementState
    halves: HalfMaps


@dataclass(frozen=True, eq=False)
class Exchanged:
    """Who is where after an exchange.

    Attributes
    ----------
    states
        Of the classes that are left.
    kept
        Which ones these are.
    certainty
        (n,) probability of the class that each particle is in now; NaN where no other is related.
    losses
        Of each class that is left: what its images would lose without it, nats each; infinite where no other is
        related.
    moved
        How many particles have changed their class.
    """

    states: tuple[RefinementState, ...]
    kept: tuple[int, ...]
    certainty: Float[Tensor, " n"]
    losses: tuple[float, ...]
    moved: int


def exchange_particles(data: ParticleData, classes: Sequence[PosedClass], radius: float) -> Exchanged:
    """Put every particle into the likeliest of the classes that are related to its own.

    A class whose images do as well in another goes into that one altogether.

    Parameters
    ----------
    data
        The particles.
    classes
        At least one.
    radius
        Shells that are compared.
    """
    links = _relate(classes)
    gains = [_gains(data, classes, index, links, radius) for index in range(len(classes))]
    copies = _find_copies(gains)
    kept = tuple(index for index in range(len(classes)) if index not in copies)
    shares = torch.tensor([max(1, len(one.state.used)) for one in classes]).double().log()
    states = [classes[index].state for index in kept]
    certainty, moved = torch.full((len(data),), torch.nan), 0
    for index, one in enumerate(classes):
        rows = one.state.used
        odds = gains[index] + shares
        odds[:, [other for other in range(len(classes)) if other not in kept]] = -torch.inf
        best = odds.argmax(1).numpy()
        if len(rows) and int(odds.isfinite().sum(1).max()) > 1:
            certainty[rows] = odds.softmax(1).amax(1).float()
        for target in np.unique(best[best != index]):
            at = rows[best == target]
            moved += len(at)
            there = _transfer(data, one.state, links[index, int(target)], at)
            if index in kept:
                states[kept.index(index)] = leave_out(states[kept.index(index)], at)
            place, chosen = kept.index(int(target)), np.zeros(len(data), bool)
            chosen[at] = True
            states[place] = merge_states(states[place], there, chosen)
    losses = tuple(_loss(gains[index], index, kept) for index in kept)
    return Exchanged(tuple(states), kept, certainty, losses, moved)


def _relate(classes: Sequence[PosedClass]) -> dict[tuple[int, int], MapAlignment]:
    """How poses of one class become poses of another, for all pairs whose maps are related."""
    links = {}
    volumes = [volume_from_map(one.halves.wiener_map(), one.halves.radius).to("cpu") for one in classes]
    for first, second in combinations(range(len(classes)), 2):
        radius = int(min(_RELATED_SHELLS, *(classes[index].halves.radius for index in (first, second))))
        if compare_volumes(volumes[first], volumes[second], radius)[0] < _RELATED:
            continue
        density, reference = (classes[index].halves.wiener_map().cpu() for index in (second, first))
        links[first, second] = align_maps(density, reference)
        links[second, first] = links[first, second].inverse()
    return links


def _gains(
    data: ParticleData,
    classes: Sequence[PosedClass],
    index: int,
    links: dict[tuple[int, int], MapAlignment],
    radius: float,
) -> Float[Tensor, "m classes"]:
    """Of a class's particles by their own map and by related ones, of the other half-set; -inf elsewhere."""
    state = classes[index].state
    rows = state.used
    gains = torch.full((len(rows), len(classes)), -torch.inf, dtype=torch.double)
    for other, one in enumerate(classes):
        if other == index:
            posed = state
        elif (index, other) in links:
            posed = _transfer(data, state, links[index, other], rows)
        else:
            continue
        references = own_references(data, state, one.halves).swapped()
        gains[:, other] = PosedParticles(data, posed, radius).gains(rows, references)
    return gains


def _loss(gains: Float[Tensor, "m classes"], index: int, kept: Sequence[int]) -> float:
    """What the images of a class lose in the best of the others, nats each."""
    others = [other for other in kept if other != index]
    if not others or not len(gains):
        return math.inf
    lost = gains[:, index] - gains[:, others].amax(1)
    return float(lost.mean())


def _find_copies(gains: Sequence[Float[Tensor, "_ classes"]]) -> set[int]:
    """Classes that are not needed beside others, which stay then; the smallest go first."""
    copies: set[int] = set()
    stand_in: set[int] = set()
    for index in sorted(range(len(gains)), key=lambda index: len(gains[index])):
        kept = [other for other in range(len(gains)) if other not in copies]
        if index not in stand_in and _loss(gains[index], index, kept) < _NEEDED_NATS:
            others = [other for other in kept if other != index]
            stand_in.add(others[int(gains[index][:, others].mean(0).argmax())])
            copies.add(index)
    return copies


def _transfer(
    data: ParticleData, state: RefinementState, link: MapAlignment, rows: Int[np.ndarray, " m"]
) -> RefinementState:
    """The same particles with their poses in the frame of another map."""
    rotation, translation = state.rotation.clone(), state.translation.clone()
    rotation[rows], translation[rows] = apply_mate(link, rotation[rows], translation[rows], data.pixel_size)
    return replace(state, rotation=rotation, translation=translation)


def leave_out(state: RefinementState, rows: Int[np.ndarray, " m"]) -> RefinementState:
    """The state of a class without some of its particles."""
    half = state.half.copy()
    half[rows] = -1
    return replace(state, half=half)
