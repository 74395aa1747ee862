"""How well particles fit a map that they are not in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.physics.symmetrize import symmetrize
from cryoai.poses.local import fit_poses, refine_poses
from cryoai.refinement.confidence import fit_quality
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.map_particles import Portion, References, map_particles
from cryoai.refinement.poses import insert_particles
from cryoai.refinement.state import RefinementState

# Particles that show it: at most so many, a tenth of the set at a time, so that the map is hardly worse without.
_FOR_FIT, _SHARE, _MOST_FOLDS = 2000, 0.1, 5
_ITERATIONS = 4


def unseen_fit(
    data: ParticleData, state: RefinementState, halves: HalfMaps
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """The fit of some particles to the run's map without them, as new particles would fit.

    A particle that is in a map fits it better than a new one, by the noise that it has left there. Some are
    subtracted, their poses refined against what remains, and compared with that.

    Parameters
    ----------
    data, state
        Particles and their final poses.
    halves
        The final maps.

    Returns
    -------
    tuple
        `fit_quality`, and the gain that was expected.
    """
    rows = sample_rows(state.used, _FOR_FIT)[:_FOR_FIT]
    folds = min(_MOST_FOLDS, max(1, math.ceil(len(rows) / (_SHARE * len(state.used)))))
    size = math.ceil(min(len(rows) / folds, max(1.0, _SHARE * len(state.used))))
    qualities, expectations = [], []
    for fold in range(folds):
        part = np.sort(rows[fold::folds][:size])
        if len(part):
            quality, expected = _fit_without(data, state, halves, part)
            qualities.append(quality)
            expectations.append(expected)
    return torch.cat(qualities), torch.cat(expectations)


def _fit_without(
    data: ParticleData, state: RefinementState, halves: HalfMaps, rows: Int[np.ndarray, " m"]
) -> tuple[Tensor, Tensor]:
    volume = _map_without(data, state, halves, rows).to(data.device)
    index = np.full(len(data), -1)
    index[rows] = 0
    gains, expectations = [], []

    def fit(portion: Portion) -> None:
        batch, noise = portion.own_batch, state.noise_power
        local = refine_poses(
            batch, portion.volume, noise, state.rotation[portion.rows], state.translation[portion.rows],
            iterations=_ITERATIONS,
        )  # fmt: skip
        gain, expected = fit_poses(batch, portion.volume, noise, local.rotation, local.translation)
        gains.append(gain)
        expectations.append(expected)

    map_particles(data, References(index, (volume,)), fit, rows)
    expected = torch.cat(expectations)
    return fit_quality(torch.cat(gains), expected), expected


def _map_without(
    data: ParticleData, state: RefinementState, halves: HalfMaps, rows: Int[np.ndarray, " m"]
) -> FourierVolume:
    """The map of both halves with some particles taken out of the sums again."""
    inserted = insert_particles(data, state, halves.radius, rows)
    own = [symmetrize(one, halves.accumulators[0].symmetry) for one in inserted]
    pairs = zip(halves.accumulators, own, strict=True)
    first, second = (total + one.scaled(-1.0) for total, one in pairs)
    return volume_from_map(replace(halves, accumulators=(first, second)).wiener_map())
