"""Make a volume by name, and networks of equal size."""

from __future__ import annotations

import math
from typing import Any

import torch

from cryoai.geometry.fourier import full_radius
from cryoai.volumes.abstract import VOLUMES, AbstractVolume, VolumeKind


def make_volume(
    kind: VolumeKind,
    box_size: int,
    radius: float | None = None,
    *,
    width: int | None = None,
    scale: float = 1.0,
    seed: int | torch.Generator = 0,
    **options: Any,
) -> AbstractVolume:
    """A volume with random parameters.

    Parameters
    ----------
    kind
        Which, of `VOLUMES`.
    box_size
        px of the map.
    radius
        Shells within which it is defined; default, all of the largest usable one.
    width
        Neurons of a network's layers; grids have none, whatever is asked.
    scale
        Typical magnitude of the data's Fourier coefficients.
    seed
        Of the initial parameters, or a CPU generator to draw them from; the global one is left alone.
    options
        Other settings of this volume.

    Raises
    ------
    ValueError
        The volume has no such option, or not such a value of it.
    """
    settings = VOLUMES.read_settings(VOLUMES.check(kind), {"width": width}, options)
    radius = full_radius(box_size) if radius is None else radius
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    return VOLUMES.make(kind, box_size, radius, settings, scale=scale, generator=generator)


def count_parameters(volume: torch.nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in volume.parameters())


def width_for_budget(kind: VolumeKind, parameters: int = 332_000) -> int:
    """The width at which a network comes closest to a number of parameters (default: FourierNet's at 256).

    At width 256 the three are within 1 % of each other already.
    """
    # Each has five square layers, and what else it has is worth less than three more neurons.
    guess = max(4, math.isqrt(parameters // 5))
    candidates = range(guess - 2, guess + 2)
    return min(candidates, key=lambda width: abs(count_parameters(make_volume(kind, 16, width=width)) - parameters))
