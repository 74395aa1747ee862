"""What is refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from cryoai.errors import InputError
from cryoai.run.config import ReconstructConfig
from cryoai.types import ParticleSet

FEWEST_PARTICLES = 50
"""Fewer cannot be posed from nothing."""
_SMALLEST_BOX = 16
LARGEST_DEFAULT_BOX = 128


def check_device(config: ReconstructConfig) -> None:
    """Refuse a device that is not there."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no usable GPU here", advice="use --device auto or cpu")


def choose_device(config: ReconstructConfig) -> str:
    """The device of a run: a GPU where torch finds one, unless told otherwise."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def working_box(particles: ParticleSet, config: ReconstructConfig) -> int:
    """Px of the reconstruction: as asked, or the images' own up to a limit."""
    assert particles.box_size is not None
    return config.box_size or min(particles.box_size, LARGEST_DEFAULT_BOX)


def check_particles(
    particles: ParticleSet, config: ReconstructConfig, fewest: int = FEWEST_PARTICLES
) -> ParticleSet:
    """Refuse what can't be reconstructed, before anything is computed.

    Parameters
    ----------
    particles, config
        The input and the options.
    fewest
        Particles needed to find poses.
    """
    file = particles.source.path
    if config.pixel_size is not None:
        particles = _with_pixel_size(particles, config.pixel_size)
    if particles.pixel_size is None:
        raise InputError("the pixel size is unknown", file=file, advice="give --pixel-size (Å)")
    if particles.ctf is None and not config.no_ctf:
        raise InputError(
            "there are no CTF columns",
            file=file,
            advice="estimate CTFs first, or give --no-ctf if the images are not modulated by one",
        )
    if config.no_ctf:
        particles = replace(particles, ctf=None)
    if config.has_poses and particles.pose is None:
        option = "--known-poses" if config.known_poses else "refine.start_from_input_poses"
        raise InputError(f"there are no poses for {option}", file=file, advice="leave that option out")
    if config.max_particles is not None and config.max_particles < len(particles):
        rows = np.linspace(0, len(particles) - 1, config.max_particles).round().astype(int)
        particles = particles.select(rows)
    _check_box(particles, config)
    if len(particles) < fewest and not config.has_poses:
        raise InputError(
            f"{len(particles)} particles are too few to find poses from nothing",
            file=file,
            advice=f"give at least {fewest}" + ("" if particles.pose is None else ", or --known-poses"),
        )
    return particles


def _with_pixel_size(particles: ParticleSet, pixel_size: float) -> ParticleSet:
    """The particles as if their file had said ``pixel_size``."""
    source, pose = particles.source, particles.pose
    optics = source.optics
    if optics is not None:
        optics = optics.assign(rlnImagePixelSize=pixel_size)
    if pose is not None and particles.pixel_size and "rlnOriginX" in source.particles:
        # RELION 3.0's origins are in px, and were turned to Å with the size the file says.
        pose = replace(pose, translation=pose.translation * (pixel_size / particles.pixel_size))
    return replace(particles, pixel_size=pixel_size, pose=pose, source=replace(source, optics=optics))


def _check_box(particles: ParticleSet, config: ReconstructConfig) -> None:
    box = particles.box_size
    if box is None or box < _SMALLEST_BOX:
        raise InputError(
            f"images of {box} px are too small",
            file=particles.source.path,
            advice=f"give at least {_SMALLEST_BOX} px",
        )
    if config.box_size is not None and config.box_size > box:
        raise InputError(
            f"--box-size {config.box_size} is larger than the images ({box} px)",
            advice="give at most the images' box",
        )
