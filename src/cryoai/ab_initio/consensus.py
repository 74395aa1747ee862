"""Which classes of several starts are kept: those that images which no start has seen cannot do without.

The classes of all starts are one pool. The one whose loss costs the held-out images least leaves it, again and
again: where two hold the same molecule, of one start or of two, the images of either fit the other as well, and
nothing is lost. Where their number is open, one of two whose maps agree goes as well: two noisy maps of a molecule
explain its images a little better than one. What is left are the best maps of molecules that differ, whichever
start found them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.ab_initio.alike import AGREEMENT_OF_SHELLS, AGREEMENT_THRESHOLD, compare_volumes
from cryoai.ab_initio.bootstrap import BootstrapResult, make_posterior_search
from cryoai.ab_initio.images import BootstrapImages
from cryoai.ab_initio.shares import estimate_shares, share_out
from cryoai.poses.featureless import featureless_gain, tells

NEEDED_NATS = 2.0
"""A class is needed if its images lose so many nats each without it: two noisy maps of one molecule explain an
image a little better than one."""
# And if they do by so many standard errors, and so many images show it.
_NEEDED_ERRORS, _FEWEST_SHOWING = 3.0, 4.0


@dataclass(frozen=True)
class Member:
    """A class of a start; both from 0."""

    start: int
    index: int


@dataclass(frozen=True)
class Chosen:
    """A class that is kept.

    Attributes
    ----------
    member
        Which it is.
    share
        Of the particles.
    loss
        What its images would lose without it, nats each.
    """

    member: Member
    share: float
    loss: float


def held_out_gains(start: BootstrapResult, images: BootstrapImages) -> Float[Tensor, "held_out classes"]:
    """How well each class explains images that the start has not seen: marginal log-likelihood gains, nats."""
    if start.held_out_gains is not None:
        return start.held_out_gains
    search = make_posterior_search(images, images.settings.judging_radius(images.support))
    gains = [search(images.held_out, volume, images.noise_power).gain for volume in start.volumes]
    return torch.stack(gains, 1)


def choose_classes(
    starts: Sequence[BootstrapResult], images: BootstrapImages, count: int | None
) -> tuple[Chosen, ...]:
    """The classes of all starts that are kept, the largest first.

    Parameters
    ----------
    starts
        With the same settings.
    images
        Of which the held-out ones judge.
    count
        How many are kept; None for as many as are needed.
    """
    members = [Member(s, k) for s, start in enumerate(starts) for k in range(len(start.volumes))]
    gains = torch.cat([held_out_gains(start, images) for start in starts], 1).double()
    nothing = _gain_of_junk(gains, images)
    kept = list(range(len(members)))
    while True:
        likelihood, share = _explain(nothing, gains[:, kept])
        losses = [_loss(nothing, gains, kept, index, likelihood) for index in range(len(kept))]
        if len(kept) == 1 or len(kept) == count:
            break
        least = min(range(len(kept)), key=lambda index: losses[index].total)
        if count is None and losses[least].is_needed:
            least = _find_copy(starts, [members[row] for row in kept], losses)
            if least is None:
                break
        del kept[least]
    of_particles = share[1:] / share[1:].sum().clamp(min=1e-12)
    chosen = [
        Chosen(members[row], float(one), loss.per_image)
        for row, one, loss in zip(kept, of_particles, losses, strict=True)
    ]
    return tuple(sorted(chosen, key=lambda one: -one.share))


def _find_copy(starts: Sequence[BootstrapResult], kept: Sequence[Member], losses: Sequence[_Loss]) -> int | None:
    """The less needed of two classes whose maps agree as those of two starts do: one molecule, with other noise."""
    radius = int(min(start.radius for start in starts))
    volumes = [starts[one.start].volumes[one.index] for one in kept]
    order = sorted(range(len(kept)), key=lambda index: losses[index].total)
    for place, index in enumerate(order):
        for other in order[place + 1 :]:
            mean, lowest = compare_volumes(volumes[index], volumes[other], radius)
            if mean >= AGREEMENT_THRESHOLD and lowest >= AGREEMENT_OF_SHELLS:
                return index
    return None


def _gain_of_junk(gains: Float[Tensor, "n classes"], images: BootstrapImages) -> Float[Tensor, " n"]:
    """What images gain by something without features; -inf where maps do not tell."""
    search = make_posterior_search(images, images.settings.judging_radius(images.support))
    batch = images.held_out.prefix(search.grid.shells + 0.5)
    rival = featureless_gain(batch, images.noise_power, search.mask_radius).double()
    return rival if tells((gains.amax(1) - rival).float()) else torch.full_like(rival, -math.inf)


def _explain(
    nothing: Float[Tensor, " n"], gains: Float[Tensor, "n classes"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " classes_and_junk"]]:
    """Each image's log-likelihood by a mixture of classes and junk, and the shares that it is highest with."""
    every = torch.cat((nothing[:, None], gains), 1)
    share = estimate_shares(every, torch.ones(every.shape[1]).double())
    return (every + share.clamp(min=1e-12).log()).logsumexp(1), share


@dataclass(frozen=True)
class _Loss:
    """What held-out images lose without a class: altogether, its own image by image, and with which error."""

    total: float
    per_image: float
    error: float
    showing: float

    @property
    def is_needed(self) -> bool:
        return self.per_image > max(NEEDED_NATS, _NEEDED_ERRORS * self.error) and self.showing >= _FEWEST_SHOWING


def _loss(
    nothing: Float[Tensor, " n"],
    gains: Float[Tensor, "n classes"],
    kept: list[int],
    index: int,
    likelihood: Float[Tensor, " n"],
) -> _Loss:
    others = [row for row in kept if row != kept[index]]
    if not others:
        return _Loss(math.inf, math.inf, 0.0, math.inf)
    lost = likelihood - _explain(nothing, gains[:, others])[0]
    every = torch.cat((nothing[:, None], gains[:, kept]), 1)
    showing = float(share_out(every, torch.ones(every.shape[1]).double())[:, index + 1].sum())
    error = float(lost.std() * math.sqrt(len(lost))) / max(showing, 1e-6)
    return _Loss(float(lost.sum()), float(lost.sum()) / max(showing, 1e-6), error, showing)
