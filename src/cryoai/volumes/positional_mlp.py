"""A ReLU network on Fourier features of the frequency, as in cryoDRGN2."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from cryoai.parts import PartSettings
from cryoai.precision import full_precision
from cryoai.volumes.abstract import VOLUMES
from cryoai.volumes.layers import make_linear
from cryoai.volumes.network import AbstractNetworkVolume, NetworkSettings


class PositionalMLPSettings(NetworkSettings):
    """What a `PositionalMLP` is told."""

    feature_sigma: float = Field(default=0.5, gt=0)
    """Spread of the features' frequencies as cryoDRGN counts it: σ/2 radians per shell along each axis."""


@VOLUMES.register("positional_mlp")
class PositionalMLP(AbstractNetworkVolume):
    """Sines and cosines along random directions, then residual ReLU layers (cryoDRGN2's decoder).

    Parameters
    ----------
    box_size, radius, scale
        As in `AbstractVolume`.
    settings
        There are as many features as neurons; a width of 256 gives 329 thousand parameters.
    generator
        Draws the features and the initial weights.
    """

    Settings: ClassVar[type[PartSettings]] = PositionalMLPSettings
    frequencies: Tensor

    def __init__(
        self,
        box_size: int,
        radius: float,
        settings: PositionalMLPSettings,
        *,
        scale: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(box_size, radius, scale)
        width = settings.width
        count = width // 2
        spread = settings.feature_sigma / 2 * (box_size / 2)
        self.register_buffer("frequencies", spread * torch.randn(count, 3, generator=generator))
        self.first = make_linear(2 * count, width, 1 / math.sqrt(2 * count), generator)
        bound = 1 / math.sqrt(width)
        self.hidden = nn.ModuleList(make_linear(width, width, bound, generator) for _ in range(4))
        self.last = make_linear(width, 2, bound, generator)

    def evaluate(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m 2"]:
        """Real and imaginary parts, in units of ``scale``, at points from -1 to 1."""
        with full_precision(points.device):
            angle = points @ self.frequencies.T
            features = torch.cat((torch.sin(angle), torch.cos(angle)), 1)
        features = torch.relu(self.first(features))
        for layer in self.hidden:
            features = torch.relu(features + layer(features))
        return self.last(features).to(points.dtype)
