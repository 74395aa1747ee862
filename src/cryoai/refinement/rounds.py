"""The rounds of a refinement: when to search again, when to try mates, when to stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import full_radius
from cryoai.geometry.rotations import rotation_angle
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.refinement.break_symmetry import can_ask, move_to_mates, try_to_break
from cryoai.refinement.confidence import (
    CONFIDENT,
    FitSummary,
    estimate_confidence,
    summarise_fits,
)
from cryoai.refinement.global_search import GlobalSearch, search_globally
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.judge_poses import judge_poses
from cryoai.refinement.map_particles import References, one_reference
from cryoai.refinement.mates import Mates, find_mates, group_about_one_point, try_mates
from cryoai.refinement.neighbours import measure_alone
from cryoai.refinement.poses import reconstruct_halves, refine_locally, update_noise
from cryoai.refinement.search_again import SearchSummary, search_again
from cryoai.refinement.state import RefinementState
from cryoai.refinement.symmetry import FoundSymmetry, find_symmetry
from cryoai.run.config import ReconstructConfig
from cryoai.run.context import Run
from cryoai.run.progress import Progress

SHELLS_OF_EVIDENCE = 2.0
"""Half-maps that agree so many shells beyond what both were aligned to agree on their own."""

# Translations that leave a particle inside its box, box lengths.
_FARTHEST = 0.45
# Shells beyond the half-maps' agreement that poses are refined against.
_RADIUS_MARGIN = 2
# A pose that is known in some shells can be refined against this multiple of them.
_LARGEST_STEP = 2.0
# A map without near-symmetries in its first rounds will not have any later.
_LAST_MATES_ROUND = 2
# By then the halves' own agreement is well beyond what they shared at first.
_BREAKING_ROUND = 2
# Mates need not be tried again once nearly every particle stays where it is.
_MATES_SETTLED = 0.005
# A particle whose rotation changes by more has gone to a mate.
_MOVED_RADIANS = 0.2
_FIRST_POSSIBLE_END = 4
# Images with two particles are told of from this share.
_TOLD_OF = 0.02
# Converged: the median rotation changes by less than this share of its standard deviation, or this angle.
_SETTLED_SHARE, _SETTLED_RADIANS = 0.3, 5e-4
# Not converged: the half-maps agree to so many more shells than before, or so large a share went to a mate.
_STILL_BETTER_SHELLS, _STILL_MOVING = 0.2, 0.02


@dataclass(frozen=True)
class RoundSummary:
    """What one round of refinement did.

    Attributes
    ----------
    round
        From 1.
    fsc_radius
        Shell at which the half-map FSC falls below 0.143.
    pose_radius
        Shells that poses were refined against.
    rotation_change_deg
        Median change of a rotation.
    search
        What searching again did.
    mates
        Near-symmetries tried.
    mates_moved
        Particles that went to a mate.
    was_symmetric_by_chance
        Whether particles at their mates had made the map symmetric, and have been put right.
    """

    round: int
    fsc_radius: float
    pose_radius: float
    rotation_change_deg: float
    search: SearchSummary = field(default_factory=SearchSummary)
    mates: int = 0
    mates_moved: int = 0
    was_symmetric_by_chance: bool = False

    def record(self) -> dict[str, Any]:
        """Every number as a line of `metrics.jsonl` has it."""
        numbers = asdict(self)
        return {**numbers, **numbers.pop("search")}


@dataclass(frozen=True, eq=False)
class RoundResult:
    """Poses after a round, and what the round did."""

    state: RefinementState
    summary: RoundSummary


@dataclass(frozen=True, eq=False)
class Finished:
    """What a refinement ends with.

    Attributes
    ----------
    state
        Poses, their confidence and standard deviations.
    halves
        The maps that the state makes.
    fits
        How well the particles fit them.
    symmetry
        The point group.
    alone
        (n,) probability that each particle is alone in its image.
    """

    state: RefinementState
    halves: HalfMaps
    fits: FitSummary
    symmetry: FoundSymmetry
    alone: Float[Tensor, " n"]


def assign_all(
    data: ParticleData,
    state: RefinementState,
    volume: FourierVolume,
    radius: float,
    config: ReconstructConfig,
    progress: Progress,
) -> RefinementState:
    """Find every particle's pose against the bootstrap's map inside a radius; the only thing both halves see."""
    search = first_search(data, radius, config)
    with progress.step("Posing every particle", len(state.used)) as done:
        references = one_reference(data, volume)
        state, _ = search_globally(data, state, references, state.used, search, keep_current=False, on_chunk=done)
    return state


def first_search(data: ParticleData, radius: float, config: ReconstructConfig) -> GlobalSearch:
    """Over all poses, where nothing is known of them, within some shells."""
    bootstrap, refine = config.bootstrap, config.refine
    reach = min(refine.first_search_reach * bootstrap.max_shift_box_lengths, _FARTHEST)
    return GlobalSearch(
        int(radius), reach, data.support(config.particle_diameter), refine.first_search_keep, ((radius, 1),),
        symmetry=config.imposed_symmetry,
    )  # fmt: skip


def refine(
    data: ParticleData,
    state: RefinementState,
    run: Run,
    after: str | None,
    known_radius: float = 0.0,
    most_rounds: int | None = None,
) -> tuple[RefinementState, tuple[RoundSummary, ...]]:
    """Rounds until nothing worth their time changes; each is kept when it is done.

    Parameters
    ----------
    data, state
        The particles and their first poses.
    run
        Options, checkpoints and progress.
    after
        The checkpoint that the first poses are kept in; None where they are the input's.
    known_radius
        Shells that the first poses were found in; 0 if that is not known.
    most_rounds
        Stop after so many rounds, to go on later; by default as the options say.
    """
    summaries: list[RoundSummary] = []
    config = run.config
    inputs = {
        "refine": config.refine.model_dump(exclude={"max_rounds"}), "seed": config.seed,
        "particle_diameter": config.particle_diameter, "least_radius": config.bootstrap.last_radius,
        "known_radius": known_radius, "symmetry": config.imposed_symmetry,
    }  # fmt: skip
    most = config.refine.max_rounds if most_rounds is None else min(most_rounds, config.refine.max_rounds)
    for number in range(1, most + 1):
        previous = summaries[-1] if summaries else None
        reached = previous.pose_radius if previous else known_radius

        def one_round(
            state: RefinementState = state,
            number: int = number,
            previous: RoundSummary | None = previous,
            reached: float = reached,
        ) -> RoundResult:
            return refinement_round(data, state, number, config, run.progress, previous, reached)

        name = f"round_{number:02d}"
        result = run.checkpoint.step(name, RoundResult, inputs, one_round, after)
        state, after = result.state, name
        summaries.append(result.summary)
        resolution = data.disk.box_size * data.pixel_size / result.summary.fsc_radius
        run.progress.say(f"Round {number}: half-maps agree to {resolution:.2f} Å")
        if is_settled(state, result.summary, previous):
            break
    return state, tuple(summaries)


def refinement_round(
    data: ParticleData,
    state: RefinementState,
    number: int,
    config: ReconstructConfig,
    progress: Progress,
    previous: RoundSummary | None,
    reached: float = 0.0,
) -> RoundResult:
    """Half-maps, noise and poses once around; doubtful particles are searched again in early rounds.

    ``reached``: shells that the poses have been refined against; they are not taken to more than twice as many at
    once, out of whose reach they may lie. 0 if that is not known.
    """
    name = f"Refinement round {number}"
    used = state.used
    before = state
    full = full_radius(data.disk.box_size)
    with progress.step(f"{name}: half-maps", len(used)) as done:
        halves = reconstruct_halves(data, state, full, diameter_px(config, data), done, config.imposed_symmetry)
    references = own_references(data, state, halves)
    fsc_radius = halves.fsc.crossing(0.143)
    radius = _pose_radius(fsc_radius, full, config)
    if reached > 0:
        radius = min(radius, _LARGEST_STEP * reached)
    state = update_noise(data, state, references, full)
    with progress.step(f"{name}: poses to shell {radius:.0f}", len(used)) as done:
        state = refine_locally(data, state, references, radius, on_chunk=done)
    present = before.present
    change = rotation_angle(state.rotation[present], before.rotation[present]).median()
    result = RoundResult(state, RoundSummary(number, fsc_radius, radius, float(torch.rad2deg(change))))
    chosen = config.refine.search_after(number)
    are_tried = _should_try_mates(state, number, previous)
    mates = find_mates(halves) if are_tried or chosen is not None else Mates.of_imposed(halves)
    if are_tried:
        result = _mates_step(data, result, references, mates, progress, name)
    if chosen is not None:
        state, done = search_again(
            data, result.state, references, chosen, radius, config, progress, mates.rotations
        )
        result = RoundResult(state, replace(result.summary, search=done))
    may_be_chance = config.imposed_symmetry == "C1" and mates.elements and can_ask(state)
    if number == _BREAKING_ROUND and may_be_chance:
        return _break_symmetry(data, result, halves, mates, config, progress)
    return result


def _break_symmetry(
    data: ParticleData,
    result: RoundResult,
    halves: HalfMaps,
    mates: Mates,
    config: ReconstructConfig,
    progress: Progress,
) -> RoundResult:
    """Leave a symmetry that particles at their mates have made, where there is none; see `break_symmetry`."""
    state, radius = result.state, result.summary.pose_radius
    elements = group_about_one_point(mates.same.double().numpy(), mates.elements)
    with progress.step(f"Refinement round {_BREAKING_ROUND}: is the map symmetric by chance", 1) as done:
        broken = try_to_break(data, state, halves, elements, radius, config.seed)
        done(1)
    if not broken.is_better:
        return result
    progress.say(
        f"The map was symmetric by chance: images gain {broken.gain:.1f} ± {broken.gain_error:.1f} nats without"
    )
    moved = move_to_mates(data, state, broken, elements, radius)
    return RoundResult(moved, replace(result.summary, was_symmetric_by_chance=True))


def finish(data: ParticleData, state: RefinementState, run: Run, shared_shells: float) -> Finished:
    """The final half-maps, each particle's confidence and pose standard deviations, and how well the set fits.

    Poses go to their mates before the maps are made from them. Confidence is measured against the other half's map,
    which has not taken the particle in: against its own, a particle fits for being in it. Where the half-maps agree
    no further than what both have been aligned to, nothing speaks for any pose.

    Parameters
    ----------
    data, state
        The particles and their refined poses.
    run
        Options and progress; warned where the half-maps are no evidence.
    shared_shells
        Shells within which both halves have seen the same map.
    """
    config, progress = run.config, run.progress
    full = full_radius(data.disk.box_size)
    halves = _final_halves(data, state, config, progress)
    weight = torch.ones(len(data))
    mates = find_mates(halves)
    if mates.near and not config.known_poses:
        radius = _pose_radius(halves.fsc.crossing(0.143), full, config)
        state, weight = try_mates(data, state, own_references(data, state, halves), mates.near, radius)
        # Those that stay have been refined once more, too.
        halves = _final_halves(data, state, config, progress)
    references = own_references(data, state, halves)
    radius = _pose_radius(halves.fsc.crossing(0.143), full, config)
    judged = judge_poses(data, state, references.swapped(), radius, config, progress, mates)
    state, quality, expected = judged.state, judged.fits.quality, judged.fits.expected
    presence = judged.fits.presence()
    with progress.step("Particles that overlap others", len(state.used)) as done:
        alone = measure_alone(data, state, references.swapped(), config, done)
    _tell_of_company(alone[state.used][presence > CONFIDENT], run)
    sure = estimate_confidence(quality, expected) * weight[state.used] * judged.share * presence
    sure = sure * alone[state.used]
    if halves.fsc.crossing(0.143) < shared_shells + SHELLS_OF_EVIDENCE:
        # None is above `CONFIDENT` then, and which fits better stays known.
        sure = sure * CONFIDENT
        run.warn(_no_evidence(shared_shells, data.disk.box_size * data.pixel_size))
    confidence = torch.zeros(len(data))
    confidence[state.used] = sure
    with progress.step("Symmetry", 1) as done:
        symmetry = _look_for_symmetry(data, state, halves, mates, radius, config)
        done(1)
    fits = summarise_fits(quality, expected, sure, presence)
    return Finished(replace(state, confidence=confidence), halves, fits, symmetry, alone)


def _look_for_symmetry(
    data: ParticleData,
    state: RefinementState,
    halves: HalfMaps,
    mates: Mates,
    radius: float,
    config: ReconstructConfig,
) -> FoundSymmetry:
    if config.symmetry == "auto":
        return find_symmetry(data, state, halves, mates, radius, config.seed)
    return FoundSymmetry(config.symmetry, is_imposed=True)


def _tell_of_company(alone: Tensor, run: Run) -> None:
    together = float((alone <= CONFIDENT).float().mean())
    if together >= _TOLD_OF:
        run.warn(
            f"{100 * together:.0f} % of the particles overlap another one in their image: their poses are not "
            "called confident"
        )


def _no_evidence(shared_shells: float, box_length: float) -> str:
    agree = "the half-maps agree in next to nothing"
    if shared_shells > 0:
        shared = f"{box_length / shared_shells:.0f} Å"
        agree = f"the half-maps agree hardly beyond {shared}, to which both were aligned by one map"
    return f"{agree}: that is no evidence that the map is right, and no pose is called confident"


def own_references(data: ParticleData, state: RefinementState, halves: HalfMaps) -> References:
    """Each particle with its own half's map."""
    return References(state.half, tuple(halves.reference(half).to(data.device) for half in (0, 1)))


def is_settled(state: RefinementState, summary: RoundSummary, previous: RoundSummary | None) -> bool:
    """Whether another round would change nothing worth its time."""
    if previous is None or summary.round < _FIRST_POSSIBLE_END:
        return False
    if summary.fsc_radius > previous.fsc_radius + _STILL_BETTER_SHELLS:
        return False
    if summary.mates_moved > _STILL_MOVING * len(state.used):
        return False
    spread = float(torch.rad2deg(state.rotation_std[state.present].median()))
    return summary.rotation_change_deg < max(_SETTLED_SHARE * spread, np.degrees(_SETTLED_RADIANS))


def _final_halves(
    data: ParticleData, state: RefinementState, config: ReconstructConfig, progress: Progress
) -> HalfMaps:
    with progress.step("Final half-maps", len(state.used)) as done:
        full, diameter = full_radius(data.disk.box_size), diameter_px(config, data)
        return reconstruct_halves(data, state, full, diameter, done, config.imposed_symmetry)


def _should_try_mates(state: RefinementState, number: int, previous: RoundSummary | None) -> bool:
    """In the first rounds, and then until the choice among the mates has stopped changing."""
    if number <= _LAST_MATES_ROUND or previous is None or previous.was_symmetric_by_chance:
        return True
    return previous.mates > 0 and previous.mates_moved > _MATES_SETTLED * len(state.used)


def _pose_radius(fsc_radius: float, full: float, config: ReconstructConfig) -> float:
    """Shells for poses: where the half-maps agree and a little more, the bootstrap's at least."""
    return float(min(full, max(_RADIUS_MARGIN + int(fsc_radius), config.bootstrap.last_radius)))


def diameter_px(config: ReconstructConfig, data: ParticleData) -> float | None:
    """The particle's diameter as the options give it, px."""
    return None if config.particle_diameter is None else config.particle_diameter / data.pixel_size


def _mates_step(
    data: ParticleData,
    result: RoundResult,
    references: References,
    mates: Mates,
    progress: Progress,
    name: str,
) -> RoundResult:
    if not mates.near:
        return result
    state, summary = result.state, result.summary
    before = state.rotation[state.used]
    with progress.step(f"{name}: {len(mates.near)} near-symmetry mates", len(state.used)) as done:
        state, _ = try_mates(data, state, references, mates.near, summary.pose_radius, on_chunk=done)
    moved = int((rotation_angle(state.rotation[state.used], before) > _MOVED_RADIANS).sum())
    return RoundResult(state, replace(summary, mates=len(mates.near), mates_moved=moved))
