"""What several starts agree on: the best of them, or the classes that are kept, and how far each has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cryoai.ab_initio.alike import AGREEMENT_OF_SHELLS, AGREEMENT_THRESHOLD, compare_volumes
from cryoai.ab_initio.bootstrap import BootstrapResult
from cryoai.ab_initio.consensus import NEEDED_NATS, Member, choose_classes, held_out_gains
from cryoai.ab_initio.images import BootstrapImages


@dataclass(frozen=True, eq=False)
class AbInitioResult:
    """One class of several starts.

    Attributes
    ----------
    best
        The class: of the start that explains the held-out images best, or, of several classes, of any start.
    best_number
        Which start that is, from 1.
    likelihoods
        Of each start with all its classes: mean log-likelihood gain per held-out image, nats.
    agreements
        Of each start: mean FSC of its map of this class with the best one's, after alignment over rotation, shift
        and hand; 1 for itself.
    lowest_agreement
        Lowest FSC of any shell with the best start, of the start for which that is highest; -1 for a single start.
    patient
        Whether the starts used all their steps because those that ended early disagreed.
    loss
        What held-out images of this class would lose without it, nats each; infinite where there is no other.
    """

    best: BootstrapResult
    best_number: int
    likelihoods: tuple[float, ...]
    agreements: tuple[float, ...]
    lowest_agreement: float = -1.0
    patient: bool = False
    loss: float = math.inf

    @property
    def agrees_in_every_shell(self) -> bool:
        """Whether another start found the best one's map to its last shell."""
        return self.lowest_agreement >= AGREEMENT_OF_SHELLS

    @property
    def agreeing(self) -> int:
        """How many starts found the same map, the best one included."""
        return sum(a >= AGREEMENT_THRESHOLD for a in self.agreements)

    @property
    def has_converged(self) -> bool:
        """Whether more than one start found the best map; True for a single start, which cannot tell."""
        return len(self.agreements) == 1 or self.agreeing > 1


@dataclass(frozen=True, eq=False)
class Starts:
    """What several starts found.

    Attributes
    ----------
    best
        The best start or, of several classes, those of all starts that are kept; the largest first.
    classes
        Each of them, compared with those of the other starts.
    saved_as
        The checkpoint that keeps them.
    images
        What the starts were judged by.
    """

    best: BootstrapResult
    classes: tuple[AbInitioResult, ...]
    saved_as: str
    images: BootstrapImages

    @property
    def agree_in_every_shell(self) -> bool:
        """Whether every class that is needed was found by another start to its last shell."""
        needed = [one for one in self.classes if one.loss >= NEEDED_NATS]
        return all(one.agrees_in_every_shell for one in needed)


def step_of_start(number: int, patient: bool, classes: int = 1) -> str:
    """The name under which a start is kept; ``number`` from 1, ``classes`` where several numbers are tried."""
    return f"bootstrap_{number:02d}" + (f"_of_{classes}" if classes > 1 else "") + ("_patient" if patient else "")


def posterior_of_classes(start: BootstrapResult, images: BootstrapImages) -> Float[Tensor, "held_out classes"]:
    """How likely each held-out image shows each class."""
    gains = held_out_gains(start, images)
    return (gains + torch.tensor(start.shares).clamp(min=1e-9).log()).softmax(1)


def best_of(starts: list[BootstrapResult]) -> int:
    """Which of some starts is the likeliest."""
    return int(np.argmax([start.held_out_likelihood for start in starts]))


def choose_best(
    starts: list[BootstrapResult], images: BootstrapImages, patient: bool = False, classes: int = 1
) -> Starts:
    """The likeliest start or, of several classes, those of all starts that are kept; how far every start has them.

    Classes of two starts belong together where held-out images that are likely to show one are to show the other.

    Parameters
    ----------
    starts
        In their order.
    images
        Of which the held-out ones tell which classes are kept, and which belong together.
    patient
        Whether they were made with all their steps.
    classes
        How many are kept.
    """
    best = best_of(starts)
    if len(starts[best].volumes) == 1:
        found = _compare_class(starts, Member(best, 0), [0] * len(starts), starts[best], patient)
        return Starts(starts[best], (found,), step_of_start(best + 1, patient), images)
    chosen = choose_classes(starts, images, classes)
    together = _put_together(starts, [one.member for one in chosen], [one.share for one in chosen], best)
    partners = _match_classes(starts, together, images)
    compared = tuple(
        replace(
            _compare_class(starts, one.member, [other[i] for other in partners], together.of_class(i), patient),
            loss=one.loss,
        )
        for i, one in enumerate(chosen)
    )
    return Starts(together, compared, step_of_start(best + 1, patient), images)


def _put_together(
    starts: list[BootstrapResult], members: list[Member], shares: list[float], best: int
) -> BootstrapResult:
    """Classes of several starts as if they were one start's; the rest is the best one's."""
    volumes = tuple(starts[one.start].volumes[one.index] for one in members)
    gains = [starts[one.start].held_out_gains for one in members]
    columns = [gain[:, one.index] for gain, one in zip(gains, members, strict=True) if gain is not None]
    return replace(
        starts[best], volumes=volumes, shares=tuple(shares),
        radius=min(starts[one.start].radius for one in members),
        ended_early=any(starts[one.start].ended_early for one in members),
        held_out_gains=torch.stack(columns, 1) if len(columns) == len(members) else None,
    )  # fmt: skip


def _match_classes(
    starts: list[BootstrapResult], together: BootstrapResult, images: BootstrapImages
) -> list[list[int | None]]:
    """Of each start, its class that belongs to each of those that are kept; None where it has too few."""
    posterior = posterior_of_classes(together, images)
    matches = []
    for start in starts:
        rows, columns = linear_sum_assignment((posterior.T @ posterior_of_classes(start, images)).numpy(), True)
        partner: list[int | None] = [None] * len(together.volumes)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            partner[row] = column
        matches.append(partner)
    return matches


def _compare_class(
    starts: list[BootstrapResult],
    member: Member,
    partners: Sequence[int | None],
    kept: BootstrapResult,
    patient: bool,
) -> AbInitioResult:
    """A class that is kept beside its partners in all starts."""
    radius = int(min(start.radius for start in starts))
    agreements, lowest = [0.0] * len(starts), -1.0
    for i, (start, partner) in enumerate(zip(starts, partners, strict=True)):
        if i == member.start:
            agreements[i] = 1.0
        elif partner is not None:
            agreements[i], worst = compare_volumes(start.volumes[partner], kept.volume, radius)
            lowest = max(lowest, worst)
    likelihoods = tuple(start.held_out_likelihood for start in starts)
    return AbInitioResult(kept, member.start + 1, likelihoods, tuple(agreements), lowest, patient)
