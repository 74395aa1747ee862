"""Several independent bootstraps, the best of them, and how well they agree, class by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cryoai.ab_initio.bootstrap import BootstrapResult, go_on, make_posterior_search, run_bootstrap
from cryoai.ab_initio.consensus import NEEDED_NATS, Member, choose_classes, held_out_gains
from cryoai.ab_initio.images import BootstrapImages, choose_images
from cryoai.errors import InputError
from cryoai.geometry.fourier import resample
from cryoai.metrics.alignment import align_maps, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.dataset import ParticleData
from cryoai.particles.extent import support_of_map
from cryoai.physics.slicing import FourierVolume, map_from_volume
from cryoai.poses.view_search import search_views
from cryoai.run.context import Run
from cryoai.run.streams import stream_seed

# Two starts whose maps correlate less than this, averaged over their shells, found different molecules. Starts of
# runs that end right agreed to 0.98 or better, wrong ones have agreed to 0.71 (docs/benchmarks.md, Noise).
AGREEMENT_THRESHOLD = 0.8

AGREEMENT_OF_SHELLS = 0.65
"""Starts that ended early must agree so well in every shell, or they are made again with all their steps. Right
ones do to 0.73, those of real apoferritin, whose outer shells were not right, to 0.57."""

FEWEST_OF_CLASS = 100
"""A class of fewer particles is not refined."""

# How many classes are looked for at first, and at last, where their number is not given.
_FIRST_GUESS, _LAST_GUESS = 3, 12
_CONSENSUS = "consensus"
# Translations are tried a little farther than those of most images, box lengths at least.
_MOST_SHIFTS, _MARGIN_OF_REACH, _LEAST_REACH = 0.95, 1.3, 0.05


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
        """Whether every class was found by another start to its last shell."""
        return all(one.agrees_in_every_shell for one in self.classes)


def find_starts(data: ParticleData, run: Run) -> Starts:
    """Several bootstraps, each kept when it is done; the best of them, and whether they agree.

    Starts end where images know their poses, and there are no more of them once two agree in every shell. Should
    they not have agreed by then, they were wrong to know them, and are made again with all their steps.

    Of several classes those of all starts are taken together (`cryoai.ab_initio.consensus`). Where their number is
    not given, more are looked for than are there: twice as many, until some turn out not to be needed.

    Parameters
    ----------
    data
        The particles.
    run
        Options, checkpoints and progress.

    Raises
    ------
    InputError
        There are more classes than the particles can carry.
    """
    config, most = run.config, _most_classes(data)
    images = choose_images(data, config.bootstrap, config.seed, config.particle_diameter, config.imposed_symmetry)
    if isinstance(config.classes, int):
        if config.classes > most:
            raise InputError(
                f"{config.classes} classes are more than {len(data.usable_rows):,} images can carry, of which each "
                f"class needs {FEWEST_OF_CLASS}",
                advice="use one class" if most == 1 else f"use --classes {most} or fewer",
            )
        found = _start_with(images, run, config.classes, config.classes)
    else:
        found = _start_until_some_are_not_needed(images, run, most)
    return _go_on_together(*found, run)


def _most_classes(data: ParticleData) -> int:
    return max(1, len(data.usable_rows) // FEWEST_OF_CLASS)


def _start_until_some_are_not_needed(
    images: BootstrapImages, run: Run, most: int
) -> tuple[Starts, list[BootstrapResult]]:
    """Starts of more and more classes, at most so many."""
    count = min(_FIRST_GUESS, most)
    result, starts = _start_with(images, run, count, None)
    while len(result.classes) == count < min(_LAST_GUESS, most):
        count = min(2 * count, _LAST_GUESS, most)
        run.progress.say(f"All {len(result.classes)} classes differ: looking for {count}")
        result, starts = _start_with(images, run, count, None)
    found = len(result.classes)
    if found == count:
        run.warn(f"all {count} classes that were looked for differ: there may be more (--classes {2 * count})")
    else:
        run.progress.say(
            f"Of {count} classes that were looked for {found} {'differ' if found > 1 else 'is needed'}"
        )
    return result, starts


def _start_with(
    images: BootstrapImages, run: Run, count: int, kept: int | None
) -> tuple[Starts, list[BootstrapResult]]:
    """Starts with so many classes each, of which so many are kept, or as many as are needed.

    With more classes than molecules images may be sure of maps that are not right yet: such starts use all steps.
    """
    if kept is None:
        starts = _start_until_two_agree(images, run, True, count, kept)
        return choose_best(starts, images, patient=True, classes=kept), starts
    starts = _start_until_two_agree(images, run, False, count, kept)
    result = choose_best(starts, images, classes=kept)
    if len(starts) > 1 and result.best.ended_early and not result.agree_in_every_shell:
        run.progress.say("The starts differ in some shells: once more, with all their steps")
        # By the first of them, so that more starts do not change those that there are.
        images = _tighten(images, starts[0])
        starts = _start_until_two_agree(images, run, True, count, kept)
        result = choose_best(starts, images, patient=True, classes=kept)
    return result, starts


def _go_on_together(result: Starts, starts: list[BootstrapResult], run: Run) -> Starts:
    """The classes that are kept as one mixture, where no start had just these."""
    if result.best.volumes == starts[_best_of(starts)].volumes:
        return result
    images, count = result.images, len(starts[0].volumes)
    seed, name = stream_seed(run.config.seed, "consensus", count), _CONSENSUS
    steps = images.settings.settling_steps(0)

    def together() -> BootstrapResult:
        with run.progress.step(f"Consensus of {len(starts)} starts: {len(result.classes)} classes", steps) as done:
            return _judge(go_on(images, result.best, seed, done), images)

    inputs = {"count": count, "starts": len(starts), "kept": [list(one.best.shares) for one in result.classes]}
    of_classes = 1 if isinstance(run.config.classes, int) else count
    after = step_of_start(len(starts), result.classes[0].patient, of_classes)
    best = run.checkpoint.step(name, BootstrapResult, inputs, together, after)
    classes = tuple(replace(one, best=best.of_class(i)) for i, one in enumerate(result.classes))
    return replace(result, best=best, classes=classes, saved_as=name)


def tell_of_class(result: AbInitioResult, number: int | None, run: Run) -> None:
    """Say whether starts agree on a class and whether it is needed; ``number`` where there are others."""
    prefix = "" if number is None else f"class {number}: "
    if not result.has_converged:
        run.warn(
            f"{prefix}the {len(result.agreements)} starts found different maps (mean FSC with the best one at most "
            f"{max(a for a in result.agreements if a < 1):.2f}, {AGREEMENT_THRESHOLD} would be agreement); "
            "do not trust this map before more starts agree (the same command with a larger --seeds and --resume)"
        )
    elif len(result.agreements) > 1:
        said = f"{prefix}{result.agreeing} of {len(result.agreements)} starts agree"
        run.progress.say(said[:1].upper() + said[1:])
    if result.loss < NEEDED_NATS:
        run.warn(
            f"class {number} is hardly needed: without it its images would lose {max(0.0, result.loss):.1f} nats "
            "each, since another class explains them nearly as well; the two may be one molecule, or states that "
            "are not told apart"
        )


def _start_until_two_agree(
    images: BootstrapImages, run: Run, patient: bool, count: int, kept: int | None
) -> list[BootstrapResult]:
    """At most as many starts as the options ask for, each kept when it is done."""
    config, steps = run.config, images.settings.steps
    inputs = {
        "bootstrap": images.settings, "diameter": config.particle_diameter, "support": images.support,
        "seed": config.seed, "classes": count, "symmetry": images.symmetry,
    }  # fmt: skip
    starts: list[BootstrapResult] = []
    of_classes = "" if isinstance(config.classes, int) else f" ({count} classes)"
    for number in range(1, config.seeds + 1):

        def one_start(number: int = number) -> BootstrapResult:
            seed = stream_seed(config.seed, "bootstrap", number)
            with run.progress.step(
                f"Bootstrap, start {number} of at most {config.seeds}{of_classes}", steps
            ) as done:
                return run_start(images, seed, done, patient, count)

        name = step_of_start(number, patient, count if of_classes else 1)
        starts.append(run.checkpoint.step(name, BootstrapResult, inputs, one_start))
        if number > 1 and choose_best(starts, images, classes=kept).agree_in_every_shell:
            break
    return starts


def _tighten(images: BootstrapImages, start: BootstrapResult) -> BootstrapImages:
    """A smaller mask and shorter shifts, as first maps show to suffice: neighbours have less to say then."""
    box = 4 * (int(start.radius) + 1)
    supports = [support_of_map(resample(map_from_volume(one), box, 3)) for one in start.volumes]
    search = make_posterior_search(images, int(start.radius))
    likeliest, shifts = _posterior_of_classes(start, images).argmax(1), []
    for index, volume in enumerate(start.volumes):
        rows = torch.nonzero(likeliest == index)[:, 0]
        if len(rows):
            found = search_views(search, images.held_out[rows], volume, start.noise_power, keep=1)
            shifts.append(found.translation[:, 0].norm(dim=1))
    box_length = images.train.disk.box_size * images.train.pixel_size
    farthest = float(torch.cat(shifts).quantile(_MOST_SHIFTS)) / box_length
    reach = min(images.settings.max_shift_box_lengths, max(_LEAST_REACH, _MARGIN_OF_REACH * farthest))
    settings = images.settings.model_copy(update={"max_shift_box_lengths": reach})
    return replace(images, support=min(images.support, max(supports)), settings=settings)


def step_of_start(number: int, patient: bool, classes: int = 1) -> str:
    """The name under which a start is kept; ``number`` from 1, ``classes`` where several numbers are tried."""
    return f"bootstrap_{number:02d}" + (f"_of_{classes}" if classes > 1 else "") + ("_patient" if patient else "")


def run_start(
    images: BootstrapImages, seed: int, on_step: Callable[[int], None], patient: bool = False, classes: int = 1
) -> BootstrapResult:
    """One bootstrap, judged on the held-out images, its largest class first; parameters as in `run_bootstrap`."""
    return _judge(run_bootstrap(images, seed, on_step, patient, classes), images)


def _judge(result: BootstrapResult, images: BootstrapImages) -> BootstrapResult:
    """With its likelihood and the gains by each class, the largest of which comes first."""
    order = sorted(range(len(result.shares)), key=lambda index: -result.shares[index])
    volumes = tuple(result.volumes[index] for index in order)
    shares = tuple(result.shares[index] for index in order)
    result = replace(result, volumes=volumes, shares=shares, held_out_gains=None)
    gains = held_out_gains(result, images)
    likelihood = float((gains + torch.tensor(shares).clamp(min=1e-20).log()).logsumexp(1).mean())
    return replace(result, held_out_likelihood=likelihood, held_out_gains=gains)


def judge_volumes(volumes: Sequence[FourierVolume], shares: Sequence[float], images: BootstrapImages) -> float:
    """How well volumes explain images that they were not made of: mean marginal log-likelihood gain, nats.

    The gain over no particle at all, averaged over every pose of one grid and over the classes. Volumes are
    comparable if the images are the same: they are judged with one noise spectrum.

    Parameters
    ----------
    volumes
        On the images' scale, inside their settings' `judging_radius`.
    shares
        Of the particles, those that show each.
    images
        Of which the held-out ones are read.
    """
    search = make_posterior_search(images, images.settings.judging_radius(images.support))
    return float(search(images.held_out, volumes, images.noise_power, shares=shares).gain.mean())


def _posterior_of_classes(start: BootstrapResult, images: BootstrapImages) -> Float[Tensor, "held_out classes"]:
    """How likely each held-out image shows each class."""
    gains = held_out_gains(start, images)
    return (gains + torch.tensor(start.shares).clamp(min=1e-9).log()).softmax(1)


def _best_of(starts: list[BootstrapResult]) -> int:
    return int(np.argmax([start.held_out_likelihood for start in starts]))


def choose_best(
    starts: list[BootstrapResult], images: BootstrapImages, patient: bool = False, classes: int | None = 1
) -> Starts:
    """The likeliest start or, of several classes, those of all starts that are kept; how far every start has them.

    Classes of two starts belong together where held-out images that are likely to show one are to show the other.

    Parameters
    ----------
    starts
        In their order.
    images
        Of which the held-out ones tell which classes are needed, and which belong together.
    patient
        Whether they were made with all their steps.
    classes
        How many are kept; None for as many as are needed.
    """
    best = _best_of(starts)
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
    posterior = _posterior_of_classes(together, images)
    matches = []
    for start in starts:
        rows, columns = linear_sum_assignment((posterior.T @ _posterior_of_classes(start, images)).numpy(), True)
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
    size = 2 * (radius + 1)
    reference = resample(map_from_volume(kept.volume), size, 3)
    agreements, lowest = [0.0] * len(starts), -1.0
    for i, (start, partner) in enumerate(zip(starts, partners, strict=True)):
        if i == member.start:
            agreements[i] = 1.0
        elif partner is not None:
            density = resample(map_from_volume(start.volumes[partner]), size, 3)
            alignment = align_maps(density, reference)
            agreements[i] = alignment.correlation
            shells = compute_fsc(apply_alignment(density, alignment), reference).correlation[:radius]
            lowest = max(lowest, float(shells.min()))
    likelihoods = tuple(start.held_out_likelihood for start in starts)
    return AbInitioResult(kept, member.start + 1, likelihoods, tuple(agreements), lowest, patient)
