"""Several independent bootstraps, the best of them, and how well they agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from cryoai.ab_initio.bootstrap import BootstrapResult, BootstrapSettings, run_bootstrap
from cryoai.geometry.fourier import full_radius, resample
from cryoai.metrics.alignment import align_maps
from cryoai.particles.dataset import ParticleData
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume, map_from_volume
from cryoai.poses.search import make_search_grid, search_poses, translation_step
from cryoai.run.config import ReconstructConfig
from cryoai.tensors import ParticleBatch

# Images that no start sees, to judge them all by.
_HELD_OUT = 500
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
    likelihoods
        Of each start: mean log-likelihood gain per held-out image, nats.
    agreements
        Of each start: mean FSC with the best one after alignment over rotation, shift and hand; 1 for itself.
    """

    best: BootstrapResult
    likelihoods: tuple[float, ...]
    agreements: tuple[float, ...]

    @property
    def agreeing(self) -> int:
        """How many starts found the same map, the best one included."""
        return sum(a >= AGREEMENT_THRESHOLD for a in self.agreements)


def bootstrap_settings(config: ReconstructConfig, data: ParticleData) -> BootstrapSettings:
    """The settings of every start: lengths in Å and shells that exist in this box."""
    options, box = config.bootstrap, data.disk.box_size
    radius = float(min(options.last_radius, full_radius(box)))
    return BootstrapSettings(
        steps=options.steps, batch_size=options.batch_size, rotations=options.rotations,
        first_radius=min(options.first_radius, radius), last_radius=radius,
        max_shift=options.max_shift * box * data.pixel_size,
    )  # fmt: skip


def split_for_bootstrap(
    data: ParticleData, images: int, radius: float, seed: int
) -> tuple[ParticleBatch, ParticleBatch]:
    """A random subset to bootstrap from, and others held out (the same ones where there are very few)."""
    rows = np.random.default_rng(seed).permutation(data.usable_rows)[: images + _HELD_OUT]
    held_out = min(_HELD_OUT, len(rows) // 5)
    train, test = np.sort(rows[held_out:]), np.sort(rows[:held_out])
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
    # All starts are judged with the same noise spectrum and the same grid.
    noise_power = estimate_shell_power(held_out.images, held_out.disk).clamp(min=1e-12)
    step = translation_step(settings.last_radius, held_out.box_length)
    grid = make_search_grid(settings.rotations, settings.max_shift, step)
    found = search_poses(held_out, result.volume.to(device), noise_power, grid, keep=4)
    nothing = ((held_out.images.abs() ** 2) / noise_power[held_out.disk.shell]).sum(1)
    likelihood = float((found.log_weight[:, 0] + nothing).mean())
    return BootstrapResult(result.volume, result.noise_power, likelihood, seed)


def choose_best(starts: list[BootstrapResult], radius: float) -> AbInitioResult:
    """The likeliest start, and every start's agreement with it."""
    order = [start.held_out_likelihood for start in starts]
    best = int(np.argmax(order))
    box = 2 * (int(radius) + 1)
    maps = [resample(map_from_volume(start.volume), box, 3) for start in starts]
    agreements = [
        1.0 if i == best else align_maps(density, maps[best]).correlation for i, density in enumerate(maps)
    ]
    return AbInitioResult(starts[best], tuple(order), tuple(agreements))


def bootstrap_to_dict(result: BootstrapResult) -> dict:
    """What a checkpoint keeps of a start."""
    return {
        "values": result.volume.values,
        "box_size": result.volume.box_size,
        "padding": result.volume.padding,
        "noise_power": result.noise_power,
        "likelihood": result.held_out_likelihood,
        "seed": result.seed,
    }


def bootstrap_from_dict(saved: dict) -> BootstrapResult:
    """The inverse of `bootstrap_to_dict`."""
    volume = FourierVolume(saved["values"], saved["box_size"], saved["padding"])
    return BootstrapResult(volume, saved["noise_power"], saved["likelihood"], saved["seed"])


def has_converged(result: AbInitioResult) -> bool:
    """Whether more than one start found the best map; True for a single start, which cannot tell."""
    return len(result.agreements) == 1 or result.agreeing > 1
