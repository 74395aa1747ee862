"""The rounds of a refinement: when to search again, when to try mates, when to stop."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.ab_initio.starts import AbInitioResult
from cryoai.geometry.fourier import full_radius, largest_radius
from cryoai.geometry.rotations import rotation_angle
from cryoai.metrics.alignment import MapAlignment, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.metrics.near_symmetry import find_near_symmetries
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.search import make_search_grid, translation_step
from cryoai.refinement.confidence import doubtful_rows, estimate_confidence, fit_quality
from cryoai.refinement.global_search import GlobalSearch, search_globally
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.poses import (
    RefinementState,
    reconstruct_halves,
    refine_locally,
    score_all,
    try_mates,
    update_noise,
)
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress

# Shells beyond the half-maps' agreement that poses are refined against.
_RADIUS_MARGIN = 2
# By round: particles whose fit lies this many (robust) standard deviations below the median are searched again, on
# a grid so many times finer than the first, over this share of the largest translation, at this multiple of the
# search radius. Wide searches of the many come first; the last one, deep and at higher resolution, finds those
# whose low frequencies the CTF has weakened.
_SEARCH_SCHEDULE = {
    1: (1.5, 1, 0.8, 1.0),
    2: (1.3, 1, 0.8, 1.0),
    3: (2.5, 4, 1.0, 1.0),
    4: (2.5, 4, 0.75, 1.5),
}
# A map without near-symmetries in its first rounds will not have any later.
_LAST_MATES_ROUND = 2
# A rotation under which the map's FSC with itself falls short of what its noise allows by less than this, on
# average over at least so many shells, is a true symmetry.
_TRUE_SYMMETRY_DEFICIT, _SHELLS_FOR_SYMMETRY = 0.03, 8
# Mates need not be tried again once nearly every particle stays where it is.
_MATES_SETTLED = 0.005
_FIRST_POSSIBLE_END = 4
# Converged: the median pose moves by less than this share of its standard deviation, or this angle.
_SETTLED_SHARE, _SETTLED_RADIANS = 0.15, 5e-4


@dataclass(frozen=True)
class RoundSummary:
    """What one round of refinement did.

    Attributes
    ----------
    round
        From 1.
    fsc_radius
        Shell at which the masked half-map FSC falls below 0.143.
    pose_radius
        Shells that poses were refined against.
    rotation_change_deg
        Median change of a rotation.
    searched, moved
        Particles searched again globally, and those whose pose changed.
    mates
        Near-symmetries tried.
    mates_moved
        Particles that went to a mate.
    """

    round: int
    fsc_radius: float
    pose_radius: float
    rotation_change_deg: float
    searched: int = 0
    moved: int = 0
    mates: int = 0
    mates_moved: int = 0


def assign_all(
    data: ParticleData,
    state: RefinementState,
    start: AbInitioResult,
    config: ReconstructConfig,
    progress: Progress,
) -> RefinementState:
    """Find every particle's pose against the bootstrap's map; the only thing both halves see."""
    radius = float(min(config.bootstrap.last_radius, largest_radius(data.disk.box_size)))
    box_length = data.disk.box_size * data.pixel_size
    grid = make_search_grid(
        config.bootstrap.rotations,
        1.2 * config.bootstrap.max_shift * box_length,
        translation_step(radius, box_length),
    )
    search = GlobalSearch(grid, radius, 8, ((radius, 1),))
    volumes = [start.best.volume.to(data.device)] * 2
    with progress.step("Posing every particle", len(state.used)) as done:
        state, _ = search_globally(data, state, volumes, state.used, search, keep_current=False, on_chunk=done)
    return state


def refinement_round(
    data: ParticleData,
    state: RefinementState,
    number: int,
    config: ReconstructConfig,
    progress: Progress,
    previous: RoundSummary | None,
) -> tuple[RefinementState, RoundSummary]:
    """Half-maps, noise and poses once around; low-confidence particles are searched again in early rounds."""
    name = f"Refinement round {number}"
    used = state.used
    before = state.rotation[used]
    full = full_radius(data.disk.box_size)
    with progress.step(f"{name}: half-maps", len(used)) as done:
        halves = reconstruct_halves(data, state, full, _diameter_px(config, data), done)
    references = [halves.reference(half).to(data.device) for half in (0, 1)]
    fsc_radius = halves.fsc.crossing(0.143)
    radius = _pose_radius(fsc_radius, full, config)
    state = update_noise(data, state, references, full)
    with progress.step(f"{name}: poses to shell {radius:.0f}", len(used)) as done:
        state = refine_locally(data, state, references, radius, on_chunk=done)
    change = rotation_angle(state.rotation[used], before).median()
    summary = RoundSummary(number, fsc_radius, radius, float(torch.rad2deg(change)))
    if _should_try_mates(state, number, previous):
        state, summary = _mates_step(data, state, references, _mates(halves), radius, summary, progress, name)
    if number in _SEARCH_SCHEDULE:
        state, summary = _search_step(data, state, references, radius, summary, config, progress, name)
    return state, summary


def finish(
    data: ParticleData, state: RefinementState, config: ReconstructConfig, progress: Progress
) -> tuple[RefinementState, HalfMaps]:
    """The final half-maps, and each particle's confidence and pose standard deviations."""
    full = full_radius(data.disk.box_size)
    with progress.step("Final half-maps", len(state.used)) as done:
        halves = reconstruct_halves(data, state, full, _diameter_px(config, data), done)
    references = [halves.reference(half).to(data.device) for half in (0, 1)]
    radius = _pose_radius(halves.fsc.crossing(0.143), full, config)
    weight = torch.ones(len(data))
    mates = [] if config.known_poses else _mates(halves)
    if mates:
        state, weight = try_mates(data, state, references, mates, radius)
    with progress.step("Confidence and standard deviations", len(state.used)) as done:
        state = refine_locally(data, state, references, radius, iterations=0, on_chunk=done)
    confidence = torch.zeros(len(data))
    confidence[state.used] = estimate_confidence(_quality(data, state, references, radius))
    return replace(state, confidence=confidence * weight), halves


def is_settled(state: RefinementState, summary: RoundSummary, previous: RoundSummary | None) -> bool:
    """Whether another round would change nothing worth its time."""
    if previous is None or summary.round < _FIRST_POSSIBLE_END:
        return False
    if summary.fsc_radius > previous.fsc_radius + 0.2 or summary.mates_moved > 0.02 * len(state.used):
        return False
    spread = float(torch.rad2deg(state.rotation_std[state.used].median()))
    return summary.rotation_change_deg < max(_SETTLED_SHARE * spread, np.degrees(_SETTLED_RADIANS))


def _should_try_mates(state: RefinementState, number: int, previous: RoundSummary | None) -> bool:
    """In the first rounds, and then until the choice among the mates has stopped changing."""
    if number <= _LAST_MATES_ROUND or previous is None:
        return True
    return previous.mates > 0 and previous.mates_moved > _MATES_SETTLED * len(state.used)


def state_to_dict(state: RefinementState) -> dict[str, Any]:
    """What a checkpoint keeps of a state."""
    values = {f.name: getattr(state, f.name) for f in fields(state)}
    return {**values, "half": torch.from_numpy(state.half)}


def state_from_dict(saved: dict[str, Any]) -> RefinementState:
    """The inverse of `state_to_dict`."""
    return RefinementState(**{**saved, "half": saved["half"].numpy()})


def _pose_radius(fsc_radius: float, full: float, config: ReconstructConfig) -> float:
    """Shells for poses: where the half-maps agree and a little more, the bootstrap's at least."""
    return float(min(full, max(_RADIUS_MARGIN + int(fsc_radius), config.bootstrap.last_radius)))


def _diameter_px(config: ReconstructConfig, data: ParticleData) -> float | None:
    return None if config.particle_diameter is None else config.particle_diameter / data.pixel_size


def _mates(halves: HalfMaps) -> list[MapAlignment]:
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


def _mates_step(
    data: ParticleData,
    state: RefinementState,
    references: list[FourierVolume],
    mates: list[MapAlignment],
    radius: float,
    summary: RoundSummary,
    progress: Progress,
    name: str,
) -> tuple[RefinementState, RoundSummary]:
    if not mates:
        return state, summary
    before = state.rotation[state.used]
    with progress.step(f"{name}: {len(mates)} near-symmetry mates", len(state.used)) as done:
        state, _ = try_mates(data, state, references, mates, radius, on_chunk=done)
    moved = int((rotation_angle(state.rotation[state.used], before) > 0.2).sum())
    return state, replace(summary, mates=len(mates), mates_moved=moved)


def _quality(
    data: ParticleData, state: RefinementState, references: list[FourierVolume], radius: float
) -> Float[Tensor, " m"]:
    gain, expected = score_all(data, state, references, radius)
    return fit_quality(gain[state.used], expected[state.used])


def _search_step(
    data: ParticleData,
    state: RefinementState,
    references: list[FourierVolume],
    radius: float,
    summary: RoundSummary,
    config: ReconstructConfig,
    progress: Progress,
    name: str,
) -> tuple[RefinementState, RoundSummary]:
    deviations, finer, reach, sharper = _SEARCH_SCHEDULE[summary.round]
    rows = doubtful_rows(state.used, _quality(data, state, references, radius), deviations)
    if len(rows) == 0:
        return state, summary
    search = _make_search(data, config, radius, finer, reach, sharper, seed=config.seed * 1000 + summary.round)
    with progress.step(f"{name}: searching {len(rows):,} doubtful particles again", len(rows)) as done:
        state, moved = search_globally(data, state, references, rows, search, on_chunk=done)
    return state, replace(summary, searched=len(rows), moved=int(moved.sum()))


def _make_search(
    data: ParticleData,
    config: ReconstructConfig,
    radius: float,
    finer: int,
    reach: float,
    sharper: float,
    *,
    seed: int,
) -> GlobalSearch:
    refine = config.refine
    coarse = min(sharper * refine.search_radius, radius)
    box_length = data.disk.box_size * data.pixel_size
    grid = make_search_grid(
        finer * refine.search_rotations,
        reach * refine.max_shift * box_length,
        translation_step(coarse, box_length),
        torch.Generator().manual_seed(seed),
    )
    # A finer grid holds more copies of each candidate: as many more must be kept to keep the same variety.
    return GlobalSearch(grid, coarse, 32 * finer, ((coarse, 8), (radius, 1)))
