"""Simulating particle stacks with known poses, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import disk_to_images, make_fourier_disk
from cryoai.geometry.rotations import random_rotations
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.insertion import slice_quickly
from cryoai.physics.noise import make_white_noise
from cryoai.physics.slicing import volume_from_map
from cryoai.physics.translation import compute_shift
from cryoai.types import CtfParameters, Map, Pose

CHUNK = 500
# Enough images for their variance to be known to better than one per cent.
_VARIANCE_IMAGES = 1000


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate.

    Attributes
    ----------
    n_particles
        Number of images.
    snr_db
        10 log₁₀(variance of the noise-free images / variance of the noise); None for no noise.
    shift_sigma
        Å, standard deviation of the translation along x and along y.
    use_ctf
        False for a perfect microscope.
    ctf
        CTFs to draw from, one per particle in turn; None draws log-normal defoci.
    pose
        Poses to use in turn; None draws uniform rotations.
    seed
        Everything random follows from it.
    """

    n_particles: int
    snr_db: float | None = None
    shift_sigma: float = 20.0
    use_ctf: bool = True
    ctf: CtfParameters | None = None
    pose: Pose | None = None
    seed: int = 0


@dataclass(frozen=True)
class SimulatedChunk:
    """Consecutive simulated particles.

    Attributes
    ----------
    images
        (n, box, box), protein positive; unit variance over the set.
    pose
        The true poses.
    ctf
        None for a perfect microscope.
    """

    images: Float[np.ndarray, "n box box"]
    pose: Pose
    ctf: CtfParameters | None


def draw_ctf(count: int, rng: np.random.Generator) -> CtfParameters:
    """Log-normal defoci around 1.5 µm (σ of the logarithm 0.25), up to 2 % astigmatism, 300 kV, Cs 2.7 mm, 10 %."""
    defocus_u = np.exp(rng.normal(math.log(15_000), 0.25, count))
    return CtfParameters(
        defocus_u_angstrom=defocus_u,
        defocus_v_angstrom=defocus_u * (1 - 0.02 * rng.uniform(size=count)),
        defocus_angle=rng.uniform(0, math.pi, count),
        phase_shift=np.zeros(count),
        b_factor=np.zeros(count),
        voltage_kv=np.full(count, 300.0),
        spherical_aberration_mm=np.full(count, 2.7),
        amplitude_contrast=np.full(count, 0.1),
    )


class Simulator:
    """Makes the images of a map; memory does not depend on their number.

    Parameters
    ----------
    true_map
        The molecule, protein positive.
    settings
        What to simulate.
    """

    def __init__(self, true_map: Map, settings: SimulationSettings) -> None:
        self.settings = settings
        self.pixel_size = true_map.voxel_size
        self._volume = volume_from_map(torch.from_numpy(true_map.density))
        self._disk = make_fourier_disk(true_map.box_size)
        self.signal_variance = self._measure_signal()
        db = settings.snr_db
        self.noise_variance = 0.0 if db is None else self.signal_variance / 10 ** (db / 10)

    def chunks(self) -> Iterator[SimulatedChunk]:
        """All particles, `CHUNK` at a time."""
        scale = 1 / math.sqrt(self.signal_variance + self.noise_variance)
        for start in range(0, self.settings.n_particles, CHUNK):
            clean, pose, ctf, generator = self._clean_chunk(start)
            if self.noise_variance:
                clean = clean + make_white_noise(tuple(clean.shape), math.sqrt(self.noise_variance), generator)
            yield SimulatedChunk((clean * scale).numpy(), pose, ctf)

    def _measure_signal(self) -> float:
        count = min(self.settings.n_particles, _VARIANCE_IMAGES)
        chunks = [self._clean_chunk(start)[0] for start in range(0, count, CHUNK)]
        return float(torch.cat(chunks).var())

    def _clean_chunk(self, start: int) -> tuple[Tensor, Pose, CtfParameters | None, torch.Generator]:
        """Noise-free images from ``start`` on, and the generator that goes on to make their noise.

        Each chunk has its own random state, so that a stack does not depend on how it was cut.
        """
        settings = self.settings
        count = min(CHUNK, settings.n_particles - start)
        entropy = np.random.SeedSequence([settings.seed, start // CHUNK])
        rng = np.random.default_rng(entropy)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pose = self._poses(start, count, generator)
        rotation = torch.from_numpy(pose.rotation)
        image = slice_quickly(self._volume, rotation, self._disk)
        image = image * compute_shift(torch.from_numpy(pose.translation), self._disk, self.pixel_size)
        ctf = None
        if settings.use_ctf:
            rows = np.arange(start, start + count)
            ctf = draw_ctf(count, rng) if settings.ctf is None else settings.ctf[rows % len(settings.ctf)]
            image = image * compute_ctf(ctf, self._disk, self.pixel_size)
        return disk_to_images(image, self._disk), pose, ctf, generator

    def _poses(self, start: int, count: int, generator: torch.Generator) -> Pose:
        if self.settings.pose is not None:
            given = self.settings.pose[np.arange(start, start + count) % len(self.settings.pose)]
            return Pose(given.rotation.astype(np.float32), given.translation.astype(np.float32))
        rotation = random_rotations(count, generator)
        translation = torch.randn(count, 2, generator=generator) * self.settings.shift_sigma
        return Pose(rotation.numpy(), translation.numpy())
