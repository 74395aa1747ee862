"""Particles ready for reconstruction: judged, Fourier cropped, cached, and served in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from cryoai.geometry.fourier import FourierDisk, images_to_disk, make_fourier_disk
from cryoai.particles.cache import CoefficientCache
from cryoai.particles.extent import LARGEST_SUPPORT, measure_support
from cryoai.particles.grouping import group_particles, hash_images
from cryoai.particles.judge import Judge, Judgement
from cryoai.particles.sampling import sample_rows
from cryoai.particles.stack import ParticleImages
from cryoai.physics.ctf import compute_ctf
from cryoai.tensors import ParticleBatch
from cryoai.types import ParticleSet

_PIXELS_PER_CHUNK = 4 * 2**20
# The particle's size is measured on so many images, within so many shells.
_MEASURED, _MEASURED_RADIUS = 3000, 10.0


class ParticleData:
    """All particles of a run as coefficients on one Fourier disk.

    Building it reads every image once. Images are cropped in Fourier space: shells keep their number, so that a
    smaller box is a smaller radius.

    Parameters
    ----------
    particles
        The metadata; without a CTF the images are taken as unmodulated.
    pixel_size
        Å, of the images on disk.
    box_size
        px of the reconstruction, at most the images'.
    invert_contrast
        ``"auto"``, ``"yes"`` or ``"no"``; ``"auto"`` believes the metadata, and the images where they say nothing.
    memory_limit
        Bytes of coefficients to hold in memory; more go to a file in ``scratch``.
    scratch
        Folder for that file.
    device
        Where reconstruction should work; batches stay in the host's memory until they are needed there.
    on_chunk
        Called with the number of images read so far; for progress.

    Attributes
    ----------
    disk, pixel_size
        Of the reconstruction.
    device
        Where to work.
    judgement
        What the images showed.
    usable_rows
        Those that are not left out.
    grouping
        Which of them show the same thing.
    """

    def __init__(
        self,
        particles: ParticleSet,
        pixel_size: float,
        box_size: int,
        *,
        invert_contrast: str = "auto",
        memory_limit: int,
        scratch: Path,
        device: torch.device | str = "cpu",
        on_chunk: Callable[[int], None] = lambda done: None,
    ) -> None:
        images = ParticleImages(particles)
        self._ctf = particles.ctf
        self.device = torch.device(device)
        self.disk = make_fourier_disk(box_size)
        self.pixel_size = pixel_size * images.box_size / box_size
        self._count = len(particles)
        self._cache = CoefficientCache(self._count, len(self.disk), memory_limit, scratch)
        self.judgement, image_hash = self._read_all(images, invert_contrast, particles.contrast_sign, on_chunk)
        self.usable_rows = np.flatnonzero(self.judgement.usable)
        self.grouping = group_particles(particles, image_hash, self.judgement.usable)

    def __len__(self) -> int:
        return self._count

    def _read_all(
        self,
        images: ParticleImages,
        invert_contrast: str,
        contrast_sign: int | None,
        on_chunk: Callable[[int], None],
    ) -> tuple[Judgement, Int[np.ndarray, " n"]]:
        native = make_fourier_disk(images.box_size, float(self.disk.radius[-1]))
        # Orthonormal coefficients of a cropped image are smaller by the ratio of the boxes.
        crop_factor = self.disk.box_size / images.box_size
        judge, image_hash = Judge(images.box_size), np.empty(len(images), np.int64)
        chunk = max(1, _PIXELS_PER_CHUNK // images.box_size**2)
        for start in range(0, len(images), chunk):
            rows = np.arange(start, min(start + chunk, len(images)))
            raw = images.read(rows)
            image_hash[rows] = hash_images(raw)
            pixels = judge.look(torch.from_numpy(raw))
            coefficients = images_to_disk(pixels, native) * crop_factor
            judge.look_at_contrast(coefficients, self._ctf_of(rows, self.disk), self.disk)
            self._cache.append(coefficients.numpy())
            on_chunk(int(rows[-1]) + 1)
        return judge.verdict(invert_contrast, contrast_sign), image_hash

    def _ctf_of(self, rows: np.ndarray, disk: FourierDisk) -> torch.Tensor:
        if self._ctf is None:
            return torch.ones(len(rows), len(disk))
        return compute_ctf(self._ctf[rows], disk, self.pixel_size)

    def batch(self, rows: Int[np.ndarray, " m"], radius: float | None = None) -> ParticleBatch:
        """Some particles inside a radius (shells; default: all), scaled and with protein positive."""
        disk = self.disk if radius is None else self.disk.prefix(radius)
        coefficients = self._cache.read(rows, len(disk))
        coefficients *= self.judgement.scale[rows, None]
        return ParticleBatch(
            torch.from_numpy(coefficients),
            self._ctf_of(rows, disk),
            disk,
            self.pixel_size,
        )

    def batches(
        self, rows: Int[np.ndarray, " m"], size: int, radius: float | None = None
    ) -> Iterator[tuple[np.ndarray, ParticleBatch]]:
        """Consecutive parts of ``rows`` with their particles."""
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            yield part, self.batch(part, radius)

    @cached_property
    def _measured_support(self) -> float:
        return measure_support(self.batch(sample_rows(self.usable_rows, _MEASURED), _MEASURED_RADIUS))

    def support(self, diameter: float | None = None) -> float:
        """Radius that holds the particle in every view, box lengths: from its diameter, Å, or else measured."""
        if diameter is None:
            return self._measured_support
        return min(0.5 * diameter / (self.disk.box_size * self.pixel_size), LARGEST_SUPPORT)

    def close(self) -> None:
        """Release the cache."""
        self._cache.close()
