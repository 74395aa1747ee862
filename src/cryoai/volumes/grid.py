"""What explicit volumes share: slices read from a grid, and a random map to start from."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, fft3, ifft3
from cryoai.geometry.shells import half_space_radius, radial_distance
from cryoai.physics.slicing import FourierVolume, slice_volume
from cryoai.precision import full_precision
from cryoai.volumes.abstract import AbstractVolume

# Real and imaginary parts of the first slices, in units of the scale: what a `FourierNet` starts with.
_INITIAL_STD = 1 / 40


class AbstractGridVolume(AbstractVolume):
    """A volume that is read from a grid by trilinear interpolation."""

    # Measured at known poses: benchmarks/ablation.py.
    learning_rate: ClassVar[float] = 0.1

    @abstractmethod
    def to_differentiable_volume(self) -> FourierVolume:
        """The grid that slices are read from, with its gradient; for several readings within one step."""

    def slice(self, rotation: Float[Tensor, "batch 3 3"], disk: FourierDisk) -> Complex[Tensor, "batch n"]:
        """Central slices ``V(R [kx, ky, 0])`` by trilinear interpolation."""
        self._check(disk)
        with full_precision(rotation.device):
            return slice_volume(self.to_differentiable_volume(), rotation.to(self.scale.dtype), disk)


def make_random_map(box_size: int, radius: float, generator: torch.Generator) -> Float[Tensor, "box box box"]:
    """Noise inside a Gaussian ball and inside ``radius`` shells; its slices are small beside one."""
    distance = radial_distance(box_size, 3)
    envelope = torch.exp(-0.5 * (distance / (box_size / 6)) ** 2)
    spectrum = fft3(torch.randn(distance.shape, generator=generator) * envelope)
    density = ifft3(spectrum * (half_space_radius(spectrum.shape) <= radius), box_size)
    return density * (_INITIAL_STD * math.sqrt(2) * box_size / float(envelope.norm()))
