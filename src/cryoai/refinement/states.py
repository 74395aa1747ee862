"""Whether the particles of a class show two states of it: classification at poses that are known, in all shells.

States that differ by little look alike in the few shells of a bootstrap, and one map takes the images of all. Once
particles have poses, every shell tells, and no pose need be searched: half of some particles of one half-set is
given to two maps at random, the others are weighed by these, make the next two, which weigh the first ones, and so
on, so that none is compared with a map that it is in. Where there are two states, what the first two maps differed
in by chance grows within a few steps. The other half-set begins with what these maps say of its particles, and goes
on by itself: of three states both should find the same two. Its images, which the first half's maps have not seen,
tell whether two maps are better than one of as many particles; and particles that are merely posed wrongly are told
by their map being the other one, turned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.fourier import resample
from cryoai.metrics.alignment import align_maps, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.slicing import FourierVolume, map_from_volume
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.posed import PosedParticles
from cryoai.refinement.state import RefinementState
from cryoai.run.streams import torch_stream

# Particles of each half-set that its maps are made from at most; those of the other half that are asked.
_MADE_FROM, _ASKED = 4_000, 1_000
# Fewer particles of a half say nothing.
_FEWEST = 40
# Steps in the inner shells, share of the radius that they reach to, and steps in all shells; for the first few both
# states are held to be as frequent.
_COARSE_STEPS, _COARSE, _FINE_STEPS, _EVEN_STEPS = 8, 0.6, 2, 4
_LEAST_SHARE = 0.01
# A state is one if its images lose so many nats each without it, by so many standard errors, and if so large a
# share of the images is given the same state by either half's maps.
_NEEDED_NATS, _SURE, _LEAST_AGREEMENT = 2.0, 4.0, 0.75
# Two maps are one molecule, turned, if turning leaves less than this share of their difference.
_LEFT_BY_TURNING = 0.75


@dataclass(frozen=True, eq=False)
class TwoStates:
    """What became of the attempt to tell two states apart.

    Attributes
    ----------
    probability
        (n, 2) of each particle for each state, the more frequent one first; 0.5 of particles left out.
    nats, error
        What held-out images of the rarer state lose if one map stands for both, each, and its standard error.
    agreement
        Share of the images that maps of either half give to the same state.
    is_turned
        Whether the second map is the first, turned: then its particles have wrong poses.
    """

    probability: Float[Tensor, "n states"]
    nats: float
    error: float
    agreement: float
    is_turned: bool = False

    @property
    def differ(self) -> bool:
        """Whether there are two states."""
        is_sure = self.nats > max(_NEEDED_NATS, _SURE * self.error) and self.agreement >= _LEAST_AGREEMENT
        return is_sure and not self.is_turned


def find_two_states(
    data: ParticleData,
    state: RefinementState,
    halves: HalfMaps,
    radius: float,
    seed: int,
    made_from: int = _MADE_FROM,
) -> TwoStates | None:
    """Try to tell two states of a class apart, its particles' poses being known; None for too few particles.

    Parameters
    ----------
    data, state
        The particles of the class and their poses.
    halves
        Their half-maps, of which the mask and the signal to noise are used.
    radius
        Shells that are compared.
    seed
        Of the first two maps.
    made_from
        How many particles of each half-set maps are made from at most.
    """
    if any(len(np.intersect1d(state.present, state.rows(half))) < _FEWEST for half in (0, 1)):
        return None
    particles = PosedParticles(data, state, radius)
    generator = torch_stream(seed, "states")
    first = _Half.search(particles, halves, 0, generator, made_from)
    second = _Half.search(particles, halves, 1, generator, made_from, first)
    both = (first, second)
    present = np.intersect1d(state.present, state.rows(1))
    asked = sample_rows(present, min(_ASKED, len(present)))
    agree = ((first.difference(asked) > 0) == (second.difference(asked) > 0)).double()
    lost = first.lost_by_one_map(asked)
    probability = torch.full((len(data), 2), 0.5)
    for half in (0, 1):
        probability[state.rows(half)] = both[half].probability(state.rows(half)).float()
    share = probability[state.present].mean(0)
    rarer = max(_LEAST_SHARE, float(share.min()))
    if share[1] > share[0]:
        probability = probability.flip(1)
    found = TwoStates(
        probability,
        float(lost.mean()) / rarer,
        float(lost.std()) / math.sqrt(len(lost)) / rarer,
        float(agree.mean()),
    )
    return replace(found, is_turned=_is_turned(both[0].volumes[0], radius)) if found.differ else found


@dataclass(frozen=True, eq=False)
class _Half:
    """What one half-set has found by itself.

    Attributes
    ----------
    particles
        Its particles.
    parts
        Those that maps are made from, in two parts.
    volumes
        Two maps of each part.
    common
        One map of the first part.
    share
        Of the particles, those of each state.
    """

    particles: PosedParticles
    parts: tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]
    volumes: tuple[tuple[FourierVolume, FourierVolume], tuple[FourierVolume, FourierVolume]]
    common: FourierVolume
    share: Float[Tensor, " states"]

    @classmethod
    def search(
        cls,
        particles: PosedParticles,
        halves: HalfMaps,
        half: int,
        generator: torch.Generator,
        made_from: int,
        other: _Half | None = None,
    ) -> _Half:
        """Two maps of each part of the half's particles, by turns; to begin with by the other half's, if given."""
        state = particles.state
        present = np.intersect1d(state.present, state.rows(half))
        rows = sample_rows(present, min(len(present), made_from))
        order = torch.randperm(len(rows), generator=generator).numpy()
        parts = (np.sort(rows[order[::2]]), np.sort(rows[order[1::2]]))
        inner = replace(particles, radius=_COARSE * particles.radius)
        drawn = torch.randint(2, (len(parts[0]),), generator=generator)
        chance = torch.nn.functional.one_hot(drawn, 2).double()
        weights = [chance if other is None else other.probability(parts[0]), torch.empty(0)]
        share = torch.full((2,), 0.5, dtype=torch.double) if other is None else other.share
        for step in range(_COARSE_STEPS + _FINE_STEPS):
            source, weighed = step % 2, 1 - step % 2
            within = inner if step < _COARSE_STEPS else particles
            volumes = _two_maps(within, parts[source], weights[source], halves, len(present))
            gains = torch.stack([within.gains(parts[weighed], one) for one in volumes], 1)
            weights[weighed] = (gains + share.log()).softmax(1)
            if other is not None or step + 1 >= _EVEN_STEPS:
                share = weights[weighed].mean(0).clamp(min=_LEAST_SHARE)
                share = share / share.sum()
        made = [_two_maps(particles, parts[i], weights[i], halves, len(present)) for i in (0, 1)]
        # Of as many particles as each pair of maps, so that it is no better for having less noise.
        ones = torch.ones(len(parts[0]), 1)
        common = particles.volume_of(parts[0], ones, halves, len(parts[0]) / len(present))
        return cls(particles, parts, (made[0], made[1]), common, share)

    def gains(self, rows: Int[np.ndarray, " m"]) -> Float[Tensor, "m states"]:
        """Of any particles by the two maps, neither of which they are in."""
        found = torch.zeros(len(rows), 2, dtype=torch.double)
        in_first = np.isin(rows, self.parts[0])
        for chosen, volumes in ((in_first, self.volumes[1]), (~in_first, self.volumes[0])):
            if chosen.any():
                mine = [self.particles.gains(rows[chosen], one) for one in volumes]
                found[torch.from_numpy(chosen)] = torch.stack(mine, 1)
        return found + self.share.log()

    def probability(self, rows: Int[np.ndarray, " m"]) -> Float[Tensor, "m states"]:
        """Of each state."""
        return self.gains(rows).softmax(1)

    def difference(self, rows: Int[np.ndarray, " m"]) -> Float[Tensor, " m"]:
        """Log-odds of the first state."""
        gains = self.gains(rows)
        return gains[:, 0] - gains[:, 1]

    def lost_by_one_map(self, rows: Int[np.ndarray, " m"]) -> Float[Tensor, " m"]:
        """What particles of the other half-set lose if one map stands for both states, nats."""
        return self.gains(rows).logsumexp(1) - self.particles.gains(rows, self.common)


def _two_maps(
    particles: PosedParticles,
    rows: Int[np.ndarray, " m"],
    weight: Float[Tensor, "m states"],
    halves: HalfMaps,
    of: int,
) -> tuple[FourierVolume, FourierVolume]:
    """The maps of both states; a half-map has ``of`` particles."""
    first, second = (
        particles.volume_of(rows, weight[:, [i]].float(), halves, float(weight[:, i].sum()) / of) for i in (0, 1)
    )
    return first, second


def _is_turned(volumes: tuple[FourierVolume, FourierVolume], radius: float) -> bool:
    """Whether one map is rather the other, turned, than another state of it."""
    # In a box of these shells alone: what lies beyond them is empty, and would be compared as well.
    box = min(volumes[0].box_size, 2 * (int(radius) + 1))
    density, reference = (resample(map_from_volume(one).cpu(), box, 3) for one in volumes)
    shells = max(4, int(_COARSE * radius))
    as_it_is = float(compute_fsc(density, reference).correlation[:shells].mean())
    alignment = align_maps(density, reference, try_mirror=False)
    turned = float(compute_fsc(apply_alignment(density, alignment), reference).correlation[:shells].mean())
    return 1 - turned < _LEFT_BY_TURNING * (1 - as_it_is)
