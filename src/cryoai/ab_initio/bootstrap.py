"""Ab initio: low-resolution maps from nothing, by mini-batch expectation-maximisation with momentum.

Each step draws poses of a mini-batch of images, and which of the maps they show, from their whole posterior on a
freshly turned grid, and moves the maps towards what those images say. Where posteriors are wide, a step of plain
expectation-maximisation goes a small part of the way (its rate is the share of information that the unknown poses
take away), so that steps gather momentum, as in stochastic gradient descent (Punjani et al., Nature Methods 2017).

What is divided by is the weight of each frequency, with a floor that hardly depends on how often its direction was
seen: a stronger one makes rare views fit worse, and be chosen more rarely still, until all views are one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoai.ab_initio.ascent import RATE, MapAscent
from cryoai.ab_initio.balance import ClassBalance
from cryoai.ab_initio.excluded import ExclusionWatch, exclude_poses, inner_shells
from cryoai.ab_initio.images import BootstrapImages
from cryoai.ab_initio.junk import JunkWatch
from cryoai.geometry.rotations import random_rotations
from cryoai.physics.insertion import Inserter
from cryoai.physics.slicing import FourierVolume, VolumeAccumulator
from cryoai.physics.symmetrize import symmetrize
from cryoai.poses.featureless import featureless_gain
from cryoai.poses.posterior import PADDING, PosteriorSearch
from cryoai.tensors import ParticleBatch

# Images at random poses that make the first map.
_FIRST_IMAGES = 2000
# An image knows its pose where so few poses hold its posterior. Those that a start learns from do in the end,
# their own noise being in the map: held-out ones are asked, so many of them, and the median counts.
_FEW_POSES = 4.0
_ASKED, _ASKED_EVERY = 100, 5
# Where they do not, the radius grows by so many shells more than a particle of this size would need.
_SHELLS_IN_NEED = 3
# A mini-batch is enlarged by what is junk in it, as if at least this share were particles.
_FEWEST_PARTICLES = 0.3
# Share of what showed no particle that is looked at again.
_SEEN_AGAIN = 0.1
# The noise of a mini-batch may not fall below this share of what is measured outside the particle.
_LEAST_NOISE = 0.5
# A mini-batch has so many images for each class, at least.
_IMAGES_OF_CLASS = 60
# Classes have parted where so many images are so sure of theirs.
_SURE_OF_CLASS, _PARTED = 0.9, 0.8
# And where no class is smaller than this share of the mean one.
_SMALLEST = 0.2


@dataclass(frozen=True, eq=False)
class BootstrapResult:
    """Low-resolution maps, one of each class, and how well they explain images they have not seen.

    Attributes
    ----------
    volumes
        Inside ``radius``.
    shares
        Of the particles, those of each class; sum to 1.
    noise_power
        ``E|noise|²`` per shell.
    held_out_likelihood
        Mean log-likelihood gain per held-out image over no particle at all, nats.
    seed
        What it started from.
    radius
        Shells.
    ended_early
        Whether it stopped because images knew their poses, before its steps were used up.
    held_out_gains
        (held_out, classes) of each image that was held out, by each class alone, nats; None before it is judged.
    """

    volumes: tuple[FourierVolume, ...]
    shares: tuple[float, ...]
    noise_power: Float[Tensor, " shells"]
    held_out_likelihood: float
    seed: int
    radius: float
    ended_early: bool = False
    held_out_gains: Float[Tensor, "held_out classes"] | None = None

    @property
    def volume(self) -> FourierVolume:
        """The map of a single class."""
        (volume,) = self.volumes
        return volume

    def of_class(self, index: int) -> BootstrapResult:
        """One of the classes alone."""
        gains = None if self.held_out_gains is None else self.held_out_gains[:, index : index + 1]
        return replace(self, volumes=(self.volumes[index],), shares=(1.0,), held_out_gains=gains)


def run_bootstrap(
    images: BootstrapImages,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
    patient: bool = False,
    classes: int = 1,
) -> BootstrapResult:
    """One start from random poses.

    Parameters
    ----------
    images
        Whitened or not; with the schedule.
    seed
        Of everything random.
    on_step
        Called after each step with its number from 1; for progress.
    patient
        Use all steps, also where images know their poses before: on a map that is not right yet they may.
    classes
        How many maps.
    """
    settings = images.settings
    climb, ended_early = _Climb(images, seed, classes), False
    for step in range(settings.climbing_steps):
        climb.grow_by_clock(step / (settings.march * settings.climbing_steps))
        climb.balance.loosen(step / settings.climbing_steps)
        climb.step(settings.step_size)
        on_step(step + 1)
        if not patient and (step + 1) % _ASKED_EVERY == 0 and climb.knows_poses() and not climb.grow():
            ended_early = True
            break
    climb.balance.loosen(1.0)
    settling = settings.settling_steps(climb.steps)
    for step in range(settling):
        climb.step(settings.step_size * settings.last_step_share ** ((step + 1) / settling))
        on_step(climb.steps)
    on_step(settings.steps)
    return BootstrapResult(
        climb.volumes, tuple(climb.shares), climb.noise_power, 0.0, seed, float(climb.shells), ended_early
    )


def go_on(
    images: BootstrapImages, maps: BootstrapResult, seed: int, on_step: Callable[[int], None] = lambda step: None
) -> BootstrapResult:
    """Ever smaller steps from maps that are there, such as classes of several starts.

    Parameters
    ----------
    images
        That the maps were made of.
    maps
        To begin with; they keep their radius.
    seed, on_step
        As in `run_bootstrap`.
    """
    settings = images.settings
    climb = _Climb(images, seed, len(maps.volumes), maps)
    steps = settings.settling_steps(0)
    for step in range(steps):
        climb.step(settings.step_size * settings.last_step_share ** ((step + 1) / steps))
        on_step(step + 1)
    return replace(
        maps, volumes=climb.volumes, shares=tuple(climb.shares), noise_power=climb.noise_power, held_out_gains=None
    )


class _Climb:
    """One start on its way: mini-batches in turn, a radius that grows, and the noise."""

    def __init__(
        self, images: BootstrapImages, seed: int, classes: int, maps: BootstrapResult | None = None
    ) -> None:
        settings = images.settings
        self._images, self._settings = images, settings
        self._batch_size = max(settings.batch_size, _IMAGES_OF_CLASS * classes)
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(images.train), generator=self._generator)
        self._next = 0
        self._presence = torch.ones(len(images.train))
        self._junk, self._exclusion = JunkWatch(), ExclusionWatch()
        self._searches: dict[int, PosteriorSearch] = {}
        self.steps = 0
        self._enough = int(min(settings.scaled_to(settings.last_radius, images.support), settings.last_radius))
        self.last = min(int(settings.last_radius), self._enough + _SHELLS_IN_NEED)
        self.shells = int(min(settings.scaled_to(settings.first_radius, images.support), self.last))
        self._first = self.shells
        self._floor = _LEAST_NOISE * images.noise_power[: self.last + 1]
        self.noise_power = images.noise_power[: self.last + 1].clone()
        self.shares = [1 / classes] * classes
        self.balance = ClassBalance(classes)
        self._ascents = []
        # Other images for each class: what makes them differ is nothing but chance.
        for rows in self._order[: classes * _FIRST_IMAGES].chunk(classes):
            first = _insert_random_poses(images, rows, self.last, self._generator)
            share = self._batch_size / classes / len(rows)
            self._ascents.append(MapAscent(first, share, images.support, self.last))
        if maps is not None:
            self._go_on_from(maps)

    def _go_on_from(self, maps: BootstrapResult) -> None:
        self.shells, self.noise_power = int(maps.radius), maps.noise_power.clone()
        self.shares = list(maps.shares)
        self.balance.loosen(1.0)
        for ascent, volume in zip(self._ascents, maps.volumes, strict=True):
            ascent.begin_at(volume)

    @property
    def volumes(self) -> tuple[FourierVolume, ...]:
        """The maps within the radius."""
        return tuple(ascent.volume(self.shells) for ascent in self._ascents)

    def step(self, size: float) -> None:
        """One mini-batch."""
        settings, rows = self._settings, self._next_rows()
        batch = self._images.train[rows]
        featureless = self._featureless(batch)
        rival = self._junk.rival(featureless)
        found = self._search()(
            batch, self.volumes, self.noise_power, settings.draws, self._generator, rival, shares=self.balance.odds,
            closed=self._excluded(batch),
        )  # fmt: skip
        assert found.residual_power is not None
        self._junk.learn(found.gain - featureless)
        self._presence[rows] = found.presence
        for ascent, sums in zip(self._ascents, found.sums, strict=True):
            ascent.step(sums, size, settings.momentum)
        self.shares = [old + RATE * (new - old) for old, new in zip(self.shares, found.shares, strict=True)]
        self.balance.learn(found.map_share, found.presence)
        self._learn_noise(found.residual_power)
        self.steps += 1

    def _excluded(self, batch: ParticleBatch) -> Bool[Tensor, "batch classes shifts"] | None:
        """Classes and shifts at which images need not be compared in all shells; None for none."""
        if len(self.shares) == 1 or not self._exclusion.asks():
            return None
        inner = self._search(inner_shells(self.shells))
        excluded = exclude_poses(self._search(), inner, batch, self.volumes, self.noise_power, self.balance.odds)
        self._exclusion.learn(excluded)
        return excluded

    def _featureless(self, batch: ParticleBatch) -> Float[Tensor, " batch"]:
        """What images gain by something without features, within the radius and mask of the search."""
        return featureless_gain(batch.prefix(self.shells + 0.5), self.noise_power, self._search().mask_radius)

    def _learn_noise(self, residual_power: Float[Tensor, " shells"]) -> None:
        """Take in what a mini-batch left unexplained, by what is measured outside the particle.

        The mask mixes what is explained in neighbouring shells, most in the first, which have few coefficients.
        """
        outside = self._images.noise_power[1 : len(residual_power)]
        within = slice(1, len(residual_power))
        measured = outside * _smooth(residual_power[within] / outside)
        self.noise_power[within] += RATE * (measured - self.noise_power[within])
        self.noise_power = torch.maximum(self.noise_power, self._floor)

    def knows_poses(self) -> bool:
        """Whether the maps tell held-out images their classes and poses, at this radius."""
        held_out = self._images.held_out[slice(_ASKED)]
        rival = self._junk.rival(self._featureless(held_out))
        found = self._search()(held_out, self.volumes, self.noise_power, rival=rival)
        present = found.presence > 0.5
        poses, shares = found.effective_poses[present], found.map_share[present]
        if len(poses) == 0 or float(poses.median()) >= _FEW_POSES:
            return False
        sure = (shares.amax(1) > _SURE_OF_CLASS).float()
        # Without odds that share images out evenly a class that is not of its own images has next to none.
        smallest = float(shares.mean(0).amin()) * len(self.shares)
        return float(sure.mean()) > _PARTED and smallest > _SMALLEST

    def _search(self, shells: int | None = None) -> PosteriorSearch:
        shells = self.shells if shells is None else shells
        if shells not in self._searches:
            self._searches[shells] = make_posterior_search(self._images, shells, self.last)
        return self._searches[shells]

    def grow(self) -> bool:
        """One more shell; False where those there are suffice for a particle of this size."""
        if self.shells >= self._enough:
            return False
        self.shells += 1
        return True

    def grow_by_clock(self, progress: float) -> None:
        """At least the radius that belongs to a share of the climb."""
        marched = self._first + (self.last - self._first) * min(1.0, progress)
        self.shells = max(self.shells, int(marched + 1e-6))

    def _next_rows(self) -> Tensor:
        """A mini-batch with as many particles, whatever else is among them."""
        share = max(self._junk.share_of_particles, _FEWEST_PARTICLES)
        size = min(round(self._batch_size / share), len(self._order))
        if self._next + size > len(self._order):
            self._order, self._next = self._new_order(), 0
        self._next += size
        return self._order[self._next - size : self._next]

    def _new_order(self) -> Tensor:
        """All images but most of those that showed no particle when they were last seen."""
        order = torch.randperm(len(self._presence), generator=self._generator)
        chance = self._presence[order].clamp(min=_SEEN_AGAIN)
        kept = order[torch.rand(len(order), generator=self._generator) < chance]
        return kept if len(kept) > self._batch_size / _FEWEST_PARTICLES else order


def _smooth(ratio: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
    """Means over three neighbouring shells from the first on, by how many coefficients each has."""
    count = torch.arange(1.0, len(ratio) + 1)
    total, weight = torch.nn.functional.avg_pool1d(torch.stack((count * ratio, count)), 3, 1, 1)
    return total / weight


def make_posterior_search(
    images: BootstrapImages, shells: int, sums_radius: float | None = None
) -> PosteriorSearch:
    """The grid of poses within a radius, for what the images show; its sums may have room for more shells."""
    train, settings = images.train, images.settings
    return PosteriorSearch(
        train.disk.box_size, train.pixel_size, shells, images.support, settings.max_shift_box_lengths,
        sums_radius, symmetry=images.symmetry,
    )  # fmt: skip


def _insert_random_poses(
    images: BootstrapImages, rows: Tensor, shells: int, generator: torch.Generator
) -> VolumeAccumulator:
    batch = images.train[rows].prefix(shells + 0.01)
    inserter = Inserter(batch.disk.box_size, shells + 2, PADDING)
    rotation = random_rotations(len(batch), generator)
    inserter.add(batch, rotation, torch.zeros(len(batch), 2), images.noise_power)
    return symmetrize(inserter.result(), images.symmetry)
