"""Which particles of a refinement are searched globally again, within how many shells, and how."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.refinement.confidence import doubtful_rows, fit_quality, measure_fit_scale, noise_quality
from cryoai.refinement.global_search import GlobalSearch, search_globally
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.poses import fit_gain, score_all
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig, SearchRound
from cryoai.run.progress import Progress
from cryoai.run.streams import stream_seed

# Where images of nothing would fit so few standard deviations worse than right poses, a good fit does not tell.
_TELLING = 4.0
# Where they would fit so much worse, what fits like them is one of them.
_PLAIN = 6.0
# Shells of the sharpest search: the cost grows with the fifth power.
_SHARPEST = 20
# Particles that the radius is chosen on.
_ASKED = 200
# Translations of the search, by how far most particles lie from the centre; at least so many box lengths.
_MOST, _MARGIN, _LEAST_REACH = 0.99, 1.2, 0.08
# Shares of the particles up to which they count as few, and as left over by bad luck.
_FEW, _BAD_LUCK = 0.05, 0.02


def search_again(
    data: ParticleData,
    state: RefinementState,
    references: References,
    chosen: SearchRound,
    radius: float,
    config: ReconstructConfig,
    progress: Progress,
) -> tuple[RefinementState, int, int]:
    """Search the particles whose poses may be wrong.

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

    Returns
    -------
    tuple
        The new state; how many were searched, and how many moved.
    """
    quality, expected = measure_quality(data, state, references, radius)
    rows = _rows_to_search(state, quality, expected, chosen)
    if len(rows) == 0:
        return state, 0, 0
    search = _make_search(data, state, references, chosen, radius, config, len(rows))
    name = f"Refinement round {chosen.round}: searching {len(rows):,} doubtful particles again"
    with progress.step(name, len(rows)) as done:
        state, moved = search_globally(data, state, references, rows, search, on_chunk=done)
    return state, len(rows), int(moved.sum())


def measure_quality(
    data: ParticleData,
    state: RefinementState,
    references: References,
    radius: float,
    on_chunk: OnChunk = lambda done: None,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """How well each particle that takes part fits, and the gain that was to be expected."""
    gain, expected = score_all(data, state, references, radius, on_chunk)
    return fit_quality(gain[state.used], expected[state.used]), expected[state.used]


def _rows_to_search(
    state: RefinementState, quality: Float[Tensor, " m"], expected: Float[Tensor, " m"], chosen: SearchRound
) -> Int[np.ndarray, " k"]:
    """What fits badly, and, where a good fit does not tell, what no search has confirmed yet.

    What looks like noise after a wide search is not searched again, unless that is few enough to be bad luck.
    """
    used = state.used
    scale = measure_fit_scale(quality, expected)
    noise = ((noise_quality(expected) - scale.centre) / scale.spread).numpy()
    untold = (noise > -_TELLING) & ~state.is_confirmed[used]
    doubtful = doubtful_rows(used, quality, chosen.doubt, scale)
    if not chosen.again:
        doubtful = doubtful[~state.is_confirmed[doubtful]]
    rows = np.union1d(doubtful, used[untold])
    if chosen.round == 1:
        return rows
    like_noise = (quality < 0.5 * noise_quality(expected)).numpy() & (noise < -_PLAIN)
    return rows if like_noise.sum() < _BAD_LUCK * len(used) else np.setdiff1d(rows, used[like_noise])


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
    )


def _usual_reach(data: ParticleData, state: RefinementState) -> float:
    """A translation that most particles lie within, box lengths."""
    distance = state.translation[state.used].norm(dim=1) / (data.disk.box_size * data.pixel_size)
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
    rows = sample_rows(state.used, _ASKED)
    for shells in range(least, most):
        expected = torch.zeros(len(data))

        def ask(portion: Portion, expected: Tensor = expected) -> None:
            at = portion.rows
            _, expected[at] = fit_gain(
                portion.own_batch, portion.volume, state.noise_power, state.rotation[at], state.translation[at]
            )

        map_particles(data, references, ask, rows, shells)
        if float(expected[rows].median()) >= gain:
            return shells
    return most
