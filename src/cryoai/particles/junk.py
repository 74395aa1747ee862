"""Images that show no particle, or not one alone: noise, blobs, pairs of particles, edges of ice or carbon."""

from __future__ import annotations

import enum
import math
from dataclasses import astuple, dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk

_MOST_BLOBS = 3
_BLOB_SIGMA = (0.05, 0.20)
_FARTHEST = 0.3
# Lengths of edges, in boxes, and the variance of a pixel, in those of particles.
_EDGE_WIDTH = (0.02, 0.10)
_EDGE_VARIANCE = (2.0, 20.0)
_PAIR_DISTANCE = (0.35, 0.50)


class Shows(enum.IntEnum):
    """What a simulated image shows."""

    PARTICLE = 0
    NOISE = 1
    BLOBS = 2
    PAIR = 3
    EDGE = 4


@dataclass(frozen=True)
class JunkShares:
    """Which shares of the images show what is not a particle.

    Attributes
    ----------
    noise
        Nothing.
    blobs
        One to three Gaussian blobs (`make_blobs`).
    pairs
        Two particles in one box (`draw_pairs`).
    edges
        The edge of ice or carbon (`make_edges`).
    """

    noise: float = 0.0
    blobs: float = 0.0
    pairs: float = 0.0
    edges: float = 0.0

    @property
    def total(self) -> float:
        """Share of the images."""
        return math.fsum(astuple(self))

    @classmethod
    def in_halves(cls, share: float) -> JunkShares:
        """A share of the images, half of them noise and half blobs."""
        return cls(share / 2, share / 2)


NO_JUNK = JunkShares()


def draw_contents(count: int, junk: JunkShares, rng: np.random.Generator) -> Int[np.ndarray, " count"]:
    """What each of ``count`` images shows (`Shows`)."""
    kinds = np.array([Shows.NOISE, Shows.BLOBS, Shows.PAIR, Shows.EDGE, Shows.PARTICLE])
    return kinds[np.searchsorted(np.cumsum(astuple(junk)), rng.uniform(size=count), side="right")]


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


def make_edges(
    chosen: Bool[np.ndarray, " count"], box_size: int, rng: np.random.Generator
) -> Float[Tensor, "chosen box box"]:
    """Images of one straight, soft edge each, between two grey values: strong, and smooth on both sides.

    It runs in any direction, within 30 % of the box from its middle, over 2 to 10 % of the box (logistic), and
    has 2 to 20 times the variance of unit images. It is contrast by thickness, which the CTF leaves alone.

    Parameters
    ----------
    chosen
        Which images are wanted. All are drawn, so that none depends on which others are wanted.
    box_size
        px.
    rng
        Draws the edges.
    """
    angle, place = rng.uniform(-math.pi, math.pi, len(chosen)), rng.uniform(-_FARTHEST, _FARTHEST, len(chosen))
    width = rng.uniform(*_EDGE_WIDTH, len(chosen))
    low, high = (math.log(variance) for variance in _EDGE_VARIANCE)
    variance = np.exp(rng.uniform(low, high, len(chosen)))
    angle, place, width, variance = (_column(v[chosen])[..., None] for v in (angle, place, width, variance))
    axis = (torch.arange(box_size) - box_size // 2) / box_size
    distance = torch.cos(angle) * axis + torch.sin(angle) * axis[:, None] - place
    image = torch.sigmoid(distance / width)
    image = image - image.mean((-2, -1), keepdim=True)
    return image * (variance / image.square().mean((-2, -1), keepdim=True)).sqrt()


def draw_pair_offsets(count: int, rng: np.random.Generator) -> Float[np.ndarray, "count 2"]:
    """Box lengths, xy, from the middle of a pair to its first particle; the second lies opposite.

    The two are 35 to 50 % of the box apart, in any direction.
    """
    angle, distance = rng.uniform(-math.pi, math.pi, count), rng.uniform(*_PAIR_DISTANCE, count)
    return (0.5 * distance * np.stack((np.cos(angle), np.sin(angle)))).T.astype(np.float32)


def _column(values: Float[np.ndarray, " n"]) -> Float[Tensor, "n 1"]:
    return torch.from_numpy(values.astype(np.float32))[:, None]
