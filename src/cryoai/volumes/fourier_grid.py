"""An explicit grid of Fourier coefficients."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoai.geometry.fourier import crop_or_pad
from cryoai.parts import PartSettings
from cryoai.physics.slicing import FourierVolume, grid_shape, map_from_volume, volume_from_map
from cryoai.volumes.abstract import VOLUMES
from cryoai.volumes.grid import AbstractGridVolume, make_random_map


class FourierGridSettings(PartSettings):
    """What a `FourierGrid` is told."""

    padding: Literal[1, 2] = 2
    """Grid points per shell."""


@VOLUMES.register("fourier_grid")
class FourierGrid(AbstractGridVolume):
    """Coefficients on the half-space grid of a `FourierVolume`, each a parameter.

    Parameters
    ----------
    box_size, radius, scale
        As in `AbstractVolume`; the parameter ``values`` is in units of ``scale``.
    settings
        How fine the grid is.
    generator
        Draws the initial map.
    """

    Settings: ClassVar[type[PartSettings]] = FourierGridSettings

    def __init__(
        self,
        box_size: int,
        radius: float,
        settings: FourierGridSettings,
        *,
        scale: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(box_size, radius, scale)
        self.padding = settings.padding
        self.values = nn.Parameter(torch.zeros(*grid_shape(self.radius, self.padding), 2))
        self.set_map(scale * make_random_map(box_size, self.radius, generator))

    @torch.no_grad()
    def set_map(self, density: Float[Tensor, "box box box"]) -> None:
        """Make the volume that of a map."""
        self.values.copy_(volume_from_map(density, self.radius, self.padding).values / self.scale)

    def to_differentiable_volume(self) -> FourierVolume:
        """The grid, Hermitian, with its gradient."""
        return FourierVolume(_make_hermitian(self.values) * self.scale, self.box_size, self.padding)

    @torch.no_grad()
    def to_fourier_volume(self, radius: float, padding: int = 2) -> FourierVolume:
        """The grid itself, cropped or padded with zeros; by way of the map if ``padding`` is another."""
        if padding != self.padding:
            return volume_from_map(self.to_map(), radius, padding)
        values = self.to_differentiable_volume().values
        size, _, half = grid_shape(radius, padding)
        values = crop_or_pad(values, size, (0, 1))
        values = F.pad(values, (0, 0, 0, max(0, half - values.shape[2])))[:, :, :half]
        return FourierVolume(values.contiguous(), self.box_size, padding)

    @torch.no_grad()
    def to_map(self) -> Float[Tensor, "box box box"]:
        """The density whose slices the grid holds."""
        return map_from_volume(self.to_differentiable_volume())


def _make_hermitian(values: Float[Tensor, "z y x 2"]) -> Float[Tensor, "z y x 2"]:
    """Average the plane x = 0, which holds both coefficients of each Friedel pair."""
    plane = values[:, :, :1]
    mate = plane.flip(0, 1) * plane.new_tensor([1.0, -1.0])
    return torch.cat(((plane + mate) / 2, values[:, :, 1:]), 2)
