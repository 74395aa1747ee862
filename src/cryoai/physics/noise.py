"""Noise: white, and with a power per shell."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk


def make_white_noise(
    shape: tuple[int, ...], standard_deviation: float, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Independent Gaussian pixels."""
    return standard_deviation * torch.randn(shape, generator=generator)


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
