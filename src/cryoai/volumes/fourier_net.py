"""FourierNet: a SIREN for the phase of the volume's spectrum times the exponential of one for its envelope."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.volumes.abstract import VOLUMES
from cryoai.volumes.layers import SineStack
from cryoai.volumes.network import AbstractNetworkVolume, NetworkSettings


@VOLUMES.register("fourier_net")
class FourierNet(AbstractNetworkVolume):
    """The neural volume of cryoAI (Levy et al. 2022, section 3.4): ``exp(envelope(k)) ⊙ phase(k)``.

    The exponential spans the orders of magnitude by which a spectrum decays. It starts near one.

    Parameters
    ----------
    box_size, radius, scale
        As in `AbstractVolume`.
    settings
        A width of 256 gives 332 thousand parameters.
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
        self.phase = SineStack(3, settings.width, 40.0, generator)
        self.envelope = SineStack(2, settings.width, 30.0, generator)

    def evaluate(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m 2"]:
        """Real and imaginary parts, in units of ``scale``, at points from -1 to 1."""
        return torch.exp(self.envelope(points)) * self.phase(points)
