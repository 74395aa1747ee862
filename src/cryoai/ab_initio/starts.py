"""Several independent bootstraps, the best of them, and how well they agree, class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cryoai.ab_initio.bootstrap import BootstrapResult, make_posterior_search, run_bootstrap
from cryoai.ab_initio.images import BootstrapImages, choose_images
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

# Translations are tried a little farther than those of most images, box lengths at least.
_MOST_SHIFTS, _MARGIN_OF_REACH, _LEAST_REACH = 0.95, 1.3, 0.05


@dataclass(frozen=True, eq=False)
class AbInitioResult:
    """One class of the best of several starts.

    Attributes
    ----------
    best
        The class, in the start that explains the held-out images best.
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
    """

    best: BootstrapResult
    best_number: int
    likelihoods: tuple[float, ...]
    agreements: tuple[float, ...]
    lowest_agreement: float = -1.0
    patient: bool = False

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
    """The best of several starts, and its classes.

    Attributes
    ----------
    best
        With all its classes, the largest first.
    classes
        Each of them, compared with those of the other starts.
    saved_as
        The checkpoint that keeps the best start.
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

    Parameters
    ----------
    data
        The particles.
    run
        Options, checkpoints and progress; warned where the starts found different maps.
    """
    config = run.config
    images = choose_images(data, config.bootstrap, config.seed, config.particle_diameter, config.imposed_symmetry)
    starts = _start_until_two_agree(images, run, patient=False)
    result = choose_best(starts, images)
    if len(starts) > 1 and result.best.ended_early and not result.agree_in_every_shell:
        run.progress.say("The starts differ in some shells: once more, with all their steps")
        # By the first of them, so that more starts do not change those that there are.
        images = _tighten(images, starts[0])
        result = choose_best(_start_until_two_agree(images, run, patient=True), images, patient=True)
    for number, one in enumerate(result.classes, 1):
        _tell_of_agreement(one, "" if len(result.classes) == 1 else f"class {number}: ", run)
    return result


def _tell_of_agreement(result: AbInitioResult, prefix: str, run: Run) -> None:
    if not result.has_converged:
        run.warn(
            f"{prefix}the {len(result.agreements)} starts found different maps (mean FSC with the best one at most "
            f"{max(a for a in result.agreements if a < 1):.2f}, {AGREEMENT_THRESHOLD} would be agreement); "
            "do not trust this map before more starts agree (the same command with a larger --seeds and --resume)"
        )
    elif len(result.agreements) > 1:
        said = f"{prefix}{result.agreeing} of {len(result.agreements)} starts agree"
        run.progress.say(said[:1].upper() + said[1:])


def _start_until_two_agree(images: BootstrapImages, run: Run, patient: bool) -> list[BootstrapResult]:
    """At most as many starts as the options ask for, each kept when it is done."""
    config, steps = run.config, images.settings.steps
    inputs = {
        "bootstrap": images.settings, "diameter": config.particle_diameter, "support": images.support,
        "seed": config.seed, "classes": config.classes, "symmetry": images.symmetry,
    }  # fmt: skip
    starts: list[BootstrapResult] = []
    for number in range(1, config.seeds + 1):

        def one_start(number: int = number) -> BootstrapResult:
            seed = stream_seed(config.seed, "bootstrap", number)
            with run.progress.step(f"Bootstrap, start {number} of at most {config.seeds}", steps) as done:
                return run_start(images, seed, done, patient, config.classes)

        name = step_of_start(number, patient)
        starts.append(run.checkpoint.step(name, BootstrapResult, inputs, one_start))
        if number > 1 and choose_best(starts, images).agree_in_every_shell:
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


def step_of_start(number: int, patient: bool) -> str:
    """The name under which a start is kept; ``number`` from 1."""
    return f"bootstrap_{number:02d}" + ("_patient" if patient else "")


def run_start(
    images: BootstrapImages, seed: int, on_step: Callable[[int], None], patient: bool = False, classes: int = 1
) -> BootstrapResult:
    """One bootstrap, judged on the held-out images, its largest class first; parameters as in `run_bootstrap`."""
    result = run_bootstrap(images, seed, on_step, patient, classes)
    order = sorted(range(classes), key=lambda index: -result.shares[index])
    volumes = tuple(result.volumes[index] for index in order)
    shares = tuple(result.shares[index] for index in order)
    likelihood = judge_volumes(volumes, shares, images)
    return replace(result, volumes=volumes, shares=shares, held_out_likelihood=likelihood)


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
    search = make_posterior_search(images, images.settings.judging_radius(images.support))
    gains = [search(images.held_out, volume, images.noise_power).gain for volume in start.volumes]
    return (torch.stack(gains, 1) + torch.tensor(start.shares).clamp(min=1e-9).log()).softmax(1)


def choose_best(starts: list[BootstrapResult], images: BootstrapImages, patient: bool = False) -> Starts:
    """The likeliest start, and the agreement of every start with it, class by class.

    Classes of two starts belong together where held-out images that are likely to show one are to show the other.

    Parameters
    ----------
    starts
        In their order.
    images
        Of which the held-out ones tell which classes belong together.
    patient
        Whether they were made with all their steps.
    """
    likelihoods = [start.held_out_likelihood for start in starts]
    best = int(np.argmax(likelihoods))
    partners = _match_classes(starts, best, images)
    classes = tuple(
        _compare_class(starts, best, [other[index] for other in partners], patient)
        for index in range(len(starts[best].volumes))
    )
    return Starts(starts[best], classes, step_of_start(best + 1, patient), images)


def _match_classes(starts: list[BootstrapResult], best: int, images: BootstrapImages) -> list[list[int]]:
    """Of each start, its class that belongs to each of the best one's."""
    count = len(starts[best].volumes)
    if count == 1 or len(starts) == 1:
        return [list(range(count)) for _ in starts]
    posteriors = [_posterior_of_classes(start, images) for start in starts]
    together = [(posteriors[best].T @ posterior).numpy() for posterior in posteriors]
    return [linear_sum_assignment(one, maximize=True)[1].tolist() for one in together]


def _compare_class(starts: list[BootstrapResult], best: int, partners: list[int], patient: bool) -> AbInitioResult:
    """A class of the best start beside its partners in all starts."""
    radius = int(min(start.radius for start in starts))
    chosen = [start.of_class(index) for start, index in zip(starts, partners, strict=True)]
    maps = [resample(map_from_volume(start.volume), 2 * (radius + 1), 3) for start in chosen]
    agreements, lowest = [1.0] * len(starts), -1.0
    for i, density in enumerate(maps):
        if i != best:
            alignment = align_maps(density, maps[best])
            agreements[i] = alignment.correlation
            shells = compute_fsc(apply_alignment(density, alignment), maps[best]).correlation[:radius]
            lowest = max(lowest, float(shells.min()))
    likelihoods = tuple(start.held_out_likelihood for start in starts)
    return AbInitioResult(chosen[best], best + 1, likelihoods, tuple(agreements), lowest, patient)
