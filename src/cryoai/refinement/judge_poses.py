"""The last look at a refinement's poses, each by the map of the other half, which does not hold its particle."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from cryoai.particles.dataset import ParticleData
from cryoai.poses.posterior import PosteriorSearch
from cryoai.refinement.fits import Fits, measure_fits
from cryoai.refinement.map_particles import References
from cryoai.refinement.mates import Mates
from cryoai.refinement.pose_posterior import measure_share, measure_surroundings
from cryoai.refinement.search_again import telling_radius
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress

# Other poses are looked for within as many shells as tell poses apart: the cost grows with the fifth power.
_FEWEST_SHELLS, _MOST_SHELLS = 7, 12
# Translations about its own at which other poses are looked for, box lengths.
_REACH = 0.1


@dataclass(frozen=True, eq=False)
class JudgedPoses:
    """What is known of each pose; of the particles that take part, in order.

    Attributes
    ----------
    state
        With standard deviations; what the maps were made of stays.
    fits
        By the other half's map.
    share
        Of the posterior over all poses that lies about the pose, by both halves' maps: each has its own noise, in
        which other poses may be found; the right one is in both.
    """

    state: RefinementState
    fits: Fits
    share: Float[Tensor, " m"]


def judge_poses(
    data: ParticleData,
    state: RefinementState,
    others: References,
    radius: float,
    config: ReconstructConfig,
    progress: Progress,
    mates: Mates | None = None,
) -> JudgedPoses:
    """Fits, standard deviations, and what else would explain each particle.

    Parameters
    ----------
    data, state
        The particles and their poses.
    others
        Each with the other half's map: against its own, a particle fits for being in it.
    radius
        Shells that are compared.
    config, progress
        Options, and whom to tell.
    mates
        Poses that the map cannot tell from each other, which count as one, or can hardly, between which all
        shells have decided before; None for none.
    """
    used = state.used
    with progress.step("Confidence and standard deviations", 2 * len(used)) as done:
        fits = measure_fits(data, state, others, radius, config, on_chunk=done)
        about = measure_surroundings(data, state, others, radius, lambda count: done(len(used) + count))
    judged = replace(state, rotation_std=about.rotation_std, translation_std=about.translation_std)
    few = telling_radius(data, state, others, config.refine.search_gain, _FEWEST_SHELLS, _MOST_SHELLS)
    search = PosteriorSearch(
        data.disk.box_size, data.pixel_size, min(few, int(radius)), data.support(config.particle_diameter), _REACH,
        symmetry=config.imposed_symmetry,
    )  # fmt: skip
    with progress.step("What else explains each particle", len(used)) as done:
        share = state.certainty * measure_share(data, state, others, about, search, mates or Mates(), done)
    return JudgedPoses(judged, fits, share[used])
