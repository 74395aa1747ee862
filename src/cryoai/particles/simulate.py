"""Simulating particle stacks with known poses, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoai.errors import InputError
from cryoai.geometry.fourier import disk_to_images, make_fourier_disk
from cryoai.geometry.rotations import euler_zyz_to_rotation, random_rotations
from cryoai.particles.junk import (
    NO_JUNK,
    JunkShares,
    Shows,
    draw_contents,
    draw_pair_offsets,
    make_blobs,
    make_edges,
)
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
_CONTRAST, _VIEWS, _CONTENTS, _BLOBS, _SPECIES, _PAIRS, _EDGES = range(7)


@dataclass(frozen=True)
class Species:
    """One of the molecules of a set.

    Attributes
    ----------
    true_map
        The molecule, protein positive.
    share
        How much of it there is, compared with the others.
    name
        Without blanks.
    """

    true_map: Map
    share: float = 1.0
    name: str = "particle"


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate.

    Attributes
    ----------
    n_particles
        Number of images.
    snr_db
        10 log₁₀(variance of the noise-free particles / variance of the noise); None for no noise.
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
        Shares of the images, drawn one by one, that show something else than one particle.
    preferred_share
        Share of the particles, drawn one by one, whose viewing direction lies within ``preferred_angle`` of
        the molecule's z axis, uniformly there; of drawn poses only.
    preferred_angle
        Radians.
    equal_signal
        Scale every species to the same variance, so that the SNR is that of each. Otherwise their maps are
        taken as they are, and the SNR is that of all particles together.
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
    junk: JunkShares = NO_JUNK
    preferred_share: float = 0.0
    preferred_angle: float = math.radians(20)
    equal_signal: bool = True


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
    shows
        What each image shows (`Shows`).
    species
        Which of the species each particle is, counted from 0; where there is none, what it would have been.
    """

    images: Float[np.ndarray, "n box box"]
    pose: Pose
    ctf: CtfParameters | None
    shows: Int[np.ndarray, " n"]
    species: Int[np.ndarray, " n"]

    @property
    def is_junk(self) -> Bool[np.ndarray, " n"]:
        """Which images show something else than one particle."""
        return self.shows != Shows.PARTICLE


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


@dataclass(frozen=True)
class _Drawn:
    """What is random about a chunk's particles but for noise and junk; the generator goes on to make noise."""

    pose: Pose
    ctf: CtfParameters | None
    contrast: Float[Tensor, " n"] | None
    species: Int[np.ndarray, " n"]
    generator: torch.Generator


class Simulator:
    """Makes the images of one or several molecules; memory does not depend on their number.

    Particle i is the same (to rounding) however many others are made, but for the common scale when there
    are fewer than 1000 of them; and whichever other images are junk.

    Projections are trilinear slices of the twice padded transform. Against the analytic projections of
    Gaussian blobs their error is 1.5 % (relative root mean square) where the blobs lie within a quarter of the
    box from its centre, and 3 % within 0.35 of it.

    Parameters
    ----------
    molecules
        The molecule, protein positive; or several, of one box and voxel size.
    settings
        What to simulate.

    Attributes
    ----------
    species
        The molecules.
    signal_variance, noise_variance
        Of a pixel, over the set as if all of it were particles, before the images are scaled to unit variance
        (the map's units, squared).

    Raises
    ------
    InputError
        A map is empty, or the maps' boxes differ.
    """

    def __init__(self, molecules: Map | Sequence[Species], settings: SimulationSettings) -> None:
        self.settings = settings
        self.species = (Species(molecules),) if isinstance(molecules, Map) else tuple(molecules)
        first = self.species[0].true_map
        for other in self.species:
            if (other.true_map.box_size, other.true_map.voxel_size) != (first.box_size, first.voxel_size):
                raise InputError("the maps of a mixture differ in box or voxel size", advice="resample them first")
        self.pixel_size = first.voxel_size
        self._volumes = [
            volume_from_map(torch.from_numpy(np.array(one.true_map.density, dtype=np.float32)))
            for one in self.species
        ]
        self._disk = make_fourier_disk(first.box_size)
        self._chunk = min(CHUNK, max(1, _CHUNK_PIXELS // first.box_size**2))
        shares = np.array([one.share for one in self.species], float)
        self._shares = shares / shares.sum()
        variances = [self._measure_signal(number) for number in range(len(self.species))]
        self.signal_variance = float(np.dot(self._shares, variances))
        self._factors = [math.sqrt(self.signal_variance / v) if settings.equal_signal else 1.0 for v in variances]
        db = settings.snr_db
        self.noise_variance = 0.0 if db is None else self.signal_variance / 10 ** (db / 10)

    def chunks(self) -> Iterator[SimulatedChunk]:
        """All particles, at most `CHUNK` at a time."""
        scale = 1 / math.sqrt(self.signal_variance + self.noise_variance)
        for start in range(0, self.settings.n_particles, self._chunk):
            drawn = self._draw(start)
            clean = self._particles(drawn)
            shows = np.full(len(clean), int(Shows.PARTICLE))
            if self.settings.junk.total:
                shows = draw_contents(self._chunk, self.settings.junk, self._stream(start, _CONTENTS))[: len(clean)]
                clean = self._with_junk(clean, shows, drawn, start)
            if self.noise_variance:
                # Drawn for a whole chunk even where less is left, so that no particle's noise depends on n.
                clean = clean + self._noise(drawn.generator)[: len(clean)]
            yield SimulatedChunk((clean * scale).numpy(), drawn.pose, drawn.ctf, shows, drawn.species)

    def _noise(self, generator: torch.Generator) -> Float[Tensor, "chunk box box"]:
        box, deviation, colour = self._disk.box_size, math.sqrt(self.noise_variance), self.settings.noise_colour
        if colour == 0:
            return make_white_noise((self._chunk, box, box), deviation, generator)
        return make_coloured_noise(self._chunk, box, colour, self.pixel_size, deviation, generator)

    def _with_junk(
        self, clean: Float[Tensor, "n box box"], shows: Int[np.ndarray, " n"], drawn: _Drawn, start: int
    ) -> Float[Tensor, "n box box"]:
        """The images, with those that show something else in their places."""
        clean = clean.clone()
        makers = {Shows.BLOBS: self._blobs, Shows.PAIR: self._pairs, Shows.EDGE: self._edges}
        clean[torch.from_numpy(shows == Shows.NOISE)] = 0
        for kind, make in makers.items():
            chosen = shows == kind
            if chosen.any():
                clean[torch.from_numpy(chosen)] = make(chosen, drawn, start)
        return clean

    def _blobs(self, chosen: Bool[np.ndarray, " n"], drawn: _Drawn, start: int) -> Float[Tensor, "chosen box box"]:
        blobs = make_blobs(self._of_chunk(chosen), self._disk, self._stream(start, _BLOBS))
        if drawn.ctf is not None:
            blobs = blobs * compute_ctf(drawn.ctf[chosen], self._disk, self.pixel_size)
        images = disk_to_images(blobs, self._disk)
        # Each as strong as a particle on average: the CTF takes nearly all of a wide blob.
        variance = images.square().mean((-2, -1), keepdim=True).clamp(min=1e-30)
        return images * (self.signal_variance / variance).sqrt()

    def _edges(self, chosen: Bool[np.ndarray, " n"], drawn: _Drawn, start: int) -> Float[Tensor, "chosen box box"]:
        edges = make_edges(self._of_chunk(chosen), self._disk.box_size, self._stream(start, _EDGES))
        return edges * math.sqrt(self.signal_variance)

    def _pairs(self, chosen: Bool[np.ndarray, " n"], drawn: _Drawn, start: int) -> Float[Tensor, "chosen box box"]:
        """Each particle moved aside, and a second one beside it."""
        rng = self._stream(start, _PAIRS)
        offset = draw_pair_offsets(self._chunk, rng)[: len(chosen)] * self._disk.box_size * self.pixel_size
        rotation = Rotation.random(self._chunk, rng=rng).as_matrix().astype(np.float32)[: len(chosen)]
        species = rng.choice(len(self.species), self._chunk, p=self._shares)[: len(chosen)]
        pose = drawn.pose
        first = replace(drawn, pose=Pose(pose.rotation, pose.translation + offset))
        second = replace(drawn, pose=Pose(rotation, pose.translation - offset), species=species)
        return self._particles(first, chosen) + self._particles(second, chosen)

    def _of_chunk(self, chosen: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " chunk"]:
        """A choice among the particles that are wanted as one among those of a whole chunk."""
        return np.pad(chosen, (0, self._chunk - len(chosen)))

    def _stream(self, start: int, purpose: int) -> np.random.Generator:
        """Random numbers of a chunk for one purpose."""
        seed = [self.settings.seed, start // self._chunk]
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))

    def _measure_signal(self, number: int) -> float:
        """Variance of a species' noise-free images; their mean is zero, since the Fourier disk leaves it out."""
        count = min(self.settings.n_particles, _VARIANCE_IMAGES)
        power, pixels = 0.0, 0
        for start in range(0, count, self._chunk):
            drawn = self._draw(start)
            images = self._particles_of(number, np.arange(len(drawn.pose)), drawn)[: count - start]
            power += float(images.double().square().sum())
            pixels += images.numel()
        if not power > 0:
            raise InputError("the map shows no density in its projections", advice="give another map")
        return power / pixels

    def _draw(self, start: int) -> _Drawn:
        """What is random about the particles from ``start`` on.

        Each chunk has its own random state, so that none needs those before it.
        """
        settings = self.settings
        count = min(self._chunk, settings.n_particles - start)
        rng = np.random.default_rng(np.random.SeedSequence([settings.seed, start // self._chunk]))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        pose = self._poses(start, generator)[:count]
        ctf = self._ctfs(start, rng)[:count] if settings.use_ctf else None
        contrast = None
        if settings.contrast_spread:
            factor = self._stream(start, _CONTRAST).normal(1, settings.contrast_spread, self._chunk)
            contrast = torch.from_numpy(factor.clip(min=_SMALLEST_CONTRAST).astype(np.float32))[:count]
        species = self._stream(start, _SPECIES).choice(len(self.species), self._chunk, p=self._shares)[:count]
        return _Drawn(pose, ctf, contrast, species, generator)

    def _particles(
        self, drawn: _Drawn, chosen: Bool[np.ndarray, " n"] | None = None
    ) -> Float[Tensor, "chosen box box"]:
        """Noise-free images of some particles, or of all."""
        rows = np.arange(len(drawn.pose)) if chosen is None else np.flatnonzero(chosen)
        images = torch.empty(len(rows), self._disk.box_size, self._disk.box_size)
        for number in np.unique(drawn.species[rows]).tolist():
            of_it = drawn.species[rows] == number
            images[torch.from_numpy(of_it)] = self._particles_of(number, rows[of_it], drawn) * self._factors[number]
        return images

    def _particles_of(
        self, number: int, rows: Int[np.ndarray, " rows"], drawn: _Drawn
    ) -> Float[Tensor, "rows box box"]:
        """Noise-free images of one species, as its map is."""
        pose, ctf = drawn.pose[rows], None if drawn.ctf is None else drawn.ctf[rows]
        image = form_images_quickly(
            self._volumes[number], torch.from_numpy(pose.rotation), torch.from_numpy(pose.translation),
            None if ctf is None else compute_ctf(ctf, self._disk, self.pixel_size), self._disk, self.pixel_size,
        )  # fmt: skip
        images = disk_to_images(image, self._disk)
        return images if drawn.contrast is None else images * drawn.contrast[torch.from_numpy(rows), None, None]

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
