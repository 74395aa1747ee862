"""One SIREN for the volume's spectrum: FourierNet without its envelope."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.volumes.abstract import VOLUMES
from cryoai.volumes.layers import SineStack
from cryoai.volumes.network import AbstractNetworkVolume, NetworkSettings


@VOLUMES.register("siren")
class Siren(AbstractNetworkVolume):
    """A SIREN with as many hidden layers as both branches of `FourierNet` together.

    Parameters
    ----------
    box_size, radius, scale
        As in `AbstractVolume`.
    settings
        A width of 256 gives 330 thousand parameters.
    generator
        Draws the initial weights.
    """

    def __init__(
        self,
        box_size: int,
        radius: float,
        settings: NetworkSettings,
        *,
        scale: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(box_size, radius, scale)
        self.network = SineStack(5, settings.width, 30.0, generator)

    def evaluate(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m 2"]:
        """Real and imaginary parts, in units of ``scale``, at points from -1 to 1."""
        return self.network(points)
