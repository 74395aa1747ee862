"""Moving an image by a phase ramp."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk


def compute_shift(
    translation: Float[Tensor, "*batch 2"], disk: FourierDisk, pixel_size: float
) -> Complex[Tensor, "*batch n"]:
    """Phase ramp that moves an image by ``translation``: ``exp(-2πi k·t)`` (Fourier shift theorem).

    Parameters
    ----------
    translation
        Å, xy; positive moves density towards +x, +y (RELION's origin is the negative).
    disk
        The image's Fourier disk.
    pixel_size
        Å.
    """
    scale = -2 * math.pi / (disk.box_size * pixel_size)
    phase = scale * (translation[..., :1] * disk.kx + translation[..., 1:] * disk.ky)
    return torch.polar(torch.ones_like(phase), phase)
