"""Classes once their particles have poses: what is in the wrong one, what are copies, what holds two states.

A bootstrap tells classes apart in a few shells. After two rounds of refinement maps have many more, and poses need
not be searched: particles go to the class that they fit best (`cryoai.refinement.exchange`), and a class is divided
where its particles show two states of it (`cryoai.refinement.states`), as long as there are fewer classes than were
asked for. A class of the bootstrap that died, or was a copy of another, has its place taken that way. What fits its
class badly is searched against the others (`cryoai.refinement.misfits`). Cleaner classes make better maps, by which
more is told: all of it is done up to three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.ab_initio.classify import Classification
from cryoai.ab_initio.starts import FEWEST_OF_CLASS, LARGEST_GUESS, tell_of_class
from cryoai.geometry.fourier import full_radius
from cryoai.metrics.classes import SINK
from cryoai.particles.dataset import ParticleData
from cryoai.reconstruction.first_poses import CLASSIFIED, FirstClasses
from cryoai.refinement.exchange import PosedClass, exchange_particles
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.misfits import place_misfits
from cryoai.refinement.poses import reconstruct_halves
from cryoai.refinement.rounds import diameter_px, refine
from cryoai.refinement.state import RefinementState
from cryoai.refinement.states import find_two_states
from cryoai.run.context import Run
from cryoai.run.streams import stream_seed

# Rounds that maps are made with first, and shells that are compared at least.
_ROUNDS, _FEWEST_SHELLS = 2, 12
# Where one map is made, so many particles of each half-set are asked whether they show two states, in these shells.
_ASKED, _ASKED_SHELLS = 1_000, 16
# So few moves are not worth beginning again.
_FEW_MOVED = 0.01
# Classes are sorted again after each two rounds of refinement, so often at most.
_PASSES = 3


@dataclass(frozen=True, eq=False)
class Sorted:
    """Classes after the exchange, in no order.

    Attributes
    ----------
    states
        Poses of each.
    parent
        Which of the classes before each comes from.
    losses
        What the images of each would lose without it, nats; infinite where no other is related.
    certainty
        (n,) probability of each particle's class among those that are related to it, or that it was searched in;
        NaN where there are none.
    is_changed
        Whether any of them differs from what it was.
    """

    states: tuple[RefinementState, ...]
    parent: tuple[int, ...]
    losses: tuple[float, ...]
    certainty: Float[Tensor, " n"]
    is_changed: bool


def sort_classes(data: ParticleData, first: FirstClasses, run: Run) -> FirstClasses:
    """Exchange particles between classes and divide those that hold two states; a single map stays as it is.

    Parameters
    ----------
    data
        The particles.
    first
        The classes and their first poses.
    run
        Options, checkpoints and progress.
    """
    if first.classification is None:
        return first
    after = CLASSIFIED
    for number in range(1, _PASSES + 1):
        name = f"sorted_{number}"
        with run.timed("sorting classes"):
            found = _sort_once(data, first, run, name, after)
        if not found.is_changed:
            break
        first, after = _begin_again(first, found, run, name), name
    _tell(first, run)
    return first


def _sort_once(data: ParticleData, first: FirstClasses, run: Run, name: str, after: str) -> Sorted:
    """One pass, kept when it is done."""

    def compute() -> Sorted:
        return _sort(data, first, run)

    config = run.config
    inputs = {
        "refine": config.refine.model_dump(exclude={"max_rounds"}), "classes": config.classes, "seed": config.seed,
        "particle_diameter": config.particle_diameter, "symmetry": config.imposed_symmetry,
        "first": config.bootstrap, "sorts": config.refine.max_rounds >= _ROUNDS,
    }  # fmt: skip
    return run.checkpoint.step(name, Sorted, inputs, compute, after)


def tell_of_states(data: ParticleData, state: RefinementState, halves: HalfMaps, run: Run) -> None:
    """Warn where a single map stands for two states.

    Parameters
    ----------
    data, state, halves
        The particles, their final poses, and the half-maps that these make.
    run
        Options and progress.
    """
    if run.config.classes != 1 or run.config.known_poses:
        return
    radius = float(min(_ASKED_SHELLS, full_radius(data.disk.box_size)))
    with run.progress.step("Whether the particles show two states", 1) as done:
        found = find_two_states(data, state, halves, radius, run.config.seed, _ASKED)
        done(1)
    if found is not None and found.differ:
        share = 100 * float(found.probability[state.present, 1].mean())
        run.warn(
            f"the particles show two states, about {100 - share:.0f} and {share:.0f} % of them: images of the "
            f"rarer one lose {found.nats:.0f} nats each in one map of both (--classes auto makes a map of each)"
        )


def _sort(data: ParticleData, first: FirstClasses, run: Run) -> Sorted:
    count = len(first.classes)
    unchanged = Sorted(
        tuple(one.state for one in first.classes), tuple(range(count)),
        tuple(one.ab_initio.loss for one in first.classes if one.ab_initio),
        torch.full((len(data),), torch.nan), is_changed=False,
    )  # fmt: skip
    if run.config.refine.max_rounds < _ROUNDS:
        return unchanged
    states, radii = [], []
    for one in first.classes:
        state, rounds = refine(data, one.state, one.run, one.saved_as, one.shared_shells, _ROUNDS)
        states.append(state)
        radii.append(rounds[-1].pose_radius)
    sorting = _Sorting(data, run, states, max(_FEWEST_SHELLS, min(radii)))
    sorting.exchange()
    most = LARGEST_GUESS if run.config.classes == "auto" else run.config.classes
    if sorting.divide(most):
        sorting.exchange()
    sorting.place_misfits()
    if not sorting.is_changed:
        return unchanged
    return Sorted(
        tuple(sorting.states), tuple(sorting.parent), tuple(sorting.losses), sorting.certainty, is_changed=True
    )


class _Sorting:
    """Classes while they change."""

    def __init__(self, data: ParticleData, run: Run, states: Sequence[RefinementState], radius: float) -> None:
        self._data, self._run, self._radius = data, run, radius
        self.states = list(states)
        self._classes = [self._posed(state) for state in states]
        self.parent, self.losses = list(range(len(states))), [float("inf")] * len(states)
        self.certainty = torch.full((len(data),), torch.nan)
        self.is_changed = False

    def _posed(self, state: RefinementState) -> PosedClass:
        data, config = self._data, self._run.config
        full, diameter = full_radius(data.disk.box_size), diameter_px(config, data)
        halves = reconstruct_halves(data, state, full, diameter, symmetry=config.imposed_symmetry)
        return PosedClass(state, halves)

    def exchange(self) -> None:
        """Every particle to the class that it fits best."""
        with self._run.progress.step("Particles that fit another class better", 1) as done:
            found = exchange_particles(self._data, self._classes, self._radius)
            done(1)
        if copies := len(self.states) - len(found.kept):
            self._run.progress.say(f"{copies} of {len(self.states)} classes show what another one shows")
        if found.moved:
            self._run.progress.say(f"{found.moved:,} particles fit another class better")
        self.is_changed |= copies > 0
        self._note_moves(found.moved)
        before = [self.states[index] for index in found.kept]
        self.parent = [self.parent[index] for index in found.kept]
        self._classes = [
            self._classes[index] if np.array_equal(new.half, old.half) else self._posed(new)
            for index, old, new in zip(found.kept, before, found.states, strict=True)
        ]
        self.states, self.losses, self.certainty = list(found.states), list(found.losses), found.certainty

    def place_misfits(self) -> None:
        """What fits badly where it is to where a search finds that it fits."""
        if len(self._classes) == 1:
            return
        name = "Particles that fit badly, in the other classes"
        with self._run.progress.step(name, len(self._classes)) as done:
            found = place_misfits(self._data, self._classes, self._radius, self._run.config, done)
        if moved := len(found.moved):
            self._run.progress.say(f"{moved:,} particles that fitted badly fit another class")
            self._note_moves(moved)
            self.certainty[found.moved] = found.certainty
            self.states, self._classes = list(found.states), [self._posed(state) for state in found.states]

    def _note_moves(self, count: int) -> None:
        self.is_changed |= count > _FEW_MOVED * sum(len(state.used) for state in self.states)

    def divide(self, most: int) -> bool:
        """Divide classes that hold two states, the clearest first, until there are so many; whether any was."""
        tried: dict[int, tuple[float, RefinementState, RefinementState] | None] = {}
        divided = False
        while len(self.states) < most:
            tried |= {i: self._try_to_divide(i) for i in range(len(self.states)) if i not in tried}
            clear = [(found, index) for index, found in tried.items() if found is not None]
            if not clear:
                break
            (nats, one, other), index = max(clear, key=lambda option: option[0][0])
            self._run.progress.say(
                f"A class of {len(self.states[index].used):,} particles holds two states, of {len(one.used):,} "
                f"and {len(other.used):,}: images of the rarer one lose {nats:.0f} nats each without it"
            )
            del tried[index]
            self.states[index], self._classes[index] = one, self._posed(one)
            self.states.append(other)
            self._classes.append(self._posed(other))
            self.parent.append(self.parent[index])
            divided = self.is_changed = True
        return divided

    def _try_to_divide(self, index: int) -> tuple[float, RefinementState, RefinementState] | None:
        """The two states of a class with the nats that tell them apart, or None for one."""
        state, halves = self._classes[index].state, self._classes[index].halves
        seed = stream_seed(self._run.config.seed, "states", len(state.used))
        with self._run.progress.step(f"Two states among {len(state.used):,} particles", 1) as done:
            found = find_two_states(self._data, state, halves, self._radius, seed)
            done(1)
        if found is None or not found.differ:
            return None
        second = (found.probability[:, 1] > 0.5).numpy()
        both = [replace(state, half=np.where(chosen, state.half, -1)) for chosen in (~second, second)]
        if min(len(one.used) for one in both) < FEWEST_OF_CLASS:
            return None
        return found.nats, both[0], both[1]


def _begin_again(first: FirstClasses, found: Sorted, run: Run, name: str) -> FirstClasses:
    """The sorted classes, the largest first, with steps of their own."""
    old = first.classification
    assert old is not None
    asked = run.config.classes
    room = len(first.too_small) if asked == "auto" else max(0, asked - len(found.states))
    too_small = first.too_small[:room]
    # Particles of maps that another class has taken the place of are in none.
    label = np.full(len(old.label), SINK)
    for index in range(len(too_small)):
        label[old.label == len(first.classes) + 1 + index] = len(found.states) + 1 + index
    order = sorted(range(len(found.states)), key=lambda index: -len(found.states[index].used))
    classes = []
    for number, index in enumerate(order, 1):
        state, parent = found.states[index], first.classes[found.parent[index]]
        label[state.used] = number
        own = run.of_class(number, name)
        ab_initio = parent.ab_initio
        if ab_initio is not None:
            ab_initio = replace(ab_initio, loss=found.losses[index])
        classes.append(replace(parent, state=state, saved_as=None, run=own, ab_initio=ab_initio))
    confidence = torch.where(found.certainty.isnan(), old.confidence, found.certainty)
    classification = Classification(label, confidence, len(classes) + len(too_small))
    return FirstClasses(tuple(classes), classification, too_small)


def _tell(first: FirstClasses, run: Run) -> None:
    """What the user should know of each class."""
    assert first.classification is not None
    counts = first.classification.counts.tolist()
    in_words = ", ".join(f"{count:,} in class {number}" for number, count in enumerate(counts[1:], 1))
    run.progress.say(f"Images: {in_words}, {counts[SINK]:,} in none")
    asked, found = run.config.classes, len(first.classes)
    for number, one in enumerate(first.classes, 1):
        assert one.ab_initio is not None
        tell_of_class(one.ab_initio, number, one.run)
    for number, count in enumerate(counts[found + 1 :], found + 1):
        run.warn(f"class {number} has {count} particles, too few to refine it: its map is the bootstrap's")
    if asked != "auto" and found + len(first.too_small) < asked:
        run.warn(f"{asked} classes were asked for, but no more than {found} differ in what the images can tell")
