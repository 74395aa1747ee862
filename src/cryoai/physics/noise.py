"""Noise: white, coloured, and with a power per shell."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, disk_to_images, filter_images, images_to_disk, plane_radius
from cryoai.geometry.soft_masks import make_soft_disc

_COLOUR_FREQUENCY = 1 / 50
"""1/Å, where the surplus of coloured noise has fallen to a half."""


def make_white_noise(
    shape: tuple[int, ...], standard_deviation: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Independent Gaussian pixels."""
    return standard_deviation * torch.randn(shape, generator=generator)


def make_coloured_noise(
    count: int,
    box_size: int,
    colour: float,
    pixel_size: float,
    standard_deviation: float,
    generator: torch.Generator,
) -> Float[Tensor, "count box box"]:
    """Gaussian noise with more power at low frequencies: that of ice, and of what lies above and below.

    The power at frequency s is proportional to ``1 + colour / (1 + (s / s₀)²)`` with s₀ = 1/50 Å.

    Parameters
    ----------
    count, box_size
        How many images, and their edge, px.
    colour
        Surplus at the zero frequency, in units of the white part; 0 gives white noise.
    pixel_size
        Å.
    standard_deviation
        Of a pixel, in expectation.
    generator
        Draws the white noise that is filtered.
    """
    white = make_white_noise((count, box_size, box_size), standard_deviation, generator)
    frequency = plane_radius(box_size) / (box_size * pixel_size)
    power = 1 + colour / (1 + (frequency / _COLOUR_FREQUENCY) ** 2)
    # White noise has the same power in every coefficient, and half of the plane stands for its other half.
    standing_for = torch.full((box_size // 2 + 1,), 2.0)
    standing_for[0] = 1
    if box_size % 2 == 0:
        standing_for[-1] = 1
    mean_power = (power * standing_for).sum() / box_size**2
    return filter_images(white, (power / mean_power).sqrt())


def make_shell_noise(
    count: int, power: Float[Tensor, " shells"], disk: FourierDisk, generator: torch.Generator
) -> Complex[Tensor, "count n"]:
    """Gaussian noise with a given power ``E|n(k)|²`` on each shell of a disk."""
    noise = torch.randn(count, len(disk), 2, generator=generator) * (power[disk.shell, None] / 2).sqrt()
    return torch.view_as_complex(noise)


def estimate_shell_power(coefficients: Complex[Tensor, "batch n"], disk: FourierDisk) -> Float[Tensor, " shells"]:
    """Mean of ``|c(k)|²`` over the batch and each ring."""
    power = coefficients.real**2 + coefficients.imag**2
    return disk.mean_per_shell(power.mean(0))


def estimate_noise_outside(
    coefficients: Complex[Tensor, "batch n"], disk: FourierDisk, radius: float
) -> Float[Tensor, " shells"]:
    """``E|noise|²`` per shell from what lies outside the particle, where no map need be known.

    Neighbours and ice in the corners count as noise, which errs on the safe side.

    Parameters
    ----------
    coefficients, disk
        Whole images, to the largest shell that the box has.
    radius
        Of the particle, box lengths; at most 0.45, so that the corners remain.
    """
    outside = 1 - make_soft_disc(disk.box_size, (min(radius, 0.45) + 0.06) * disk.box_size, 0.06 * disk.box_size)
    images = disk_to_images(coefficients, disk) * outside
    return estimate_shell_power(images_to_disk(images, disk), disk) / outside.square().mean()
