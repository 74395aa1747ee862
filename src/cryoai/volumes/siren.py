"""One SIREN for the volume's spectrum: FourierNet without its envelope."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.volumes.layers import SineStack
from cryoai.volumes.network import AbstractNetworkVolume


class Siren(AbstractNetworkVolume):
    """A SIREN with as many hidden layers as both branches of `FourierNet` together.

    Parameters
    ----------
    box_size, radius, scale
        As in `AbstractVolume`.
    width
        Neurons of each layer; 256 gives 330 thousand parameters.
    generator
        Draws the initial weights.
    """

    def __init__(
        self, box_size: int, radius: float, *, width: int = 256, scale: float = 1.0, generator: torch.Generator
    ) -> None:
        super().__init__(box_size, radius, scale)
        self.network = SineStack(5, width, 30.0, generator)

    def evaluate(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m 2"]:
        """Real and imaginary parts, in units of ``scale``, at points from -1 to 1."""
        return self.network(points)
