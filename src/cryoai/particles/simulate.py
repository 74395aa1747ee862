"""Simulating particle stacks with known poses, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoai.errors import InputError
from cryoai.geometry.fourier import crop_or_pad, disk_to_images, make_fourier_disk, resample
from cryoai.geometry.rotations import euler_zyz_to_rotation, random_rotations
from cryoai.particles.junk import Shows, draw_contents, make_blobs
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.noise import make_coloured_noise, make_white_noise
from cryoai.physics.slicing import volume_from_map
from cryoai.types import CtfParameters, Map, Microscope, Pose

CHUNK = 500
"""Most particles made at once."""
_CHUNK_PIXELS = 2**25
"""Bounds the memory of a chunk of large images, to a few times 128 MiB."""
_VARIANCE_IMAGES = 1000
"""Enough images for their variance to be known to better than one per cent."""
_SMALLEST_CONTRAST = 0.1
# What is drawn from a stream of its own in each chunk leaves everything else as it is without it.
_CONTRAST, _VIEWS, _CONTENTS, _BLOBS = range(4)


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
        CTFs to use in turn; None draws them (`draw_ctf`).
    pose
        Poses to use in turn; None draws uniform rotations and normal translations.
    seed
        Everything random follows from it.
    contrast_spread
        Standard deviation of a factor of mean 1 (at least 0.1) that each particle's signal is multiplied by.
    noise_colour
        Surplus of the noise's power at the zero frequency (`make_coloured_noise`); 0 for white noise.
    junk
        Share of the images, drawn one by one, that show no particle (0 to 1): half of them noise alone, half
        one to three Gaussian blobs of the particles' variance (`make_blobs`).
    preferred_share
        Share of the particles, drawn one by one, whose viewing direction lies within ``preferred_angle`` of
        the molecule's z axis, uniformly there; of drawn poses only.
    preferred_angle
        Radians.
    """

    n_particles: int
    snr_db: float | None = None
    shift_sigma: float = 20.0
    use_ctf: bool = True
    ctf: CtfParameters | None = None
    pose: Pose | None = None
    seed: int = 0
    contrast_spread: float = 0.0
    noise_colour: float = 0.0
    junk: float = 0.0
    preferred_share: float = 0.0
    preferred_angle: float = math.radians(20)


@dataclass(frozen=True)
class SimulatedChunk:
    """Consecutive simulated particles.

    Attributes
    ----------
    images
        (n, box, box), protein positive; unit variance over those that show a particle.
    pose
        The true poses; where there is no particle, what its pose would have been.
    ctf
        None for a perfect microscope.
    is_junk
        Which images show no particle.
    """

    images: Float[np.ndarray, "n box box"]
    pose: Pose
    ctf: CtfParameters | None
    is_junk: Bool[np.ndarray, " n"]


def draw_ctf(count: int, rng: np.random.Generator) -> CtfParameters:
    """CTFs of an ordinary session: the default `Microscope`, up to 2 % astigmatism.

    Parameters
    ----------
    count
        How many.
    rng
        Draws log-normal defoci around 1.5 µm underfocus (σ of the logarithm 0.25).
    """
    microscope = Microscope()
    defocus_u = np.exp(rng.normal(math.log(15_000), 0.25, count))
    return CtfParameters(
        defocus_u_angstrom=defocus_u,
        defocus_v_angstrom=defocus_u * (1 - 0.02 * rng.uniform(size=count)),
        defocus_angle=rng.uniform(0, math.pi, count),
        phase_shift=np.zeros(count),
        b_factor=np.zeros(count),
        voltage_kv=np.full(count, microscope.voltage_kv),
        spherical_aberration_mm=np.full(count, microscope.spherical_aberration_mm),
        amplitude_contrast=np.full(count, microscope.amplitude_contrast),
    )


class Simulator:
    """Makes the images of a map; memory does not depend on their number.

    Particle i is the same (to rounding) however many others are made, but for the common scale when there
    are fewer than 1000 of them; and whichever other images are junk.

    Projections are trilinear slices of the twice padded transform. Against the analytic projections of
    Gaussian blobs their error is 1.5 % (relative root mean square) where the blobs lie within a quarter of the
    box from its centre, and 3 % within 0.35 of it.

    Parameters
    ----------
    true_map
        The molecule, protein positive.
    settings
        What to simulate.

    Attributes
    ----------
    signal_variance, noise_variance
        Of a pixel, over the set as if all of it were particles, before the images are scaled to unit variance
        (the map's units, squared).
    """

    def __init__(self, true_map: Map, settings: SimulationSettings) -> None:
        self.settings = settings
        self.pixel_size = true_map.voxel_size
        self._volume = volume_from_map(torch.from_numpy(np.array(true_map.density, dtype=np.float32)))
        self._disk = make_fourier_disk(true_map.box_size)
        self._chunk = min(CHUNK, max(1, _CHUNK_PIXELS // true_map.box_size**2))
        self.signal_variance = self._measure_signal()
        db = settings.snr_db
        self.noise_variance = 0.0 if db is None else self.signal_variance / 10 ** (db / 10)

    def chunks(self) -> Iterator[SimulatedChunk]:
        """All particles, at most `CHUNK` at a time."""
        scale = 1 / math.sqrt(self.signal_variance + self.noise_variance)
        for start in range(0, self.settings.n_particles, self._chunk):
            clean, pose, ctf, generator = self._clean_chunk(start)
            is_junk = np.zeros(len(clean), bool)
            if self.settings.junk:
                shows = draw_contents(self._chunk, self.settings.junk, self._stream(start, _CONTENTS))[: len(clean)]
                is_junk = shows != Shows.PARTICLE
                clean = self._with_junk(clean, shows, ctf, start)
            if self.noise_variance:
                # Drawn for a whole chunk even where less is left, so that no particle's noise depends on n.
                clean = clean + self._noise(generator)[: len(clean)]
            yield SimulatedChunk((clean * scale).numpy(), pose, ctf, is_junk)

    def _noise(self, generator: torch.Generator) -> Float[Tensor, "chunk box box"]:
        box, deviation, colour = self._disk.box_size, math.sqrt(self.noise_variance), self.settings.noise_colour
        if colour == 0:
            return make_white_noise((self._chunk, box, box), deviation, generator)
        return make_coloured_noise(self._chunk, box, colour, self.pixel_size, deviation, generator)

    def _with_junk(
        self, clean: Float[Tensor, "n box box"], shows: Int[np.ndarray, " n"], ctf: CtfParameters | None, start: int
    ) -> Float[Tensor, "n box box"]:
        """The images, with those that show no particle in their places."""
        clean = clean.clone()
        clean[torch.from_numpy(shows == Shows.NOTHING)] = 0
        chosen = shows == Shows.BLOBS
        if not chosen.any():
            return clean
        blobs = make_blobs(np.pad(chosen, (0, self._chunk - len(chosen))), self._disk, self._stream(start, _BLOBS))
        if ctf is not None:
            blobs = blobs * compute_ctf(ctf[chosen], self._disk, self.pixel_size)
        images = disk_to_images(blobs, self._disk)
        # Each as strong as a particle on average: the CTF takes nearly all of a wide blob.
        variance = images.square().mean((-2, -1), keepdim=True).clamp(min=1e-30)
        clean[torch.from_numpy(chosen)] = images * (self.signal_variance / variance).sqrt()
        return clean

    def _stream(self, start: int, purpose: int) -> np.random.Generator:
        """Random numbers of a chunk for one purpose."""
        seed = [self.settings.seed, start // self._chunk]
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))

    def _measure_signal(self) -> float:
        """Variance of the noise-free images; their mean is zero, since the Fourier disk leaves it out."""
        count = min(self.settings.n_particles, _VARIANCE_IMAGES)
        power, pixels = 0.0, 0
        for start in range(0, count, self._chunk):
            images = self._clean_chunk(start)[0][: count - start]
            power += float(images.double().square().sum())
            pixels += images.numel()
        if not power > 0:
            raise InputError("the map shows no density in its projections", advice="give another map")
        return power / pixels

    def _clean_chunk(self, start: int) -> tuple[Tensor, Pose, CtfParameters | None, torch.Generator]:
        """Noise-free images from ``start`` on, and the generator that goes on to make their noise.

        Each chunk has its own random state, so that none needs those before it.
        """
        settings = self.settings
        count = min(self._chunk, settings.n_particles - start)
        rng = np.random.default_rng(np.random.SeedSequence([settings.seed, start // self._chunk]))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pose = self._poses(start, generator)[:count]
        ctf = self._ctfs(start, rng)[:count] if settings.use_ctf else None
        image = form_images_quickly(
            self._volume, torch.from_numpy(pose.rotation), torch.from_numpy(pose.translation),
            None if ctf is None else compute_ctf(ctf, self._disk, self.pixel_size), self._disk, self.pixel_size,
        )  # fmt: skip
        clean = disk_to_images(image, self._disk)
        if settings.contrast_spread:
            factor = self._stream(start, _CONTRAST).normal(1, settings.contrast_spread, self._chunk)
            factor = torch.from_numpy(factor.clip(min=_SMALLEST_CONTRAST).astype(np.float32))
            clean = clean * factor[:count, None, None]
        return clean, pose, ctf, generator

    def _poses(self, start: int, generator: torch.Generator) -> Pose:
        given = self.settings.pose
        if given is not None:
            chosen = given[np.arange(start, start + self._chunk) % len(given)]
            return Pose(chosen.rotation.astype(np.float32), chosen.translation.astype(np.float32))
        rotation = random_rotations(self._chunk, generator)
        translation = torch.randn(self._chunk, 2, generator=generator) * self.settings.shift_sigma
        if self.settings.preferred_share:
            rotation = self._with_preferred_views(rotation, start)
        return Pose(rotation.numpy(), translation.numpy())

    def _with_preferred_views(self, rotation: Float[Tensor, "chunk 3 3"], start: int) -> Float[Tensor, "chunk 3 3"]:
        """Rotations, a share of them replaced by ones whose viewing direction ``R [0, 0, 1]`` is near z."""
        rng = self._stream(start, _VIEWS)
        chosen = torch.from_numpy(rng.uniform(size=len(rotation)) < self.settings.preferred_share)
        # RELION's tilt is the direction's angle with z, and equal steps of its cosine are equal areas.
        tilt = np.arccos(rng.uniform(math.cos(self.settings.preferred_angle), 1, len(rotation)))
        rot, psi = rng.uniform(-math.pi, math.pi, (2, len(rotation)))
        angles_deg = torch.from_numpy(np.degrees(np.stack((rot, tilt, psi), -1)))
        return torch.where(chosen[:, None, None], euler_zyz_to_rotation(angles_deg).float(), rotation)

    def _ctfs(self, start: int, rng: np.random.Generator) -> CtfParameters:
        given = self.settings.ctf
        if given is None:
            return draw_ctf(self._chunk, rng)
        return given[np.arange(start, start + self._chunk) % len(given)]


def fit_map_to_box(density_map: Map, box_size: int, pixel_size: float) -> Map:
    """A map on another grid: resampled in Fourier space, then cropped or padded with zeros.

    Fourier cropping reaches only voxel sizes of (old box · old voxel size) / integer, so the map is first
    padded by up to 32 voxels to the box that comes closest to ``pixel_size``.

    Parameters
    ----------
    density_map
        The map; its centre ``box // 2`` stays the centre.
    box_size
        px.
    pixel_size
        Å.

    Raises
    ------
    InputError
        No such box comes within 1 % of ``pixel_size``.
    """
    ratio = density_map.voxel_size / pixel_size
    padded = range(density_map.box_size, density_map.box_size + 33)
    errors = [abs(box * ratio / max(1, round(box * ratio)) - 1) for box in padded]
    # The first that is as good as exact, so that a map that needs no padding gets none.
    best = next((i for i, error in enumerate(errors) if error < 1e-4), int(np.argmin(errors)))
    if errors[best] > 0.01:
        raise InputError(
            f"a map of {density_map.box_size} voxels of {density_map.voxel_size:g} Å cannot be resampled to "
            f"{pixel_size:g} Å",
            advice="choose a smaller pixel size",
        )
    density = torch.from_numpy(np.array(density_map.density, dtype=np.float32))
    density = crop_or_pad(density, padded[best], (0, 1, 2))
    density = resample(density, round(padded[best] * ratio), 3)
    return Map(crop_or_pad(density, box_size, (0, 1, 2)).contiguous().numpy(), pixel_size)
