"""Reading and judging a run's particles, all of them or those that encoder and volume are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoai.amortized.from_scratch import AmortizedResult, train_from_scratch
from cryoai.errors import InputError
from cryoai.io import read_particles
from cryoai.particles.dataset import ParticleData
from cryoai.reconstruction.checks import (
    FEWEST_PARTICLES,
    check_device,
    check_particles,
    choose_device,
    working_box,
)
from cryoai.reconstruction.processes import check_processes, cores_shared
from cryoai.run.config import ReconstructConfig
from cryoai.run.context import Run
from cryoai.run.progress import Progress
from cryoai.run.streams import numpy_stream
from cryoai.types import ParticleSet


def understand(
    particles: str | Path | ParticleSet,
    config: ReconstructConfig,
    datadir: str | Path | None = None,
    progress: Progress | None = None,
) -> ParticleSet:
    """The input's metadata, with what the options say of it; everything that can be refused already is.

    Parameters are as for `reconstruct`.

    Raises
    ------
    InputError
        The input or an option is wrong.
    """
    check_device(config)
    check_processes(config)
    if not isinstance(particles, ParticleSet):
        particles = read_particles(particles, datadir=datadir, pixel_size=config.pixel_size)
    for note in particles.notes:
        (progress or Progress()).say(note)
    return check_particles(particles, config)


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


def read_and_judge(particles: ParticleSet, output: Path, run: Run, contrast: int | None = None) -> ParticleData:
    """All particles, with what their images showed told to the user.

    Parameters
    ----------
    particles
        Their metadata.
    output
        The run's folder.
    run
        Options and progress; warned of images that cannot be used.
    contrast
        What a subset of them has shown: 1 for white protein, -1 for black.

    Raises
    ------
    InputError
        Too few images are usable.
    """
    invert = None if contrast is None else ("yes" if contrast < 0 else "no")
    with run.timed("reading"):
        data = read_data(particles, run.config, output, run.progress, invert_contrast=invert)
    judgement = data.judgement
    for sentence in (*judgement.warnings(), *data.grouping.notes):
        run.warn(sentence)
    _check_usable(data, particles, run.config)
    if judgement.contrast < 0:
        run.progress.say("Protein is black in these images: their contrast is inverted")
    return data


def train_on_subset(particles: ParticleSet, output: Path, run: Run) -> tuple[AmortizedResult | None, int | None]:
    """Training on a part of a large set, before all of it is read, and the contrast seen; or nothing.

    Raises
    ------
    InputError
        Too few images are usable.
    """
    config = run.config
    if config.method != "amortized" or config.has_poses or not trains_on_subset(particles, config):
        return None, None
    with run.timed("reading the training set"):
        data = read_training_data(particles, config, output, run.progress)
    try:
        _check_usable(data, particles, config)
        with run.timed("training"), cores_shared():
            training = train_from_scratch(data, config, run.checkpoint, run.progress)
        return training, data.judgement.contrast
    finally:
        data.close()


def trains_on_subset(particles: ParticleSet, config: ReconstructConfig) -> bool:
    """Whether ``--method amortized`` reads only some of the particles to train on."""
    return len(particles) > config.amortize.images


def read_training_data(
    particles: ParticleSet, config: ReconstructConfig, scratch: Path, progress: Progress
) -> ParticleData:
    """The particles that encoder and volume are trained on: a random subset, so that large sets take no longer."""
    if not trains_on_subset(particles, config):
        return read_data(particles, config, scratch, progress)
    rows = numpy_stream(config.seed, "training images").permutation(len(particles))[: config.amortize.images]
    name = f"Reading {config.amortize.images:,} of the images to train on"
    return read_data(particles.select(np.sort(rows)), config, scratch, progress, name=name)


def _check_usable(data: ParticleData, particles: ParticleSet, config: ReconstructConfig) -> None:
    fewest = 2 if config.has_poses else FEWEST_PARTICLES
    if len(data.usable_rows) < fewest:
        raise InputError(
            f"{len(data.usable_rows)} usable images are left, {fewest} are needed", file=particles.source.path
        )
