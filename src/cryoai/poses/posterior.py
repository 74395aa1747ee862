"""The whole posterior of images over classes, views, in-plane angles and shifts, and what maps learn from it.

E step: an image, multiplied by its CTF, masked to where the particle can be, sampled on rings and moved by every
shift, is correlated with slices of the map over all in-plane angles at once, angular mode by angular mode. M step:
poses drawn from the posterior, every image with the same number of draws, are summed up by their direction and
inserted. Nothing is truncated: a posterior over thousands of poses is drawn from as it is. Slices of several maps
are more directions, whose scores have the logarithm of their map's share added: the class is one more hidden
variable.

The mask comes after the CTF: a product with a slice is then that of the unmasked image with what the mask leaves of
the map, so that noise stays white and the likelihood exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from cryoai.geometry.asymmetric_unit import unit_directions
from cryoai.geometry.fourier import FourierDisk, disk_to_images
from cryoai.geometry.point_groups import point_group
from cryoai.geometry.rotations import random_rotations
from cryoai.geometry.shells import mean_per_shell
from cryoai.geometry.soft_masks import make_soft_disc
from cryoai.physics.insertion import Inserter, slice_quickly
from cryoai.physics.kernels import run_in_threads
from cryoai.physics.polar_kernels import LANES, posterior_kernel
from cryoai.physics.slicing import FourierVolume, VolumeAccumulator
from cryoai.physics.translation import compute_shift
from cryoai.poses.polar_grid import PolarGrid, make_polar_grid, order_in_patches, rotations_to, spread_directions
from cryoai.poses.search import make_translation_grid
from cryoai.tensors import ParticleBatch

MASK_MARGIN = 3.0
"""Shells beyond the radius that images should reach: a mask mixes neighbouring coefficients."""
MASK_EDGE = 0.08
"""Width of the mask's soft edge, box lengths."""
# Directions are so far apart, in periods of the outermost shell at the particle's radius.
_SPACING = 0.75
# The smallest radius that sets the spacing of directions, box lengths.
_SMALLEST_SUPPORT = 0.25
# Of a lattice that is to fill the asymmetric unit some more points are taken than lie in it: none may be missing.
_OVER_THE_EDGE = 1.08
# Images whose moved rings are held at once.
_CHUNK = 64
PADDING = 2
"""Grid points per shell of the sums."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """What a batch of images says about one map, or several.

    Attributes
    ----------
    gain
        (batch,) marginal log-likelihood gain over no particle at all, nats: the mean over all poses of the grid and
        over the maps by their shares.
    effective_poses
        (batch,) 1 / Σ p², over all maps.
    presence
        (batch,) probability that the image shows what a map holds, and not what its rival says; 1 without one.
    where
        (batch, maps, shifts) probability that the image shows each map, moved by each shift, if it shows any; what
        is negligible is 0.
    sums
        For each map, of the images at poses drawn from their posteriors, on a grid of `PADDING`, each counting for
        its presence; empty if none were drawn.
    shares
        For each map, how much of what was drawn has gone to it; empty if nothing was.
    residual_power
        (shells + 1,) ``E|image - CTF · slice|²`` over the posterior, of what is present; 0 for shell 0. None
        without draws.
    """

    gain: Float[Tensor, " batch"]
    effective_poses: Float[Tensor, " batch"]
    presence: Float[Tensor, " batch"]
    where: Float[Tensor, "batch maps shifts"]
    sums: tuple[VolumeAccumulator, ...] = ()
    shares: tuple[float, ...] = ()
    residual_power: Float[Tensor, " shells"] | None = None

    @property
    def map_share(self) -> Float[Tensor, "batch maps"]:
        """Probability that the image shows each map, if it shows any."""
        return self.where.sum(2)


def direction_spacing(shells: float, support: float, finer: float = 1.0) -> float:
    """How far apart directions may lie, radians, for a particle of some radius (box lengths)."""
    return _SPACING / (finer * shells * max(support, _SMALLEST_SUPPORT))


class PosteriorSearch:
    """The posterior within a radius, for particles of a known size.

    Parameters
    ----------
    box_size, pixel_size
        Of the images, px and Å.
    shells
        The radius.
    support
        Radius of the particle, box lengths; volumes should be 0 outside.
    max_shift
        Largest translation tried, box lengths.
    sums_radius
        Shells that the grid of the sums holds; default: the radius.
    finer
        How many times closer directions lie than the likelihood needs.
    symmetry
        Of the volumes, with RELION's axes: directions are those of an asymmetric unit, and sums symmetric.
    """

    def __init__(
        self,
        box_size: int,
        pixel_size: float,
        shells: int,
        support: float,
        max_shift: float,
        sums_radius: float | None = None,
        finer: float = 1.0,
        symmetry: str = "C1",
    ) -> None:
        self._sums_radius = shells if sums_radius is None else sums_radius
        self.box_size, self.pixel_size, self.support = box_size, pixel_size, support
        self.mask_radius = min(support + max_shift, 0.5 - MASK_EDGE / 2)
        self.grid: PolarGrid = make_polar_grid(shells, support, self.mask_radius + MASK_EDGE / 2)
        box_length = box_size * pixel_size
        self.shifts = make_translation_grid(max_shift * box_length, 0.4 * box_length / shells)
        self._ramps = compute_shift(-self.shifts, self.grid.samples(box_size, of_images=True), pixel_size)
        self.group = torch.from_numpy(point_group(symmetry)).float()
        directions = 2 * math.pi / len(self.group) / direction_spacing(shells, support, finer) ** 2
        self.blocks = max(1, round(directions / LANES))
        angle = (torch.arange(self.grid.angles) + 0.5) * 2 * math.pi / self.grid.angles
        self._phase = torch.arange(self.grid.modes)[:, None] * angle
        self._matrices: dict[int, Tensor] = {}

    @property
    def poses(self) -> int:
        """How many poses every image is compared with."""
        return len(self.shifts) * self.blocks * LANES * 2 * self.grid.angles

    @cached_property
    def _lattice(self) -> Float[Tensor, "more_or_as_many 3"]:
        """Over a half sphere, before it is turned; of a symmetric volume directions are chosen from it."""
        count = self.blocks * LANES
        if len(self.group) == 1:
            return order_in_patches(spread_directions(count), LANES)
        return spread_directions(round(count * len(self.group) / _OVER_THE_EDGE))

    def directions(self, turn: Float[Tensor, "3 3"] | None = None) -> Float[Tensor, "directions 3"]:
        """Over a half sphere or, of a symmetric volume, its unit; those of a block close together.

        Parameters
        ----------
        turn
            Of the lattice, before directions are chosen from it.
        """
        lattice = self._lattice if turn is None else self._lattice @ turn.T
        if len(self.group) == 1:
            return lattice
        return order_in_patches(unit_directions(lattice, self.group, self.blocks * LANES), LANES)

    def __call__(
        self,
        batch: ParticleBatch,
        volumes: FourierVolume | Sequence[FourierVolume],
        noise_power: Float[Tensor, " shells"],
        draws: int = 0,
        generator: torch.Generator | None = None,
        rival: Float[Tensor, " batch"] | None = None,
        reference: bool = False,
        shares: Sequence[float] | None = None,
        closed: Bool[Tensor, "batch maps shifts"] | None = None,
    ) -> Posterior:
        """Posteriors of images, and what maps learn from poses drawn from them.

        Parameters
        ----------
        batch
            The images, best to `MASK_MARGIN` shells beyond the radius; what is further out is not read.
        volumes
            What they are compared with: one map, or several.
        noise_power
            ``E|noise|²`` per shell.
        draws
            Poses drawn for each image; 0 for the likelihood alone.
        generator
            Turns the grid, and places the draws; without one the grid is as it is.
        rival
            Log-likelihood gain of what else each image may be, with its prior odds; by default nothing else.
        reference
            Work in plain torch instead of the kernel, which it defines; for tests.
        shares
            How many of the particles show each map; sum to 1. By default all maps are as likely.
        closed
            Maps, moved by which shifts, an image is known not to show, which takes no time then; never all of
            them. By default none.
        """
        batch = self.within_reach(batch)
        rotation = self.rotations(None if generator is None else random_rotations(1, generator)[0])
        offset = torch.rand(len(batch), generator=generator) if generator else torch.full((len(batch),), 0.5)
        # As many times as likely as all poses together.
        odds_against = torch.full((len(batch),), -math.inf) if rival is None else rival + math.log(self.poses)
        step = _ExpectationStep(Comparison(self, volumes, noise_power, rotation, shares), draws)
        run = step.run_reference if reference else step.run_kernel
        chunks = [slice(i, i + _CHUNK) for i in range(0, len(batch), _CHUNK)]
        if closed is None:
            closed = torch.zeros(len(batch), step.comparison.maps, len(self.shifts), dtype=torch.bool)
        parts = [run(batch[chunk], offset[chunk], odds_against[chunk], closed[chunk]) for chunk in chunks]
        gain, effective, where = (torch.cat(part) for part in zip(*parts, strict=True))
        presence = (gain - odds_against).sigmoid()
        gain = gain - math.log(self.poses)
        if draws == 0:
            return Posterior(gain, effective, presence, where)
        total, weight = (part.unflatten(0, (-1, len(rotation))) for part in (step.total, step.weight))
        sums = tuple(self._insert(t, w, rotation, noise_power) for t, w in zip(total, weight, strict=True))
        drawn = weight.sum((1, 2))
        # Where nothing is present the maps are alike.
        found_shares = tuple(((drawn + 1e-20) / (drawn + 1e-20).sum()).tolist())
        power = step.residual_power(batch, presence)
        return Posterior(gain, effective, presence, where, sums, found_shares, power)

    def within_reach(self, batch: ParticleBatch) -> ParticleBatch:
        """Of the images, what is compared."""
        return batch.prefix(self.grid.shells + MASK_MARGIN + 0.01)

    def moved_rings(
        self, batch: ParticleBatch, noise_power: Float[Tensor, " any_shells"]
    ) -> Float[Tensor, "batch shifts shells angles"]:
        """Rings of masked ``CTF · image`` moved by each shift, times what a sample counts for, over the noise."""
        if len(batch.disk) not in self._matrices:
            self._matrices[len(batch.disk)] = _polar_matrix(self.grid, batch.disk, self.mask_radius)
        matrix = self._matrices[len(batch.disk)]
        image = batch.images * batch.ctf
        rings = torch.view_as_complex((torch.cat((image.real, image.imag), 1) @ matrix).unflatten(1, (-1, 2)))
        scale = self.grid.area / noise_power[1 : self.grid.shells + 1]
        rings = (rings * scale.repeat_interleave(self.grid.angles // 2))[:, None]
        # Re + Im of the product of each sample and its ramp, and Re - Im, which its conjugate has.
        total, difference = self._ramps.real + self._ramps.imag, self._ramps.real - self._ramps.imag
        near = torch.addcmul(rings.real * total, rings.imag, difference)
        far = torch.addcmul(rings.real * difference, rings.imag, total, value=-1)
        return torch.cat([half.unflatten(-1, (self.grid.shells, -1)) for half in (near, far)], -1)

    def cosines(self) -> tuple[Float[Tensor, "modes quarter"], Float[Tensor, "modes quarter"]]:
        """Of mode times in-plane angle, over the first quarter of the angles."""
        quarter = self._phase[:, : self.grid.angles // 4]
        return quarter.cos().contiguous(), quarter.sin().contiguous()

    def turns(self) -> Complex[Tensor, "modes angles"]:
        """``exp(i m ψ)``."""
        return torch.polar(torch.ones_like(self._phase), self._phase)

    def rotations(self, turn: Float[Tensor, "3 3"] | None = None) -> Float[Tensor, "directions 3 3"]:
        """To every direction; ``turn`` as of `directions`."""
        if len(self.group) == 1:
            rotation = rotations_to(self._lattice)
            return rotation if turn is None else turn @ rotation
        return rotations_to(self.directions(turn))

    def _insert(self, total: Tensor, weight: Tensor, rotation: Tensor, noise_power: Tensor) -> VolumeAccumulator:
        """The sums of each direction as one slice each, which a symmetric volume repeats."""
        grid = self.grid
        scale = grid.area / noise_power[1 : grid.shells + 1]
        mass = (weight * scale).repeat_interleave(grid.angles // 2, 1).clamp(min=1e-20).sqrt()
        disk = grid.samples(self.box_size, of_images=False)
        slices = ParticleBatch(grid.from_rings(total) / mass, mass, disk, self.pixel_size)
        inserter = Inserter(self.box_size, self._sums_radius + 2, PADDING)
        ones = torch.ones(grid.shells + 1)
        every = (self.group[:, None] @ rotation).flatten(0, 1)
        image_of = torch.arange(len(rotation)).repeat(len(self.group))
        inserter.add(slices, every, torch.zeros(len(every), 2), ones, image_of)
        return inserter.result()


_Six = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Comparison:
    """Slices of one map or of several in every direction, ready for images to be compared with.

    Parameters
    ----------
    search
        The grid.
    volumes
        The maps; directions of the second follow those of the first.
    noise_power
        ``E|noise|²`` per shell.
    rotation
        To the directions.
    shares
        How likely each map is; by default all are alike.
    """

    def __init__(
        self,
        search: PosteriorSearch,
        volumes: FourierVolume | Sequence[FourierVolume],
        noise_power: Float[Tensor, " any_shells"],
        rotation: Float[Tensor, "directions 3 3"],
        shares: Sequence[float] | None = None,
    ) -> None:
        grid = search.grid
        self.search, self.noise_power = search, noise_power
        volumes = (volumes,) if isinstance(volumes, FourierVolume) else volumes
        self.maps, self.blocks = len(volumes), search.blocks * len(volumes)
        points = grid.samples(search.box_size, of_images=False)
        self.slices = grid.to_rings(torch.cat([slice_quickly(one.to("cpu"), rotation, points) for one in volumes]))
        share = torch.full((len(volumes),), 1 / len(volumes)) if shares is None else torch.tensor(shares)
        self._log_share = share.clamp(min=1e-20).log().repeat_interleave(len(rotation))
        self.spectrum = grid.spectrum(self.slices, of_images=False)
        self.ring_power = (self.slices**2).sum(2) * grid.area

    def prepare(self, batch: ParticleBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Moved rings, their weighted spectra, CTF² per shell, and what scores of every direction are less by."""
        grid = self.search.grid
        rings = self.search.moved_rings(batch, self.noise_power)
        spectrum = grid.spectrum(rings, of_images=True).mul_(2 * grid.correlation_weight())
        ctf_power = mean_per_shell(batch.ctf**2, batch.disk.shell)[:, 1 : grid.shells + 1]
        power = (ctf_power / self.noise_power[1 : grid.shells + 1]) @ self.ring_power.T - self._log_share
        return rings, spectrum, ctf_power, power

    @cached_property
    def _lanes(self) -> np.ndarray:
        slices = torch.view_as_real(self.spectrum).unflatten(0, (self.blocks, LANES))
        return slices.permute(0, 2, 3, 1).contiguous().numpy()

    def kernel_arguments(self, spectrum: Tensor, power: Tensor) -> _Six:
        """Images, slices, their power, and the turns, as the kernels take them."""
        cosine, sine = self.search.cosines()
        return (
            torch.view_as_real(spectrum).contiguous().numpy(), self._lanes,
            power.unflatten(1, (self.blocks, LANES)).contiguous().numpy(),
            self.search.grid.first_term.numpy(), cosine.numpy(), sine.numpy(),
        )  # fmt: skip

    def scores(
        self, spectrum: Complex[Tensor, "shifts terms"], power: Float[Tensor, " directions"]
    ) -> Float[Tensor, "shifts 2 angles directions"]:
        """Log-likelihood gains of every pose of an image: of each direction and of its mirror image."""
        grid, turns = self.search.grid, self.search.turns()
        first = grid.first_term.tolist()
        product = []
        for begin, end in pairwise(first):
            image, slices = spectrum[:, begin:end], self.spectrum[:, begin:end].T
            product.append(torch.stack((image @ slices.conj(), image @ slices), 1))
        return torch.einsum("mj,mtsd->tsjd", turns, torch.stack(product)).real - power


class _ExpectationStep:
    """The sums of one call, chunk by chunk."""

    def __init__(self, comparison: Comparison, draws: int) -> None:
        self.comparison, self.search, self.draws = comparison, comparison.search, draws
        grid = self.search.grid
        threads = max(1, torch.get_num_threads())
        count = len(comparison.slices)
        self._totals = np.zeros((threads, count, grid.shells, grid.angles), np.float32)
        self._weights = np.zeros((threads, count, grid.shells), np.float32)
        self._scratch: list[np.ndarray] = []

    @property
    def total(self) -> Float[Tensor, "directions shells angles"]:
        """Σ of drawn rings over images, of each direction."""
        return torch.from_numpy(self._totals.sum(0))

    @property
    def weight(self) -> Float[Tensor, "directions shells"]:
        """Σ CTF² of each direction."""
        return torch.from_numpy(self._weights.sum(0))

    def run_kernel(
        self, batch: ParticleBatch, offset: Tensor, against: Tensor, closed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of some images, added to the sums: log Σ exp(score), effective numbers of poses, and where these are."""
        search, grid = self.search, self.search.grid
        rings, spectrum, ctf_power, power = self.comparison.prepare(batch)
        images, slices, powers, first_term, cosine, sine = self.comparison.kernel_arguments(spectrum, power)
        gain, effective = np.empty((2, len(batch)), np.float32)
        where = np.empty(closed.shape, np.float32)
        if not self._scratch:
            shape = (len(search.shifts) * self.comparison.blocks + 1, 2, grid.angles, LANES)
            self._scratch = [np.empty(shape, np.float32) for _ in self._totals]

        def work(start: int, stop: int, thread: int) -> None:
            posterior_kernel(
                images, rings.numpy(), ctf_power.contiguous().numpy(), slices, powers, closed.numpy(),
                first_term, cosine, sine, self.draws, offset.numpy(), against.numpy(),
                self._scratch[thread], self._totals[thread], self._weights[thread], gain, effective, where,
                start, stop,
            )  # fmt: skip

        run_in_threads(work, len(batch), len(self._totals))
        return torch.from_numpy(gain), torch.from_numpy(effective), torch.from_numpy(where)

    def run_reference(
        self, batch: ParticleBatch, offset: Tensor, against: Tensor, closed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same in plain torch, image by image."""
        rings, spectrum, ctf_power, power = self.comparison.prepare(batch)
        gains, numbers, masses = [], [], []
        for i in range(len(batch)):
            score = self.comparison.scores(spectrum[i], power[i])
            directions = score.shape[-1] // self.comparison.maps
            score = score.masked_fill(closed[i].T.repeat_interleave(directions, 1)[:, None, None], -1e30)
            flat = score.flatten().double()
            best = flat.max()
            mass = (flat - best).exp()
            gains.append((best + mass.sum().log()).float())
            numbers.append((mass.sum() ** 2 / (mass**2).sum()).float())
            masses.append(mass.view(len(score), -1, self.comparison.maps, directions).sum((1, 3)).T)
            if self.draws:
                places = (torch.arange(self.draws) + offset[i]) / self.draws * mass.sum()
                drawn = torch.searchsorted(mass.cumsum(0), places.double()).clamp(max=len(mass) - 1)
                share = float((gains[-1] - against[i]).sigmoid()) / self.draws
                self._add_draws(torch.unravel_index(drawn, score.shape), rings[i], ctf_power[i], share)
        where = torch.stack(masses).float()
        where = where / where.sum((1, 2), keepdim=True)
        return torch.stack(gains).cpu(), torch.stack(numbers).cpu(), where.cpu()

    def _add_draws(self, place: tuple[Tensor, ...], rings: Tensor, ctf_power: Tensor, share: float) -> None:
        shift, side, angle, direction = place
        x = torch.arange(self.search.grid.angles)
        index = torch.where(side[:, None] == 0, x + angle[:, None], angle[:, None] - x) % len(x)
        turned = rings[shift].gather(2, index[:, None].expand(-1, rings.shape[1], -1)) * share
        torch.from_numpy(self._totals[0]).index_add_(0, direction, turned)
        torch.from_numpy(self._weights[0]).index_add_(
            0, direction, (ctf_power * share).expand(len(direction), -1).contiguous()
        )

    def residual_power(self, batch: ParticleBatch, presence: Float[Tensor, " batch"]) -> Float[Tensor, " shells"]:
        """Mean over coefficients of ``|image - CTF · slice|²``, over images by their presence."""
        grid = self.search.grid
        comparison = self.comparison
        noise = comparison.noise_power[1 : grid.shells + 1]
        explained = 2 * noise * (self.total * comparison.slices).sum((0, 2))
        explained = explained - (self.weight * comparison.ring_power).sum(0)
        # A half-plane ring holds π k coefficients.
        count = presence.sum().clamp(min=1e-6)
        explained = explained / (count * math.pi * grid.shell)
        power = presence @ (batch.images.real**2 + batch.images.imag**2) / count
        power = batch.disk.mean_per_shell(power)
        return torch.cat((torch.zeros(1), power[1 : grid.shells + 1] - explained))


def _polar_matrix(
    grid: PolarGrid, disk: FourierDisk, mask_radius: float
) -> Float[Tensor, "coefficients samples_and_parts"]:
    """From coefficients (real parts, then imaginary ones) to ring samples (real and imaginary parts in turn).

    The coefficients go to real space, in the smallest box that holds them, where they are masked, and from there to
    the rings by the Fourier sum itself, so that nothing is interpolated.
    """
    small = disk.in_smallest_box()
    box = small.box_size
    unit = torch.eye(len(disk), dtype=torch.complex64)
    images = disk_to_images(torch.cat((unit, 1j * unit)), small)
    images = images * make_soft_disc(box, (mask_radius + MASK_EDGE / 2) * box, MASK_EDGE * box)
    axis = (torch.arange(box) - box // 2) / box
    samples = grid.samples(box, of_images=True)
    angle = samples.kx[:, None, None] * axis + samples.ky[:, None, None] * axis[:, None]
    waves = torch.polar(torch.ones_like(angle), -2 * math.pi * angle).flatten(1)
    return torch.view_as_real(images.flatten(1).to(waves.dtype) @ waves.T / box).flatten(1)
