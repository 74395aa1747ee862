"""Which particles that fit nothing at their poses would at others: the rest is junk, and searched in vain."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int

from cryoai.geometry.fourier import full_radius
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.poses.featureless import featureless_gain
from cryoai.poses.posterior import MASK_MARGIN, PosteriorSearch
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState

# As many present particles say what is to be expected of one, at least.
_ASKED = 400


def fits_elsewhere(
    data: ParticleData,
    state: RefinementState,
    references: References,
    rows: Int[np.ndarray, " m"],
    search: PosteriorSearch,
    on_chunk: OnChunk = lambda done: None,
) -> Bool[np.ndarray, " m"]:
    """Whether some particles, at whichever pose, fit their map as well as some that are present do.

    What is compared is the map's likelihood, over all poses, with that of a featureless image. In few shells the
    latter may explain a particle as well; so no more is asked of a particle than what the worst of those that are
    present gains.

    Parameters
    ----------
    data, state, references
        The particles, which of them are present, and which map is whose.
    rows
        The particles.
    search
        Over all poses, in few shells: that costs a small part of a search for the pose itself.
    on_chunk
        Called with the particles done so far.
    """
    difference = torch.zeros(len(data))
    shells = search.grid.shells

    def compare(portion: Portion) -> None:
        batch = portion.own_batch
        rival = featureless_gain(batch.prefix(shells + 0.5), state.noise_power, search.mask_radius)
        difference[portion.rows] = (search(batch, portion.volume, state.noise_power).gain - rival).cpu()

    radius = min(shells + MASK_MARGIN, full_radius(data.disk.box_size))
    present = sample_rows(state.present, _ASKED)
    map_particles(data, references, compare, np.union1d(rows, present), radius, on_chunk)
    return (difference[rows] >= difference[present].amin()).numpy()
