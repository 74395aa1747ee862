"""Which particles of a refinement are searched globally again, within how many shells, and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.fourier import full_radius
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.poses.local import fit_poses
from cryoai.poses.posterior import MASK_MARGIN, PosteriorSearch
from cryoai.refinement.confidence import CONFIDENT, doubtful_rows, measure_fit_scale, noise_quality
from cryoai.refinement.elsewhere import fits_elsewhere
from cryoai.refinement.fits import Fits, measure_fits
from cryoai.refinement.global_search import GlobalSearch, search_globally
from cryoai.refinement.map_particles import Portion, References, map_particles
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig, SearchRound
from cryoai.run.progress import Progress
from cryoai.run.streams import stream_seed

# Where images of nothing would fit so few standard deviations worse than right poses, a good fit does not tell.
_TELLING = 4.0
# Shells of the sharpest search: the cost grows with the fifth power.
_SHARPEST = 20
# Particles that the radius is chosen on.
_ASKED = 200
# Translations of the search, by how far most particles lie from the centre; at least so many box lengths.
_MOST, _MARGIN, _LEAST_REACH = 0.99, 1.2, 0.08
# Shares of the particles up to which they count as few, and as left over by bad luck.
_FEW, _BAD_LUCK = 0.05, 0.02
# Shells within which is asked whether an image shows the map at any pose, for a particle of usual size.
_SHELLS_FOR_JUNK = 8


@dataclass(frozen=True)
class SearchSummary:
    """What a search did.

    Attributes
    ----------
    searched, moved
        How many particles, and those whose pose changed.
    absent, placed
        Those of them that seemed to show something else than their map, and those of these that it now holds.
    left_out
        How many more seemed to show something else, and would at any pose: they were not searched.
    """

    searched: int = 0
    moved: int = 0
    absent: int = 0
    placed: int = 0
    left_out: int = 0


def search_again(
    data: ParticleData,
    state: RefinementState,
    references: References,
    chosen: SearchRound,
    radius: float,
    config: ReconstructConfig,
    progress: Progress,
    mates: Float[Tensor, "g 3 3"] | None = None,
) -> tuple[RefinementState, SearchSummary]:
    """Search the particles whose poses may be wrong, and tell before and after which are present.

    Parameters
    ----------
    data, state, references
        The particles, their poses and whose map is whose.
    chosen
        After which round, and how widely.
    radius
        Shells that poses are refined against.
    config, progress
        Options, and whom to tell.
    mates
        Rotations to poses that count as the same, `Mates.rotations`, between the near ones of which `try_mates`
        decides.
    """
    fits = measure_fits(data, state, references, radius, config)
    state = _with_presence(state, fits)
    junk = _find_junk(data, state, references, chosen, config, progress)
    rows = _rows_to_search(state, fits, chosen, junk)
    if len(rows) == 0:
        return state, SearchSummary(left_out=len(junk))
    search = _make_search(data, state, references, chosen, radius, config, len(rows))
    name = f"Refinement round {chosen.round}: searching {len(rows):,} doubtful particles again"
    absent = np.setdiff1d(rows, state.present)
    with progress.step(name, len(rows)) as done:
        state, moved = search_globally(data, state, references, rows, search, on_chunk=done, mates=mates)
    fits = fits.replaced(
        np.searchsorted(state.used, rows), measure_fits(data, state, references, radius, config, rows)
    )
    state = _with_presence(state, fits)
    placed = len(np.intersect1d(absent, state.present))
    return state, SearchSummary(len(rows), int(moved.sum()), len(absent), placed, len(junk))


def _with_presence(state: RefinementState, fits: Fits) -> RefinementState:
    presence = state.presence.clone()
    presence[state.used] = fits.presence()
    return replace(state, presence=presence)


def _rows_to_search(
    state: RefinementState, fits: Fits, chosen: SearchRound, junk: Int[np.ndarray, " j"]
) -> Int[np.ndarray, " k"]:
    """What fits badly, and, where a good fit does not tell, what no search has confirmed yet; but no junk."""
    present = state.presence[state.used] > CONFIDENT
    scale = measure_fit_scale(fits.quality[present], fits.expected[present])
    worth = np.flatnonzero(~np.isin(state.used, junk))
    used, quality = state.used[worth], fits.quality[worth]
    noise = ((noise_quality(fits.expected[worth]) - scale.centre) / scale.spread).numpy()
    untold = (noise > -_TELLING) & ~state.is_confirmed[used]
    doubtful = doubtful_rows(used, quality, chosen.doubt, scale)
    if not chosen.again:
        doubtful = doubtful[~state.is_confirmed[doubtful]]
    return np.union1d(doubtful, used[untold])


def _find_junk(
    data: ParticleData,
    state: RefinementState,
    references: References,
    chosen: SearchRound,
    config: ReconstructConfig,
    progress: Progress,
) -> Int[np.ndarray, " j"]:
    """What seems to show something else than its map, and at any pose would; none where it is next to nothing."""
    rows = np.setdiff1d(state.used, state.present)
    if len(rows) < _BAD_LUCK * len(state.used):
        return rows[:0]
    reach = min(chosen.reach * config.refine.max_shift_box_lengths, _usual_reach(data, state))
    support = data.support(config.particle_diameter)
    shells = min(
        config.bootstrap.scaled_to(_SHELLS_FOR_JUNK, support), full_radius(data.disk.box_size) - MASK_MARGIN
    )
    search = PosteriorSearch(
        data.disk.box_size, data.pixel_size, int(shells), support, reach, symmetry=config.imposed_symmetry
    )
    with progress.step(f"Refinement round {chosen.round}: junk, or only posed wrongly", len(rows)) as done:
        return rows[~fits_elsewhere(data, state, references, rows, search, done)]


def _make_search(
    data: ParticleData,
    state: RefinementState,
    references: References,
    chosen: SearchRound,
    radius: float,
    config: ReconstructConfig,
    count: int,
) -> GlobalSearch:
    """The grid and the funnel; ``radius``: shells that poses are refined against at last.

    Where ``count`` particles are many, translations reach as far as those of most; a few that are left over may be
    the ones that lie farther out.
    """
    settings = config.refine
    least, most = int(settings.search_radius), int(settings.largest_search_radius)
    telling = telling_radius(data, state, references, settings.search_gain, least, most)
    coarse = int(min(chosen.sharper * telling, _SHARPEST, radius))
    usual = _usual_reach(data, state)
    far = chosen.reach * settings.max_shift_box_lengths
    return GlobalSearch(
        coarse,
        far if count < _FEW * len(state.used) else min(far, usual),
        data.support(config.particle_diameter),
        # Of closer views more are copies of each other: as many more must be kept to keep the same variety.
        round(settings.search_keep * chosen.finer**2),
        ((coarse, settings.search_refined), (radius, 1)),
        chosen.finer,
        stream_seed(config.seed, "search again", chosen.round),
        config.imposed_symmetry,
    )


def _usual_reach(data: ParticleData, state: RefinementState) -> float:
    """A translation that most particles lie within, box lengths."""
    distance = state.translation[state.present].norm(dim=1) / (data.disk.box_size * data.pixel_size)
    return max(_LEAST_REACH, _MARGIN * float(distance.quantile(_MOST)))


def telling_radius(
    data: ParticleData,
    state: RefinementState,
    references: References,
    gain: float,
    least: int,
    most: int,
) -> int:
    """The fewest shells, from ``least`` to ``most``, in which half of the particles are expected to gain so much.

    Parameters
    ----------
    data, state, references
        The particles, their poses and whose map is whose.
    gain
        Nats that tell a pose.
    least, most
        Shells.
    """
    rows = sample_rows(state.present, _ASKED)
    for shells in range(least, most):
        expected = torch.zeros(len(data))

        def ask(portion: Portion, expected: Tensor = expected) -> None:
            at = portion.rows
            _, expected[at] = fit_poses(
                portion.own_batch, portion.volume, state.noise_power, state.rotation[at], state.translation[at]
            )

        map_particles(data, references, ask, rows, shells)
        if float(expected[rows].median()) >= gain:
            return shells
    return most
