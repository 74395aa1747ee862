"""What neural volumes share: points in the half space, Hermitian symmetry, evaluation on grids."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Complex, Float, Int
from pydantic import Field
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.geometry.shells import half_space_radius
from cryoai.parts import PartSettings
from cryoai.physics.slicing import FourierVolume, grid_shape, grid_to_real
from cryoai.precision import full_precision
from cryoai.volumes.abstract import AbstractVolume

# Grid points evaluated at once: the hidden layers of more do not fit a CPU's cache.
_CHUNK = 8_192


class NetworkSettings(PartSettings):
    """What every network is told."""

    width: int = Field(default=256, ge=1)
    """Neurons of each layer."""


class AbstractNetworkVolume(AbstractVolume):
    """A network from the frequency (kx, ky, kz) to the real and imaginary part of the coefficient.

    Hermitian by construction (Levy et al. 2022, eq. 7): the network is asked in one half space only, and the
    other holds its conjugate. Under autocast the hidden layers are in the lower precision, their products and what
    they hand on; coordinates and the first layer are not. PyTorch takes a sine in float32 whatever its input, and
    rounds the result.
    """

    Settings: ClassVar[type[PartSettings]] = NetworkSettings
    learning_rate: ClassVar[float] = 1e-3

    @abstractmethod
    def evaluate(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m 2"]:
        """Real and imaginary parts, in units of ``scale``.

        Parameters
        ----------
        points
            xyz, shells over ``box_size / 2``: from -1 to 1; in the half space x ≥ 0.
        """

    def slice(self, rotation: Float[Tensor, "batch 3 3"], disk: FourierDisk) -> Complex[Tensor, "batch n"]:
        """Central slices ``V(R [kx, ky, 0])``: one evaluation of the network for each coefficient."""
        self._check(disk)
        rotation = rotation.to(self.scale.dtype)
        with full_precision(rotation.device):
            plane = torch.stack((disk.kx, disk.ky)).to(rotation)
            points = (rotation[:, :, :2] @ plane).transpose(1, 2)
        return self._read(points.flatten(0, 1)).unflatten(0, (len(rotation), len(disk)))

    def to_fourier_volume(self, radius: float, padding: int = 2) -> FourierVolume:
        """The network at the points of a padded grid: exact there, interpolated between.

        No gridding correction is possible, so shells lose what trilinear interpolation blurs. Points that
        samples within ``radius`` have as a neighbour are filled in too, where the volume reaches that far.
        """
        values = self._sample_grid(radius, padding, radius + math.sqrt(3) / padding)
        return FourierVolume(values, self.box_size, padding)

    def to_map(self) -> Float[Tensor, "box box box"]:
        """The density whose Fourier coefficients are the network's at the integer shells inside the radius."""
        return grid_to_real(self._sample_grid(self.radius, 1, self.radius), self.box_size, 1)

    def _read(self, points: Float[Tensor, "m 3"]) -> Complex[Tensor, " m"]:
        """The Hermitian function at points in shells, xyz."""
        side = _half_space(points)
        folded = points * torch.where(side < 0, -1, 1)[:, None]
        value = self.evaluate(folded / (self.box_size / 2)) * self.scale
        return torch.complex(value[:, 0], value[:, 1] * side)

    @torch.no_grad()
    def _sample_grid(self, radius: float, padding: int, reach: float) -> Float[Tensor, "z y x 2"]:
        """Values on the half-space grid of a radius, zero further than ``reach`` shells or the volume's own."""
        shape, device = grid_shape(radius, padding), self.scale.device
        inside = half_space_radius(shape, padding, device) <= min(reach, self.radius) + 1e-4
        values = self.scale.new_zeros(math.prod(shape), 2)
        for chunk in inside.flatten().nonzero()[:, 0].split(_CHUNK):
            points = _grid_points(chunk, shape).to(values.dtype) / padding
            values[chunk] = torch.view_as_real(self._read(points))
        return values.reshape(*shape, 2)


def _half_space(points: Float[Tensor, "m 3"]) -> Float[Tensor, " m"]:
    """1 in the half space x > 0, -1 in the other, 0 at the origin; on the plane x = 0 y decides, then z."""
    x, y, z = points.detach().sign().unbind(1)
    return torch.where(x != 0, x, torch.where(y != 0, y, z))


def _grid_points(index: Int[Tensor, " m"], shape: tuple[int, int, int]) -> Int[Tensor, "m 3"]:
    """Coordinates, xyz in grid points, of places in a flattened half-space grid."""
    size_z, size_y, size_x = shape
    rows = index // size_x
    return torch.stack((index % size_x, rows % size_y - size_y // 2, rows // size_y - size_z // 2), 1)
