"""Ab initio: a low-resolution map from nothing, by mini-batch expectation-maximisation.

Each step scores a mini-batch of images against every pose of a freshly turned grid, and inserts the best poses of
each image with their posterior weights. A radius that grows from a few shells lets large features settle first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.rotations import random_rotations
from cryoai.geometry.shells import half_space_radius, mean_per_shell
from cryoai.physics.image_formation import form_images_quickly, residual_power
from cryoai.physics.insertion import Inserter
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume, VolumeAccumulator
from cryoai.poses.search import make_search_grid, search_poses, translation_step
from cryoai.run.config import BootstrapSettings
from cryoai.tensors import ParticleBatch

# Low resolution needs no padding: the particle fills about half the box, so its transform is smooth on this grid.
BOOTSTRAP_PADDING = 1
# Of each image's hypotheses, those below this weight are not worth inserting.
_NEGLIGIBLE_WEIGHT = 1e-3
# Images that the first noise spectrum is measured on, and mini-batches of random poses that make the first map.
_FOR_SPECTRUM, _FIRST_BATCHES = 2000, 4
# Low resolution needs fewer rotations: their spacing may grow as the radius falls, down to this share of them.
_FEWEST_ROTATIONS = 0.25
# The power a map may have beyond what the data support, as a share of the mean weight per shell.
_RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class BootstrapResult:
    """A low-resolution map and how well it explains images it has not seen.

    Attributes
    ----------
    volume
        Inside ``last_radius``.
    noise_power
        ``E|noise|²`` per shell.
    held_out_likelihood
        Mean log-likelihood gain per held-out image over no particle at all, nats.
    seed
        What it started from.
    """

    volume: FourierVolume
    noise_power: Float[Tensor, " shells"]
    held_out_likelihood: float
    seed: int


def run_bootstrap(
    batch: ParticleBatch,
    settings: BootstrapSettings,
    seed: int,
    on_step: Callable[[int], None] = lambda step: None,
    device: torch.device | str = "cpu",
) -> BootstrapResult:
    """One start from random poses.

    Parameters
    ----------
    batch
        The images, whitened or not; their disk must reach ``last_radius``.
    settings
        The schedule, with radii that exist in this box.
    seed
        Of everything random.
    on_step
        Called after each step with its number from 1; for progress.
    device
        Where to search and to insert.
    """
    generator = torch.Generator().manual_seed(seed)
    batch = batch.prefix(settings.last_radius)
    noise_power = estimate_shell_power(batch.images[:_FOR_SPECTRUM], batch.disk).clamp(min=1e-12)
    order = torch.randperm(len(batch), generator=generator)
    total = _insert_random_poses(
        batch[order[: _FIRST_BATCHES * settings.batch_size]], noise_power, generator, device
    )
    next_image = 0
    for step in range(settings.steps):
        if next_image + settings.batch_size > len(batch):
            order, next_image = torch.randperm(len(batch), generator=generator), 0
        rows = order[next_image : next_image + settings.batch_size]
        next_image += settings.batch_size
        progress = min(1.0, step / max(1.0, settings.march * settings.steps))
        radius = settings.first_radius + (settings.last_radius - settings.first_radius) * progress
        volume = regularised_volume(total, radius).to(device)
        new, noise_power = _step(batch[rows], volume, noise_power, radius, settings, generator)
        total = total.scaled(1 - settings.learning_rate) + new.scaled(settings.learning_rate)
        on_step(step + 1)
    volume = regularised_volume(total, settings.last_radius)
    return BootstrapResult(volume, noise_power, 0.0, seed)


def regularised_volume(total: VolumeAccumulator, radius: float) -> FourierVolume:
    """Numerator over weight, with a ridge that follows each shell's mean weight; nothing beyond ``radius`` + 1."""
    distance = half_space_radius(total.weight.shape, total.padding, total.weight.device)
    shell = distance.round().long()
    mean = mean_per_shell(total.weight.flatten(), shell.flatten())
    values = total.numerator / (total.weight + _RIDGE * mean[shell] + 1e-6)[..., None]
    values[distance > radius + 1] = 0
    return FourierVolume(values, total.box_size, total.padding)


def _insert_random_poses(
    batch: ParticleBatch, noise_power: Tensor, generator: torch.Generator, device: torch.device | str
) -> VolumeAccumulator:
    inserter = _make_inserter(batch, device)
    inserter.add(batch, random_rotations(len(batch), generator), torch.zeros(len(batch), 2), noise_power)
    return inserter.result()


def _make_inserter(batch: ParticleBatch, device: torch.device | str) -> Inserter:
    return Inserter(batch.disk.box_size, float(batch.disk.radius[-1]) + 2, BOOTSTRAP_PADDING, device)


def _step(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Tensor,
    radius: float,
    settings: BootstrapSettings,
    generator: torch.Generator,
) -> tuple[VolumeAccumulator, Tensor]:
    """Search a mini-batch, insert its posterior, and update the noise inside the radius."""
    inside = batch.prefix(radius)
    grid = make_search_grid(
        _rotations_at(radius, settings),
        settings.max_shift_box_lengths * batch.box_length,
        translation_step(radius, batch.box_length),
        generator,
    )
    found = search_poses(inside, volume, noise_power, grid, settings.keep)
    weight = found.posterior()
    kept = weight > _NEGLIGIBLE_WEIGHT
    image_of = torch.arange(len(batch))[:, None].expand_as(weight)[kept]
    inserter = _make_inserter(batch, volume.device)
    inserter.add(batch, found.rotation[kept], found.translation[kept], noise_power, image_of, weight[kept])
    best = found.rotation[:, 0], found.translation[:, 0]
    model = form_images_quickly(volume, *best, inside.ctf, inside.disk, inside.pixel_size)
    measured = residual_power(inside, model)
    noise_power, shells = noise_power.clone(), slice(1, len(measured))
    noise_power[shells] += settings.learning_rate * (measured[shells] - noise_power[shells])
    return inserter.result(), noise_power


def _rotations_at(radius: float, settings: BootstrapSettings) -> int:
    share = (radius / settings.last_radius) ** 3
    return int(settings.rotations * max(share, _FEWEST_ROTATIONS))
