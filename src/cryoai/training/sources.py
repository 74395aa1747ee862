"""Where a step's particles come from.

What a source gives depends on the step alone, so that a run can be resumed.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.rotations import random_rotations
from cryoai.particles.dataset import ParticleData
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import FourierVolume
from cryoai.tensors import ParticleBatch
from cryoai.training.winners import Winners


@runtime_checkable
class BatchSource(Protocol):
    """Mini-batches by step."""

    def __call__(self, step: int) -> tuple[ParticleBatch, Winners | None]:
        """The particles of a step, and their poses where they are known."""
        ...


class RealParticles:
    """A run's own particles in a shuffled order, each at most once per epoch.

    Parameters
    ----------
    data, rows
        The particles and which of them take part.
    radius
        Shells of the coefficients served.
    batch_size
        Particles per step and process.
    seed
        Of the order.
    rank, processes
        Which process of how many this is: together they see each particle once per epoch
        (but for those that do not fill a batch).
    """

    def __init__(
        self,
        data: ParticleData,
        rows: Int[np.ndarray, " m"],
        radius: float,
        batch_size: int,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._data, self._radius, self._seed = data, radius, seed
        self._rows = rows
        self._size = min(batch_size, max(1, len(rows) // processes))
        self._rank, self._processes = rank, processes
        self._epoch, self._order = -1, np.empty(0, int)

    def __call__(self, step: int) -> tuple[ParticleBatch, None]:
        """The particles of a step; their poses are not known."""
        per_step = self._size * self._processes
        per_epoch = max(1, len(self._rows) // per_step)
        epoch, place = divmod(step, per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._rows))
        first = place * per_step + self._rank * self._size
        chosen = self._rows[self._order[first : first + self._size]]
        # Read in the file's order, served in the shuffled one: what is trained on the first particles of each
        # batch alone must not see the first ones of the file alone.
        sequence = np.argsort(chosen)
        batch = self._data.batch(chosen[sequence], self._radius)
        return batch[torch.from_numpy(np.argsort(sequence))], None


class SimulatedParticles:
    """Images of a map at random poses, with the CTFs, the noise and the spread of shifts of real particles.

    Parameters
    ----------
    volume
        The map.
    pool
        Real particles, whose CTFs are drawn at random.
    noise_power
        ``E|noise|²`` per shell.
    shift_sigma
        Å, standard deviation of the translations along x and along y.
    batch_size
        Images per step and process.
    seed
        Of everything random; different for each process.
    curriculum_steps
        The noise's amplitude grows from 15 % to all of it over so many steps.
    """

    def __init__(
        self,
        volume: FourierVolume,
        pool: ParticleBatch,
        noise_power: Float[Tensor, " shells"],
        shift_sigma: float,
        batch_size: int,
        seed: int,
        curriculum_steps: int = 0,
    ) -> None:
        self._volume, self._pool, self._noise_power = volume, pool, noise_power
        self._shift_sigma, self._size, self._seed = shift_sigma, batch_size, seed
        self._curriculum_steps = curriculum_steps

    def __call__(self, step: int) -> tuple[ParticleBatch, Winners]:
        """Simulated images and their true poses."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        rotation = random_rotations(self._size, generator)
        translation = self._shift_sigma * torch.randn(self._size, 2, generator=generator)
        ctf = self._pool.ctf[torch.randint(len(self._pool), (self._size,), generator=generator)]
        disk = self._pool.disk
        images = form_images_quickly(self._volume, rotation, translation, ctf, disk, self._pool.pixel_size)
        amplitude = 1.0
        if self._curriculum_steps:
            amplitude = min(1.0, 0.15 + 0.85 * step / self._curriculum_steps)
        images = images + amplitude * make_shell_noise(self._size, self._noise_power, disk, generator)
        return ParticleBatch(images, ctf, disk, self._pool.pixel_size), Winners(rotation, translation)
