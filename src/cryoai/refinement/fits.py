"""How well particles fit their maps, and whether each shows what its map holds at all."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.particles.dataset import ParticleData
from cryoai.poses.featureless import featureless_gain, presence, share_of_particles, tells
from cryoai.poses.local import fit_poses
from cryoai.refinement.confidence import fit_quality
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig

# Standard deviations of a pose beyond which there is hardly a parabola, radians and box lengths.
_WIDEST_ANGLE, _WIDEST_SHIFT = 0.5, 0.1


@dataclass(frozen=True, eq=False)
class Fits:
    """What some particles gain at their poses.

    Attributes
    ----------
    gain, expected
        (m,) log-likelihood gain over no particle at all, and what was to be expected; nats.
    difference
        (m,) log-likelihood of the map, over all poses about the particle's own, less that of a featureless image.
    """

    gain: Float[Tensor, " m"]
    expected: Float[Tensor, " m"]
    difference: Float[Tensor, " m"]

    @property
    def quality(self) -> Float[Tensor, " m"]:
        """`fit_quality`, standard deviations."""
        return fit_quality(self.gain, self.expected)

    def replaced(self, place: Int[np.ndarray, " k"], others: Fits) -> Fits:
        """With those of others, which have been measured again, at some places."""
        parts = []
        for part in fields(self):
            values = getattr(self, part.name).clone()
            values[torch.from_numpy(place)] = getattr(others, part.name)
            parts.append(values)
        return Fits(*parts)

    def presence(self) -> Float[Tensor, " m"]:
        """Probability that each shows what its map holds; 1 where the map does not tell.

        How many of them do is estimated from them all.
        """
        if not tells(self.difference):
            return torch.ones_like(self.difference)
        return presence(self.difference, share_of_particles(self.difference))


def measure_fits(
    data: ParticleData,
    state: RefinementState,
    references: References,
    radius: float,
    config: ReconstructConfig,
    rows: Int[np.ndarray, " m"] | None = None,
    on_chunk: OnChunk = lambda done: None,
) -> Fits:
    """The fits of particles at their poses.

    Parameters
    ----------
    data, state, references
        The particles, their poses and whose map is whose.
    radius
        Shells that are compared.
    config
        How far translations and the particle reach.
    rows
        Which particles, ascending; by default all that take part.
    on_chunk
        Called with the particles done so far.
    """
    rows = state.used if rows is None else rows
    gain, expected, rival = torch.zeros(3, len(data))
    box_length = data.disk.box_size * data.pixel_size
    reach = config.refine.first_search_reach * config.bootstrap.max_shift_box_lengths
    mask_radius = data.support(config.particle_diameter) + reach

    def compare(portion: Portion) -> None:
        at, batch = portion.rows, portion.own_batch
        gain[at], expected[at] = fit_poses(
            batch, portion.volume, state.noise_power, state.rotation[at], state.translation[at]
        )
        rival[at] = featureless_gain(batch, state.noise_power, mask_radius).cpu()

    map_particles(data, references, compare, rows, radius, on_chunk, state.rotation)
    angle = state.rotation_std[rows].nan_to_num(_WIDEST_ANGLE).clamp(max=_WIDEST_ANGLE)
    shift = state.translation_std[rows].nan_to_num(math.inf).clamp(max=_WIDEST_SHIFT * box_length)
    # The volume of a Gaussian peak, by that of all rotations and translations.
    peak = 2.5 * math.log(2 * math.pi) + 3 * angle.log() + 2 * shift.log()
    everything = math.log(8 * math.pi**2) + math.log(math.pi * (reach * box_length) ** 2)
    difference = gain[rows] + peak - everything - rival[rows]
    return Fits(gain[rows], expected[rows], difference)
