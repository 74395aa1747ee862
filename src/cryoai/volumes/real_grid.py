"""An explicit grid of density, sliced through an FFT (cryoPoseNet's volume)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoai.parts import PartSettings
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.volumes.abstract import VOLUMES
from cryoai.volumes.grid import AbstractGridVolume, make_random_map


@VOLUMES.register("real_grid")
class RealGrid(AbstractGridVolume):
    """A map whose voxels are the parameters; every call of `slice` transforms it once.

    Parameters
    ----------
    box_size, radius, scale
        As in `AbstractVolume`; the parameter ``density`` is in units of ``scale``.
    settings
        It has none.
    generator
        Draws the initial map.
    """

    def __init__(
        self,
        box_size: int,
        radius: float,
        settings: PartSettings,
        *,
        scale: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(box_size, radius, scale)
        self.density = nn.Parameter(make_random_map(box_size, self.radius, generator))

    @torch.no_grad()
    def set_map(self, density: Float[Tensor, "box box box"]) -> None:
        """Make the volume that of a map."""
        self.density.copy_(density / self.scale)

    def to_differentiable_volume(self) -> FourierVolume:
        """The padded transform of the density, with its gradient."""
        return volume_from_map(self.density * self.scale, self.radius)

    @torch.no_grad()
    def to_fourier_volume(self, radius: float, padding: int = 2) -> FourierVolume:
        """The padded transform of the density; what it holds beyond the volume's radius was never trained."""
        return volume_from_map(self.density * self.scale, radius, padding)

    @torch.no_grad()
    def to_map(self) -> Float[Tensor, "box box box"]:
        """The density as it is; what it holds beyond the volume's radius was never trained."""
        return self.density * self.scale
