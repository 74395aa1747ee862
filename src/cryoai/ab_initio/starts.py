"""Several independent bootstraps, the best of them, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from cryoai.ab_initio.bootstrap import BootstrapResult, run_bootstrap
from cryoai.geometry.fourier import resample
from cryoai.metrics.alignment import align_maps
from cryoai.particles.dataset import ParticleData
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume, map_from_volume
from cryoai.poses.search import make_search_grid, search_poses, translation_step
from cryoai.run.config import BootstrapSettings
from cryoai.run.context import Run
from cryoai.run.streams import numpy_stream, stream_seed
from cryoai.tensors import ParticleBatch

# Grid poses of each held-out image that are scored in full precision.
_JUDGED = 4
# Two starts whose maps correlate less than this, averaged over their shells, found different molecules. Starts of
# runs that end right agreed to 0.98 or better, wrong ones have agreed to 0.71 (docs/benchmarks.md, Noise).
AGREEMENT_THRESHOLD = 0.8


@dataclass(frozen=True, eq=False)
class AbInitioResult:
    """The best of several starts.

    Attributes
    ----------
    best
        The start that explains the held-out images best.
    best_number
        Which start that is, from 1.
    likelihoods
        Of each start: mean log-likelihood gain per held-out image, nats.
    agreements
        Of each start: mean FSC with the best one after alignment over rotation, shift and hand; 1 for itself.
    """

    best: BootstrapResult
    best_number: int
    likelihoods: tuple[float, ...]
    agreements: tuple[float, ...]

    @property
    def agreeing(self) -> int:
        """How many starts found the same map, the best one included."""
        return sum(a >= AGREEMENT_THRESHOLD for a in self.agreements)

    @property
    def has_converged(self) -> bool:
        """Whether more than one start found the best map; True for a single start, which cannot tell."""
        return len(self.agreements) == 1 or self.agreeing > 1


def find_start(data: ParticleData, run: Run) -> AbInitioResult:
    """Several bootstraps, each kept when it is done; the best of them, and whether they agree.

    Parameters
    ----------
    data
        The particles.
    run
        Options, checkpoints and progress; warned where the starts found different maps.
    """
    config, settings = run.config, run.config.bootstrap.in_box(data.disk.box_size)
    train, held_out = split_for_bootstrap(data, settings, config.seed)
    inputs = {"bootstrap": settings, "seed": config.seed}
    starts = []
    for number in range(1, config.seeds + 1):

        def one_start(number: int = number) -> BootstrapResult:
            seed = stream_seed(config.seed, "bootstrap", number)
            with run.progress.step(f"Bootstrap, start {number} of {config.seeds}", settings.steps) as done:
                return run_start(train, held_out, settings, seed, done, data.device)

        starts.append(run.checkpoint.step(step_of_start(number), BootstrapResult, inputs, one_start))
    result = choose_best(starts, settings.last_radius)
    if not result.has_converged:
        run.warn(
            f"the {len(starts)} starts found different maps (mean FSC with the best one at most "
            f"{max(a for a in result.agreements if a < 1):.2f}, {AGREEMENT_THRESHOLD} would be agreement); "
            "do not trust this map before more starts agree (the same command with a larger --seeds and --resume)"
        )
    elif len(starts) > 1:
        run.progress.say(f"{result.agreeing} of {len(starts)} starts agree")
    return result


def step_of_start(number: int) -> str:
    """The name under which a start is kept; ``number`` from 1."""
    return f"bootstrap_{number:02d}"


def split_for_bootstrap(
    data: ParticleData, settings: BootstrapSettings, seed: int
) -> tuple[ParticleBatch, ParticleBatch]:
    """A random subset to bootstrap from, and others held out (the same ones where there are very few)."""
    rows = numpy_stream(seed, "bootstrap images").permutation(data.usable_rows)
    rows = rows[: settings.images + settings.held_out_images]
    held_out = min(settings.held_out_images, len(rows) // 5)
    train, test = np.sort(rows[held_out:]), np.sort(rows[:held_out])
    # A copy of an image that was trained on is not held out.
    train = train[~np.isin(data.grouping.group[train], data.grouping.group[test])]
    radius = settings.last_radius
    return data.batch(train, radius), data.batch(test if len(test) else train, radius)


def run_start(
    train: ParticleBatch,
    held_out: ParticleBatch,
    settings: BootstrapSettings,
    seed: int,
    on_step: Callable[[int], None],
    device: torch.device | str = "cpu",
) -> BootstrapResult:
    """One bootstrap, judged on the held-out images."""
    result = run_bootstrap(train, settings, seed, on_step, device)
    return replace(result, held_out_likelihood=judge_volume(result.volume.to(device), held_out, settings))


def judge_volume(volume: FourierVolume, held_out: ParticleBatch, settings: BootstrapSettings) -> float:
    """How well a volume explains images that it was not made of: mean log-likelihood gain per image, nats.

    Volumes are comparable if the images are the same: they are judged with one noise spectrum, that of the images,
    and on one grid.

    Parameters
    ----------
    volume
        On the images' scale, inside ``last_radius``.
    held_out
        The images, within ``last_radius``.
    settings
        The grid's.
    """
    noise_power = estimate_shell_power(held_out.images, held_out.disk).clamp(min=1e-12)
    step = translation_step(settings.last_radius, held_out.box_length)
    grid = make_search_grid(settings.rotations, settings.max_shift_box_lengths * held_out.box_length, step)
    found = search_poses(held_out, volume, noise_power, grid, keep=_JUDGED)
    nothing = ((held_out.images.abs() ** 2) / noise_power[held_out.disk.shell]).sum(1)
    return float((found.log_weight[:, 0] + nothing).mean())


def choose_best(starts: list[BootstrapResult], radius: float) -> AbInitioResult:
    """The likeliest start, and every start's agreement with it."""
    order = [start.held_out_likelihood for start in starts]
    best = int(np.argmax(order))
    box = 2 * (int(radius) + 1)
    maps = [resample(map_from_volume(start.volume), box, 3) for start in starts]
    agreements = [
        1.0 if i == best else align_maps(density, maps[best]).correlation for i, density in enumerate(maps)
    ]
    return AbInitioResult(starts[best], best + 1, tuple(order), tuple(agreements))
