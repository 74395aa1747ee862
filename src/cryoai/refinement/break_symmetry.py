"""Whether a map is symmetric because the molecule is, or because particles lie at their mates by chance.

Once particles of a molecule that is nearly symmetric lie evenly at the mates of their poses, the map is symmetric,
and no mate is better than another: refinement cannot leave that state, which looks like a true symmetry. Here it is
tried. Poses are kept, but for which mate each is; half of some particles is put there at random, the others are
weighed by the map that these make, these by the map of the others, and so on, so that none is compared with a map
that it is in. Where the molecule differs from its symmetry, what the first map had by chance grows. Images of the
other half-set, which have taken no part, then tell whether the map is better than the symmetric one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cryoai.metrics.alignment import MapAlignment
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.slicing import FourierVolume
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.mates import apply_mate
from cryoai.refinement.posed import PosedParticles
from cryoai.refinement.state import RefinementState
from cryoai.run.streams import torch_stream

# Fewer particles of a half say nothing of a symmetry.
_FEWEST_TO_ASK = 20
# Particles that the map is made from, times mates; those that are asked; steps from one half of the former to the
# other.
_MADE_FROM, _ASKED, _STEPS = 8_000, 500, 10
# Standard errors, and nats for each image, by which the images prefer the map without symmetry.
_SURE, _NATS = 4.0, 0.5


@dataclass(frozen=True, eq=False)
class BrokenSymmetry:
    """What became of the attempt.

    Attributes
    ----------
    volume
        The map with particles at the mates that the others' map prefers.
    gain, gain_error
        What images that it is not made from gain by it over the symmetric one, nats each, and its standard error.
    """

    volume: FourierVolume
    gain: float
    gain_error: float

    @property
    def is_better(self) -> bool:
        """Whether images prefer the map without symmetry."""
        return is_better(self.gain, self.gain_error)


def can_ask(state: RefinementState) -> bool:
    """Whether both half-sets have enough particles to say something of a symmetry."""
    return all(len(np.intersect1d(state.present, state.rows(half))) >= _FEWEST_TO_ASK for half in (0, 1))


def is_better(gain: float, error: float) -> bool:
    """Whether so many nats for each image, with such a standard error, are more than chance."""
    return gain > max(_NATS, _SURE * error)


def try_to_break(
    data: ParticleData,
    state: RefinementState,
    halves: HalfMaps,
    elements: Sequence[MapAlignment],
    radius: float,
    seed: int,
) -> BrokenSymmetry:
    """Put particles at their mates under a symmetry so that the map loses it, if it will.

    Parameters
    ----------
    data, state
        The particles and their poses.
    halves
        The half-maps that have the symmetry, of which the noise and the mask are used.
    elements
        Of the group, without the identity; shifts in px.
    radius
        Shells that are compared.
    seed
        Of what is drawn.
    """
    mates = PosedParticles(data, state, radius, tuple(elements))
    count = min(len(state.rows(0)), _MADE_FROM // (len(elements) + 1))
    rows = sample_rows(np.intersect1d(state.present, state.rows(0)), count)
    parts = (rows[::2], rows[1::2])
    generator = torch_stream(seed, "break symmetry")
    drawn = torch.randint(len(elements) + 1, (len(parts[0]),), generator=generator)
    weights = [torch.nn.functional.one_hot(drawn, len(elements) + 1).float(), torch.empty(0)]
    share = len(parts[0]) / max(1, len(state.rows(0)))
    for step in range(_STEPS):
        made_from, weighed = step % 2, 1 - step % 2
        volume = mates.volume_of(parts[made_from], weights[made_from], halves, share)
        weights[weighed] = mates.log_likelihoods(parts[weighed], volume).softmax(1).float()
    together = np.sort(rows)
    order = np.argsort(np.concatenate(parts), kind="stable")
    broken = torch.cat(weights)[torch.from_numpy(order)]
    volume = mates.volume_of(together, broken, halves, 2 * share)
    even = mates.volume_of(together, torch.full_like(broken, 1 / broken.shape[1]), halves, 2 * share)
    asked = sample_rows(np.intersect1d(state.present, state.rows(1)), _ASKED)
    prior = math.log(broken.shape[1])
    gains = [mates.log_likelihoods(asked, one).logsumexp(1) - prior for one in (volume, even)]
    more = gains[0] - gains[1]
    return BrokenSymmetry(volume, float(more.mean()), float(more.std() / math.sqrt(len(more))))


def move_to_mates(
    data: ParticleData,
    state: RefinementState,
    broken: BrokenSymmetry,
    elements: Sequence[MapAlignment],
    radius: float,
) -> RefinementState:
    """Every particle at its likeliest mate in the map that has lost its symmetry.

    Which of the equal copies of the map that is was left to chance, and both half-sets must have the same: this
    once one of them sees what the other has made, of which it learns no more than which mate to go to.
    """
    mates = PosedParticles(data, state, radius, tuple(elements))
    rotation, translation = state.rotation.clone(), state.translation.clone()
    likelihood = mates.log_likelihoods(state.used, broken.volume)
    best = likelihood.argmax(1)
    for index, element in enumerate(elements, 1):
        at = state.used[(best == index).numpy()]
        rotation[at], translation[at] = apply_mate(element, rotation[at], translation[at], data.pixel_size)
    return replace(state, rotation=rotation, translation=translation)
