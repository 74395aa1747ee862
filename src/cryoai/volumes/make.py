"""Make a volume by name, and networks of equal size."""

from __future__ import annotations

import math
from typing import Literal

import torch

from cryoai.geometry.fourier import full_radius
from cryoai.volumes.abstract import AbstractVolume
from cryoai.volumes.fourier_grid import FourierGrid
from cryoai.volumes.fourier_net import FourierNet
from cryoai.volumes.positional_mlp import PositionalMLP
from cryoai.volumes.real_grid import RealGrid
from cryoai.volumes.siren import Siren

NetworkKind = Literal["fourier_net", "siren", "positional_mlp"]
VolumeKind = Literal["fourier_net", "siren", "positional_mlp", "fourier_grid", "real_grid"]

_NETWORKS = {"fourier_net": FourierNet, "siren": Siren, "positional_mlp": PositionalMLP}


def make_volume(
    kind: VolumeKind,
    box_size: int,
    radius: float | None = None,
    *,
    width: int = 256,
    scale: float = 1.0,
    padding: int = 2,
    seed: int | torch.Generator = 0,
) -> AbstractVolume:
    """A volume with random parameters.

    Parameters
    ----------
    kind
        Which; the first three are networks.
    box_size
        px of the map.
    radius
        Shells within which it is defined; default, all of the largest usable one.
    width
        Neurons of a network's layers; grids have none.
    scale
        Typical magnitude of the data's Fourier coefficients.
    padding
        Grid points per shell of a ``fourier_grid``, 1 or 2.
    seed
        Of the initial parameters, or a CPU generator to draw them from; the global one is left alone.
    """
    radius = full_radius(box_size) if radius is None else radius
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    if kind == "fourier_grid":
        return FourierGrid(box_size, radius, padding=padding, scale=scale, generator=generator)
    if kind == "real_grid":
        return RealGrid(box_size, radius, scale=scale, generator=generator)
    return _NETWORKS[kind](box_size, radius, width=width, scale=scale, generator=generator)


def count_parameters(volume: torch.nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in volume.parameters())


def width_for_budget(kind: NetworkKind, parameters: int = 332_000) -> int:
    """The width at which a network comes closest to a number of parameters (default: FourierNet's at 256).

    At width 256 the three are within 1 % of each other already.
    """
    # Each has five square layers, and what else it has is worth less than three more neurons.
    guess = max(4, math.isqrt(parameters // 5))
    candidates = range(guess - 2, guess + 2)
    return min(candidates, key=lambda width: abs(count_parameters(make_volume(kind, 16, width=width)) - parameters))
