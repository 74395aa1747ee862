"""Reading a run's particles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoai.particles.dataset import ParticleData
from cryoai.reconstruction.checks import choose_device, working_box
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.types import ParticleSet


def read_data(
    particles: ParticleSet,
    config: ReconstructConfig,
    scratch: Path,
    progress: Progress,
    *,
    name: str = "Reading and judging the images",
    invert_contrast: str | None = None,
) -> ParticleData:
    """All images of a set, judged and cached.

    Parameters
    ----------
    particles, config
        What to read and how.
    scratch
        Folder for coefficients that exceed ``cache_gib``.
    progress, name
        Of this step.
    invert_contrast
        In place of the configuration's.
    """
    assert particles.pixel_size is not None
    with progress.step(name, len(particles)) as done:
        return ParticleData(
            particles, particles.pixel_size, working_box(particles, config),
            invert_contrast=invert_contrast or config.invert_contrast, device=choose_device(config),
            memory_limit=int(config.cache_gib * 2**30), scratch=scratch, on_chunk=done,
        )  # fmt: skip


def trains_on_subset(particles: ParticleSet, config: ReconstructConfig) -> bool:
    """Whether ``--method amortized`` reads only some of the particles to train on."""
    return len(particles) > config.amortize.images


def read_training_data(
    particles: ParticleSet, config: ReconstructConfig, scratch: Path, progress: Progress
) -> ParticleData:
    """The particles that encoder and volume are trained on: a random subset, so that large sets take no longer."""
    if not trains_on_subset(particles, config):
        return read_data(particles, config, scratch, progress)
    rows = np.random.default_rng(config.seed).permutation(len(particles))[: config.amortize.images]
    name = f"Reading {config.amortize.images:,} of the images to train on"
    return read_data(particles.select(np.sort(rows)), config, scratch, progress, name=name)
