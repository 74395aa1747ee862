"""A quasi-uniform grid of rotations of any size."""

from __future__ import annotations

import math

import roma
import torch
from jaxtyping import Float
from torch import Tensor

# Alexa, "Super-Fibonacci spirals: fast, low-discrepancy sampling of SO(3)", CVPR 2022:
# the positive root of psi^4 = psi + 4, and phi = sqrt(2).
_PSI = 1.533751168755204288118041


def make_so3_grid(count: int) -> Float[Tensor, "n 3 3"]:
    """``count`` rotations spread evenly over SO(3) by super-Fibonacci spirals."""
    s = torch.arange(count, dtype=torch.float64) + 0.5
    height = s / count
    r, big_r = height.sqrt(), (1 - height).sqrt()
    alpha, beta = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / _PSI
    xyzw = torch.stack((r * alpha.sin(), r * alpha.cos(), big_r * beta.sin(), big_r * beta.cos()), -1)
    return roma.unitquat_to_rotmat(xyzw).float()


def so3_grid_spacing(count: int) -> float:
    """Typical angle between neighbours in a grid of ``count`` rotations, radians.

    The edge of a cube with the volume (8π² in rotation-vector units) that one rotation has to itself.
    """
    return (8 * math.pi**2 / count) ** (1 / 3)
