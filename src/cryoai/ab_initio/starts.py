"""Several independent bootstraps, as many as it takes until they agree, and until no class is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from cryoai.ab_initio.agreement import (
    AGREEMENT_THRESHOLD,
    AbInitioResult,
    Starts,
    best_of,
    choose_best,
    posterior_of_classes,
    step_of_start,
)
from cryoai.ab_initio.bootstrap import BootstrapResult, go_on, make_posterior_search, run_bootstrap
from cryoai.ab_initio.consensus import NEEDED_NATS, choose_classes, held_out_gains
from cryoai.ab_initio.images import BootstrapImages, choose_images
from cryoai.errors import InputError
from cryoai.geometry.fourier import resample
from cryoai.particles.dataset import ParticleData
from cryoai.particles.extent import support_of_map
from cryoai.physics.slicing import FourierVolume, map_from_volume
from cryoai.poses.view_search import search_views
from cryoai.run.context import Run
from cryoai.run.streams import stream_seed

FEWEST_OF_CLASS = 100
"""A class of fewer particles is not refined."""

LARGEST_GUESS = 12
"""How many classes are looked for at most, where their number is not given."""

# And how many at first, by so many starts.
_FIRST_GUESS, _COUNTED_BY = 3, 2
_CONSENSUS = "consensus"
# Translations are tried a little farther than those of most images, box lengths at least.
_MOST_SHIFTS, _MARGIN_OF_REACH, _LEAST_REACH = 0.95, 1.3, 0.05


def find_starts(data: ParticleData, run: Run) -> Starts:
    """Several bootstraps, each kept when it is done; the best of them, and whether they agree.

    Starts end where images know their poses, and there are no more of them once two agree in every shell. Should
    they not have agreed by then, they were wrong to know them, and are made again with all their steps.

    Of several classes those of all starts are taken together (`cryoai.ab_initio.consensus`). Where their number is
    not given, it is found first, by starts with more of them than there are: twice as many, until some turn out not
    to be needed. Those starts use all steps, since images may be sure of surplus maps that are not right yet.

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
    if isinstance(config.classes, int) and config.classes > most:
        raise InputError(
            f"{config.classes} classes are more than {len(data.usable_rows):,} images can carry, of which each "
            f"class needs {FEWEST_OF_CLASS}",
            advice="use one class" if most == 1 else f"use --classes {most} or fewer",
        )
    count = _count_classes(images, run, most) if config.classes == "auto" else config.classes
    return _go_on_together(*_start_with(images, run, count), run)


def _most_classes(data: ParticleData) -> int:
    return max(1, len(data.usable_rows) // FEWEST_OF_CLASS)


def _count_classes(images: BootstrapImages, run: Run, most: int) -> int:
    """How many classes differ, by two starts with more of them than there are; at most so many.

    Where one start needs all that it has, there may be more, and another one with as many would not tell.
    """
    count, largest = min(_FIRST_GUESS, most), min(LARGEST_GUESS, most)

    def are_enough(starts: list[BootstrapResult]) -> bool:
        return len(starts) == _COUNTED_BY or len(choose_classes(starts, images, None)) == len(starts[0].volumes)

    while True:
        starts = _make_starts(images, run, True, count, are_enough, is_trial=True)
        needed = len(choose_classes(starts, images, None))
        if needed < count or count >= largest:
            break
        count = min(2 * count, largest)
        run.progress.say(f"At least {needed} classes differ: looking for {count}")
    if needed >= largest:
        more = f" (--classes {2 * largest})" if 2 * largest <= most else ""
        run.warn(f"{largest} classes differ or more, which is as many as were looked for{more}")
        return largest
    run.progress.say("One class is needed" if needed == 1 else f"{needed} classes are needed")
    return needed


def _start_with(images: BootstrapImages, run: Run, count: int) -> tuple[Starts, list[BootstrapResult]]:
    """Starts with so many classes each, of all of which so many are kept."""

    def agree(starts: list[BootstrapResult]) -> bool:
        return len(starts) > 1 and choose_best(starts, images, classes=count).agree_in_every_shell

    starts = _make_starts(images, run, False, count, agree)
    result = choose_best(starts, images, classes=count)
    if len(starts) > 1 and result.best.ended_early and not result.agree_in_every_shell:
        run.progress.say("The starts differ in some shells: once more, with all their steps")
        # By the first of them, so that more starts do not change those that there are.
        images = _tighten(images, starts[0])
        starts = _make_starts(images, run, True, count, agree)
        result = choose_best(starts, images, patient=True, classes=count)
    return result, starts


def _go_on_together(result: Starts, starts: list[BootstrapResult], run: Run) -> Starts:
    """The classes that are kept as one mixture, where no start had just these."""
    if result.best.volumes == starts[best_of(starts)].volumes:
        return result
    images, count = result.images, len(starts[0].volumes)
    seed, name = stream_seed(run.config.seed, "consensus", count), _CONSENSUS
    steps = images.settings.settling_steps(0)

    def together() -> BootstrapResult:
        with run.progress.step(f"Consensus of {len(starts)} starts: {len(result.classes)} classes", steps) as done:
            return _judge(go_on(images, result.best, seed, done), images)

    inputs = {"count": count, "starts": len(starts), "kept": [list(one.best.shares) for one in result.classes]}
    after = step_of_start(len(starts), result.classes[0].patient)
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


def _make_starts(
    images: BootstrapImages,
    run: Run,
    patient: bool,
    count: int,
    are_enough: Callable[[list[BootstrapResult]], bool],
    is_trial: bool = False,
) -> list[BootstrapResult]:
    """At most as many starts as the options ask for, each kept when it is done; of a trial under other names."""
    config, steps = run.config, images.settings.steps
    inputs = {
        "bootstrap": images.settings, "diameter": config.particle_diameter, "support": images.support,
        "seed": config.seed, "classes": count, "symmetry": images.symmetry,
    }  # fmt: skip
    starts: list[BootstrapResult] = []
    what = f"Trial with {count} classes" if is_trial else "Bootstrap"
    for number in range(1, config.seeds + 1):

        def one_start(number: int = number) -> BootstrapResult:
            seed = stream_seed(config.seed, "bootstrap", number)
            with run.progress.step(f"{what}, start {number} of at most {config.seeds}", steps) as done:
                return run_start(images, seed, done, patient, count)

        name = step_of_start(number, patient, count if is_trial else 1)
        starts.append(run.checkpoint.step(name, BootstrapResult, inputs, one_start))
        if are_enough(starts):
            break
    return starts


def _tighten(images: BootstrapImages, start: BootstrapResult) -> BootstrapImages:
    """A smaller mask and shorter shifts, as first maps show to suffice: neighbours have less to say then."""
    box = 4 * (int(start.radius) + 1)
    supports = [support_of_map(resample(map_from_volume(one), box, 3)) for one in start.volumes]
    search = make_posterior_search(images, int(start.radius))
    likeliest, shifts = posterior_of_classes(start, images).argmax(1), []
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
