"""The interface of all volumes: what a slice, a padded transform and a map of one are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import torch
from jaxtyping import Complex, Float
from pydantic import AfterValidator
from torch import Tensor, nn

from cryoai.geometry.fourier import FourierDisk, full_radius
from cryoai.parts import NamedPart, Registry
from cryoai.physics.slicing import FourierVolume


class AbstractVolume(nn.Module, NamedPart, ABC):
    """A volume that can be trained: its parameters describe a Hermitian function of the 3D frequency.

    Scaled as a `FourierVolume` is: a slice holds the orthonormal Fourier coefficients of the projection.

    One that can be chosen by name is in `VOLUMES`, has its own ``Settings``, and is made with
    ``(box_size, radius, settings, *, scale, generator)``; the generator draws its initial parameters.
    ``learning_rate`` is Adam's unless one says otherwise.

    Parameters
    ----------
    box_size
        px of the map.
    radius
        Shells within which the volume is defined; at most all of the largest usable one.
    scale
        Typical magnitude of the data's Fourier coefficients: what parameters of order one stand for.
    """

    learning_rate: ClassVar[float]
    box_size: int
    radius: float
    scale: Tensor

    def __init__(self, box_size: int, radius: float, scale: float) -> None:
        super().__init__()
        self.box_size = box_size
        self.radius = min(radius, full_radius(box_size))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self._last_disk: FourierDisk | None = None

    @abstractmethod
    def slice(self, rotation: Float[Tensor, "batch 3 3"], disk: FourierDisk) -> Complex[Tensor, "batch n"]:
        """Central slices ``V(R [kx, ky, 0])``; differentiable in the parameters and in the rotation.

        Parameters
        ----------
        rotation
            Image to volume coordinates.
        disk
            Must lie within the volume's radius; a ValueError otherwise.
        """

    @abstractmethod
    def to_fourier_volume(self, radius: float, padding: int = 2) -> FourierVolume:
        """The volume on a half-space grid, for the kernels that read one; cut off from the parameters.

        Parameters
        ----------
        radius
            Shells within which it will be sliced. Beyond the volume's own radius the grid is zero.
        padding
            Grid points per shell.
        """

    @abstractmethod
    def to_map(self) -> Float[Tensor, "box box box"]:
        """The density; cut off from the parameters."""

    def _check(self, disk: FourierDisk) -> None:
        """Refuse a disk that reaches further than the volume does."""
        # Reading the radius waits for the device, so that is done once for each disk.
        if disk is self._last_disk:
            return
        reach = float(disk.radius[-1]) if len(disk) else 0.0
        if reach > self.radius + 1e-3:
            raise ValueError(f"the disk reaches {reach:.2f} shells, the volume {self.radius:.2f}")
        self._last_disk = disk


VOLUMES: Registry[AbstractVolume] = Registry("volume")
"""The volumes by name."""

VolumeKind = Annotated[str, AfterValidator(VOLUMES.check)]
"""A name in `VOLUMES`."""
