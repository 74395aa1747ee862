"""Central slices of a volume in Fourier space, their adjoint, and their Jacobian.

These are the reference implementations, in plain torch: differentiable and on any device. On the CPU
`cryoai.physics.kernels` holds the same operations fused; the tests compare the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, full_radius
from cryoai.geometry.half_space import fold_to_half_space, trilinear_neighbours
from cryoai.geometry.padded_fourier import fft3_padded, ifft3_cropped
from cryoai.physics.bounds import check_reach
from cryoai.precision import full_precision


@dataclass(frozen=True, eq=False)
class FourierVolume:
    """The Fourier transform of a map on a padded grid, inside a radius; what slices are read from.

    Scaled so that a slice holds the orthonormal Fourier coefficients of the projection.

    Attributes
    ----------
    values
        (z, y, x, 2) real and imaginary parts; z and y centred at ``size // 2``, x ≥ 0 (half space).
    box_size
        px of the map.
    padding
        Grid points per shell; 2 as in RELION.
    """

    values: Float[Tensor, "z y x 2"]
    box_size: int
    padding: int = 2

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.values.device

    def to(self, device: torch.device | str) -> FourierVolume:
        """The same volume on another device."""
        return FourierVolume(self.values.to(device), self.box_size, self.padding)

    def negated(self) -> FourierVolume:
        """The other contrast."""
        return FourierVolume(-self.values, self.box_size, self.padding)

    def mirrored(self) -> FourierVolume:
        """The other hand, z → -z: the transform of the reflected map is reflected itself, on this grid exactly."""
        return FourierVolume(self.values.flip(0), self.box_size, self.padding)


@dataclass(frozen=True, eq=False)
class VolumeAccumulator:
    """What inserted slices add up to, on the grid of a `FourierVolume`.

    Attributes
    ----------
    numerator
        (z, y, x, 2) sum of weighted coefficients.
    weight
        (z, y, x) sum of weights.
    box_size, padding
        As in `FourierVolume`.
    symmetry
        What they have been given, see `cryoai.physics.symmetrize`.
    """

    numerator: Float[Tensor, "z y x 2"]
    weight: Float[Tensor, "z y x"]
    box_size: int
    padding: int = 2
    symmetry: str = "C1"

    def __add__(self, other: VolumeAccumulator) -> VolumeAccumulator:
        return replace(self, numerator=self.numerator + other.numerator, weight=self.weight + other.weight)

    def cpu(self) -> VolumeAccumulator:
        """The same sums in the host's memory."""
        return replace(self, numerator=self.numerator.cpu(), weight=self.weight.cpu())

    def negated(self) -> VolumeAccumulator:
        """The other contrast: what was inserted with the other sign."""
        return replace(self, numerator=-self.numerator)

    def mirrored(self) -> VolumeAccumulator:
        """What the same particles add up to at the poses of the other hand (z → -z)."""
        return replace(self, numerator=self.numerator.flip(0), weight=self.weight.flip(0))

    def scaled(self, factor: float) -> VolumeAccumulator:
        """Both sums times a number."""
        return replace(self, numerator=self.numerator * factor, weight=self.weight * factor)


def grid_shape(radius: float, padding: int) -> tuple[int, int, int]:
    """(z, y, x) size of the half-space grid that holds all trilinear neighbours within ``radius`` shells."""
    half = math.ceil(radius * padding) + 1
    return 2 * half + 1, 2 * half + 1, half + 1


def make_accumulator(
    box_size: int, radius: float, padding: int = 2, device: torch.device | str = "cpu"
) -> VolumeAccumulator:
    """An accumulator of zeros."""
    shape = grid_shape(radius, padding)
    return VolumeAccumulator(
        torch.zeros(*shape, 2, device=device), torch.zeros(shape, device=device), box_size, padding
    )


def gridding_correction(box_size: int, padding: int, device: torch.device | str = "cpu") -> Float[Tensor, "z y x"]:
    """What trilinear interpolation of the padded transform multiplies the map by: sinc² along each axis."""
    axis = (torch.arange(box_size, device=device, dtype=torch.float32) - box_size // 2) / (padding * box_size)
    window = torch.sinc(axis) ** 2
    return window[:, None, None] * window[:, None] * window


def volume_from_map(
    density: Float[Tensor, "box box box"], radius: float | None = None, padding: int = 2
) -> FourierVolume:
    """Transform a map for slicing: gridding-corrected, zero-padded, cut at ``radius`` shells."""
    box = density.shape[-1]
    radius = full_radius(box) if radius is None else radius
    corrected = density / gridding_correction(box, padding, density.device)
    transform = fft3_padded(corrected, padding * box, grid_shape(radius, padding)) / box
    return FourierVolume(torch.view_as_real(transform), box, padding)


def map_from_volume(volume: FourierVolume) -> Float[Tensor, "box box box"]:
    """The map whose slices a volume holds; the inverse of `volume_from_map` inside its radius."""
    density = grid_to_real(volume.values, volume.box_size, volume.padding)
    return density * gridding_correction(volume.box_size, volume.padding, volume.device)


def grid_to_real(values: Float[Tensor, "z y x 2"], box_size: int, padding: int) -> Float[Tensor, "box box box"]:
    """Inverse transform of grid values to a box, with no gridding correction."""
    transform = torch.view_as_complex(values.contiguous()) * box_size
    return ifft3_cropped(transform, padding * box_size, box_size)


def slice_volume(
    volume: FourierVolume, rotation: Float[Tensor, "batch 3 3"], disk: FourierDisk
) -> Complex[Tensor, "batch n"]:
    """Central slices by trilinear interpolation; differentiable in the volume and in the rotation.

    ``slice(k) = V(R [kx, ky, 0])`` (the Fourier slice theorem; Levy et al. 2022, eq. 5). A ValueError where the
    disk reaches beyond the grid; a rotation that is not a number gives a slice that is not one.
    """
    check_reach(volume.values.shape, volume.padding, rotation, disk, allow_nan=True)
    index, weight, _, flipped = trilinear_neighbours(volume.values.shape, _points(rotation, disk, volume.padding))
    flat = volume.values.reshape(-1, 2)
    value = F.embedding_bag(index, flat, per_sample_weights=weight, mode="sum")
    value = value.unflatten(0, (len(rotation), len(disk)))
    imaginary = torch.where(flipped, -value[..., 1], value[..., 1])
    return torch.complex(value[..., 0], imaginary)


def insert_slices(
    accumulator: VolumeAccumulator,
    coefficients: Complex[Tensor, "batch n"],
    weight: Float[Tensor, "batch n"],
    rotation: Float[Tensor, "batch 3 3"],
    disk: FourierDisk,
) -> VolumeAccumulator:
    """Add slices to an accumulator; with ``coefficients`` alone this is the exact adjoint of `slice_volume`.

    Parameters
    ----------
    accumulator
        Left unchanged; the sum is returned.
    coefficients
        Added to the numerator (for a Wiener filter: CTF · image / noise variance).
    weight
        Added to the weight (CTF² / noise variance).
    rotation, disk
        Where the slices lie.
    """
    check_reach(accumulator.numerator.shape, accumulator.padding, rotation, disk)
    index, corner, _, flipped = trilinear_neighbours(
        accumulator.numerator.shape, _points(rotation, disk, accumulator.padding)
    )
    imaginary = torch.where(flipped, -coefficients.imag, coefficients.imag)
    values = torch.stack((coefficients.real, imaginary, weight), -1).reshape(-1, 1, 3) * corner[..., None]
    total = torch.cat((accumulator.numerator, accumulator.weight[..., None]), -1).reshape(-1, 3)
    total = total.index_add(0, index.flatten(), values.reshape(-1, 3))
    total = total.reshape(*accumulator.weight.shape, 3)
    return VolumeAccumulator(
        total[..., :2].contiguous(), total[..., 2].contiguous(), accumulator.box_size, accumulator.padding
    )


def enforce_friedel(accumulator: VolumeAccumulator) -> VolumeAccumulator:
    """Complete the plane x = 0, where each coefficient was added on one side of the origin only."""
    numerator, weight = accumulator.numerator.clone(), accumulator.weight.clone()
    conjugate = torch.tensor([1.0, -1.0], device=numerator.device)
    numerator[:, :, 0] += numerator[:, :, 0].flip(0, 1) * conjugate
    weight[:, :, 0] += weight[:, :, 0].flip(0, 1)
    return VolumeAccumulator(numerator, weight, accumulator.box_size, accumulator.padding)


def slice_with_jacobian(
    volume: FourierVolume, rotation: Float[Tensor, "batch 3 3"], disk: FourierDisk
) -> tuple[Complex[Tensor, "batch n"], Complex[Tensor, "batch n 3"]]:
    """Slices and their derivative with respect to a left rotation vector.

    For ``R(ω) = exp([ω]×) R`` the sampled point moves by ``ω × p``, so ``dV/dω = p × ∇V(p)``.
    """
    check_reach(volume.values.shape, volume.padding, rotation, disk, allow_nan=True)
    point = _points(rotation, disk, volume.padding)
    index, _, fraction, flipped = trilinear_neighbours(volume.values.shape, point)
    corners = volume.values.reshape(-1, 2)[index].reshape(len(rotation), len(disk), 2, 2, 2, 2)
    x, y, z = (fraction[..., axis, None] for axis in range(3))

    def blend(pair: Tensor, at: Tensor, axis: int) -> Tensor:
        low, high = pair.unbind(axis)
        while at.ndim < low.ndim:
            at = at.unsqueeze(2)
        return low * (1 - at) + high * at

    def slope(pair: Tensor, axis: int) -> Tensor:
        low, high = pair.unbind(axis)
        return high - low

    along_x = blend(corners, x, 4)  # (batch, n, z, y, 2)
    along_xy = blend(along_x, y, 3)
    value = blend(along_xy, z, 2)
    gradient = torch.stack(
        (
            blend(blend(slope(corners, 4), y, 3), z, 2),
            blend(slope(along_x, 3), z, 2),
            slope(along_xy, 2),
        ),
        -1,
    )
    point, _ = fold_to_half_space(point)
    jacobian = torch.linalg.cross(point[:, :, None].expand_as(gradient), gradient, dim=-1)
    sign = torch.where(flipped, -1.0, 1.0).to(value.dtype)
    return (
        torch.complex(value[..., 0], sign * value[..., 1]),
        torch.complex(jacobian[:, :, 0], sign[..., None] * jacobian[:, :, 1]),
    )


def _points(rotation: Tensor, disk: FourierDisk, padding: int) -> Float[Tensor, "batch n 3"]:
    """Where each coefficient is sampled, in grid points, xyz."""
    plane = torch.stack((disk.kx, disk.ky)).to(rotation.dtype) * padding
    with full_precision(rotation.device):
        return (rotation[:, :, :2] @ plane).transpose(1, 2)
