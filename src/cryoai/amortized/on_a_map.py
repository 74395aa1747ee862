"""After a bootstrap: an encoder trained on its map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.ab_initio.bootstrap import BootstrapResult
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.training import train_with_checkpoints, trained_encoder
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.search import (
    make_search_grid,
    search_poses,
    translation_step,
)
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.run.streams import numpy_stream
from cryoai.tensors import ParticleBatch
from cryoai.training.make import make_trainer
from cryoai.training.sources import BatchSource, RealParticles, SimulatedParticles
from cryoai.training.trainer import StepRecord
from cryoai.training.winners import Winners

# Real particles whose CTFs the simulated images have, and those that show how far particles are off-centre.
_POOL, _FOR_SHIFTS = 4000, 500
# Rotations that are tried then: enough, since translations hardly depend on them.
_SHIFT_ROTATIONS = 4608
_CURRICULUM_SHARE = 0.5
# From how many on training and then posing takes less time than searching. On a GPU it never does: posing 10,000 by
# search took 0.7 s there, with the encoder 0.9 s.
_FEWEST_PARTICLES = {"cpu": 700_000}


@dataclass(frozen=True)
class _InTurn:
    """Simulated images first, real ones after."""

    simulated: BatchSource
    real: BatchSource
    change: int

    def __call__(self, step: int) -> tuple[ParticleBatch, Winners | None]:
        return self.simulated(step) if step < self.change else self.real(step)


def uses_encoder(config: ReconstructConfig, particles: int, device: torch.device) -> bool:
    """Whether an encoder poses the particles after the bootstrap."""
    if config.method != "hybrid" or config.hybrid.encoder == "never" or config.classes != 1:
        return False
    fewest = config.hybrid.fewest_particles
    if fewest is None:
        fewest = _FEWEST_PARTICLES.get(device.type, math.inf)
    return config.hybrid.encoder == "always" or particles >= fewest


def train_on_map(
    data: ParticleData,
    start: BootstrapResult,
    config: ReconstructConfig,
    checkpoint: Checkpoint,
    progress: Progress,
    after: str | None = None,
) -> tuple[TrainedEncoder, tuple[StepRecord, ...]]:
    """Train the encoder on images simulated from the bootstrap's map, then on the real ones.

    Parameters
    ----------
    data
        The particles: their CTFs, noise and shifts are copied by the simulation.
    start
        Map and noise spectrum.
    config, checkpoint, progress
        Of the run.
    after
        The checkpoint that ``start`` is kept in.

    Returns
    -------
    tuple
        The encoder, and one record per step.
    """
    options = config.hybrid
    radius = float(min(config.refine.first_search_radius, start.radius))
    rows = numpy_stream(config.seed, "encoder images").permutation(data.usable_rows)
    pool = data.batch(np.sort(rows[:_POOL]), radius)
    settings = options.training(radius, config.bootstrap.max_shift_box_lengths)
    volume = start.volume.to(data.device)
    noise = start.noise_power[: pool.disk.shell_count]
    simulated = SimulatedParticles(
        volume, pool, noise, _shift_sigma(pool[:_FOR_SHIFTS], volume, noise, config), options.batch_size,
        config.seed, int(_CURRICULUM_SHARE * options.simulated_steps),
    )  # fmt: skip
    source = _InTurn(
        simulated,
        RealParticles(data, rows[: config.bootstrap.images], radius, options.batch_size, config.seed),
        options.simulated_steps,
    )
    trainer = make_trainer(
        config.encoder, settings, source, pool, seed=config.seed, map_volume=volume, noise_power=noise
    )
    title = "Training the encoder on the bootstrap's map"
    inputs = {"hybrid": options, "encoder": config.encoder, "bootstrap": config.bootstrap, "seed": config.seed}
    train_with_checkpoints(trainer, "encoder_training", title, inputs, checkpoint, progress, after)
    return trained_encoder(trainer, data, radius), tuple(trainer.history)


def _shift_sigma(
    batch: ParticleBatch, volume: FourierVolume, noise: Float[Tensor, " shells"], config: ReconstructConfig
) -> float:
    """Å, standard deviation of the translations that a search of some particles finds."""
    radius = float(batch.disk.radius[-1])
    grid = make_search_grid(
        _SHIFT_ROTATIONS,
        config.bootstrap.max_shift_box_lengths * batch.box_length,
        translation_step(radius, batch.box_length),
    )
    found = search_poses(batch, volume, noise, grid, 1)
    return float(found.translation[:, 0].square().mean().sqrt().clamp(min=0.5 * batch.pixel_size))
