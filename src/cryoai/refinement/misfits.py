"""Particles that fit their class badly, searched against the maps of the other classes.

A molecule that was put into the class of another one by a bootstrap's few shells has no right pose there, so that
none can be carried over to where it belongs: it must be looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.ab_initio.starts import FEWEST_OF_CLASS
from cryoai.particles.dataset import ParticleData
from cryoai.refinement.confidence import measure_fit_scale
from cryoai.refinement.exchange import PosedClass, leave_out
from cryoai.refinement.fits import measure_fits
from cryoai.refinement.global_search import GlobalSearch, search_globally
from cryoai.refinement.map_particles import OnChunk
from cryoai.refinement.posed import PosedParticles
from cryoai.refinement.rounds import first_search, own_references
from cryoai.refinement.state import RefinementState, merge_states
from cryoai.run.config import ReconstructConfig

# Standard deviations below a good fit from which a particle is looked for in other classes: a molecule fits the map
# of another one of its size half as well as its own.
_DOUBT = 0.5
# A pose found in some shells is compared in so many times as many.
_SHELLS_BEYOND = 2.0
# Nats by which another class must be better: the best of several searches is better by chance.
_BETTER = 3.0


@dataclass(frozen=True, eq=False)
class Placed:
    """Who is where after misfits were looked for in other classes.

    Attributes
    ----------
    states
        Of the classes, in their order.
    moved
        (m,) rows of the particles that have changed their class.
    certainty
        (m,) of each of these: probability of its new class, at the best pose that was found in each.
    """

    states: tuple[RefinementState, ...]
    moved: Int[np.ndarray, " m"]
    certainty: Float[Tensor, " m"]


def place_misfits(
    data: ParticleData,
    classes: Sequence[PosedClass],
    radius: float,
    config: ReconstructConfig,
    on_chunk: OnChunk = lambda done: None,
) -> Placed:
    """Move particles that fit their class badly to the class in which a search finds a better pose, if any does.

    A class that would be left with too few particles to be one keeps them.

    Parameters
    ----------
    data
        The particles.
    classes
        All of them.
    radius
        Shells that may be compared.
    config
        How far translations and the particles reach.
    on_chunk
        Called with the number of classes done so far.
    """
    search = first_search(data, config.bootstrap.last_radius, config)
    inner = min(radius, _SHELLS_BEYOND * search.radius)
    search = replace(search, stages=((float(search.radius), 2), (inner, 1)))
    states = [one.state for one in classes]
    moved, certainty = [np.zeros(0, int)], [torch.zeros(0)]
    for index, one in enumerate(classes):
        on_chunk(index)
        rows = _misfits(data, one, radius, config)
        if not len(rows):
            continue
        found, gains = _look_everywhere(data, classes, index, rows, search, inner)
        is_better = gains.amax(1) > gains[:, index] + _BETTER
        target = torch.where(is_better, gains.argmax(1), index).numpy()
        if len(one.state.used) - np.sum(target != index) < FEWEST_OF_CLASS:
            # Nothing would be left to make a map of.
            continue
        for other, posed in found.items():
            at = rows[target == other]
            chosen = np.zeros(len(data), bool)
            chosen[at] = True
            states[index] = leave_out(states[index], at)
            states[other] = merge_states(states[other], posed, chosen)
        moved.append(rows[target != index])
        certainty.append(gains.softmax(1).amax(1)[target != index].float())
    return Placed(tuple(states), np.concatenate(moved), torch.cat(certainty))


def _misfits(
    data: ParticleData, one: PosedClass, radius: float, config: ReconstructConfig
) -> Int[np.ndarray, " m"]:
    """What fits its class badly, or shows nothing of it."""
    state = one.state
    fits = measure_fits(data, state, own_references(data, state, one.halves).swapped(), radius, config)
    scale = measure_fit_scale(fits.quality, fits.expected)
    doubtful = state.used[(fits.quality < scale.centre - _DOUBT * scale.spread).numpy()]
    return np.union1d(doubtful, np.setdiff1d(state.used, state.present))


def _look_everywhere(
    data: ParticleData,
    classes: Sequence[PosedClass],
    index: int,
    rows: Int[np.ndarray, " m"],
    search: GlobalSearch,
    radius: float,
) -> tuple[dict[int, RefinementState], Float[Tensor, "m classes"]]:
    """Poses of particles of one class in each of the others, and what they gain there and where they are."""
    found, gains = {}, torch.empty(len(rows), len(classes), dtype=torch.double)
    for other, there in enumerate(classes):
        if other == index:
            gains[:, other] = _own_gains(data, classes[index], rows, radius)
        else:
            found[other], gains[:, other] = _look(data, classes[index].state, there, rows, search, radius)
    return found, gains


def _own_gains(
    data: ParticleData, one: PosedClass, rows: Int[np.ndarray, " m"], radius: float
) -> Float[Tensor, " m"]:
    """By the map of the half-set that a particle is not in."""
    references = own_references(data, one.state, one.halves).swapped()
    return PosedParticles(data, one.state, radius).gains(rows, references)


def _look(
    data: ParticleData,
    state: RefinementState,
    there: PosedClass,
    rows: Int[np.ndarray, " m"],
    search: GlobalSearch,
    radius: float,
) -> tuple[RefinementState, Float[Tensor, " m"]]:
    """The poses that particles of one class have in another, and what they gain there; no half-map holds them."""
    references = own_references(data, state, there.halves)
    found, _ = search_globally(data, state, references, rows, search, keep_current=False)
    found = replace(found, certainty=torch.ones_like(found.certainty), presence=torch.ones_like(found.presence))
    return found, PosedParticles(data, found, radius).gains(rows, references)
