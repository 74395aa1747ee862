"""Images that show no particle: noise alone, and what is not the molecule."""

from __future__ import annotations

import enum
import math

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk

_MOST_BLOBS = 3
_BLOB_SIGMA = (0.05, 0.20)
_FARTHEST = 0.3


class Shows(enum.IntEnum):
    """What a simulated image shows."""

    PARTICLE = 0
    NOTHING = 1
    BLOBS = 2


def draw_contents(count: int, junk: float, rng: np.random.Generator) -> Int[np.ndarray, " count"]:
    """What each of ``count`` images shows (`Shows`): a share ``junk`` no particle, half of it nothing at all."""
    place = rng.uniform(size=count)
    return np.select([place < junk / 2, place < junk], [Shows.NOTHING, Shows.BLOBS], Shows.PARTICLE)


def make_blobs(
    chosen: Bool[np.ndarray, " count"], disk: FourierDisk, rng: np.random.Generator
) -> Complex[Tensor, "chosen n"]:
    """Coefficients of images of one to three Gaussian blobs each, on any scale; no CTF.

    σ is 5 to 20 % of the box, centres lie within 30 % of the box from its middle along x and along y, and the
    masses differ by a factor of up to 3.

    Parameters
    ----------
    chosen
        Which images are wanted. All are drawn, so that none depends on which others are wanted.
    disk
        The coefficients wanted.
    rng
        Draws the blobs.
    """
    shape = (len(chosen), _MOST_BLOBS)
    number = rng.integers(1, _MOST_BLOBS + 1, len(chosen))
    sigma = rng.uniform(*_BLOB_SIGMA, shape)
    x, y = rng.uniform(-_FARTHEST, _FARTHEST, (2, *shape))
    mass = rng.uniform(0.5, 1.5, shape) * (np.arange(_MOST_BLOBS) < number[:, None])
    image = torch.zeros(int(chosen.sum()), len(disk), dtype=torch.complex64)
    for blob in range(_MOST_BLOBS):
        s, bx, by, m = (_column(values[chosen, blob]) for values in (sigma, x, y, mass))
        # Lengths are in boxes and frequencies in shells: their products need no box.
        phase = -2 * math.pi * (disk.kx * bx + disk.ky * by)
        image += torch.polar(m * torch.exp(-2 * (math.pi * s * disk.radius) ** 2), phase)
    return image


def _column(values: Float[np.ndarray, " n"]) -> Float[Tensor, "n 1"]:
    return torch.from_numpy(values.astype(np.float32))[:, None]
