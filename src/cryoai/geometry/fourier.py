"""Centred Fourier transforms, Fourier cropping, and the Fourier disk.

Every FFT of the package is in this file. Real-space arrays have their origin at ``box // 2`` on each axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoai.geometry.shells import mean_per_shell


@dataclass(frozen=True, eq=False)
class FourierDisk:
    """The half-plane Fourier coefficients of an image inside a radius, sorted by radius.

    A marching radius is a prefix: ``count(radius)`` coefficients lie within ``radius`` shells. The zero
    frequency is left out (cryo-EM images have no meaningful mean), and of the column kx = 0 only ky > 0 is
    kept, so that each Friedel pair appears once.

    Attributes
    ----------
    box_size
        px of the images.
    kx, ky
        (n,) shell indices (integers as float32); kx ≥ 0.
    radius
        (n,) ``sqrt(kx² + ky²)``, ascending.
    shell
        (n,) ``radius`` rounded: the ring a coefficient belongs to.
    plane_index
        (n,) place in the flattened ``rfft2`` plane of shape (box, box // 2 + 1).
    """

    box_size: int
    kx: Float[Tensor, " n"]
    ky: Float[Tensor, " n"]
    radius: Float[Tensor, " n"]
    shell: Int[Tensor, " n"]
    plane_index: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.kx)

    @property
    def shell_count(self) -> int:
        """One more than the largest shell index."""
        return int(self.shell[-1]) + 1

    @cached_property
    def reach(self) -> float:
        """The largest radius, 0 without coefficients; kept, since reading it waits for the device."""
        return float(self.radius[-1]) if len(self) else 0.0

    def count(self, radius: float) -> int:
        """How many coefficients lie within ``radius`` shells; the length of that prefix."""
        return int((self.radius <= radius + 1e-4).sum())

    def prefix(self, radius: float) -> FourierDisk:
        """The disk of a smaller radius."""
        n = self.count(radius)
        return FourierDisk(
            self.box_size, self.kx[:n], self.ky[:n], self.radius[:n], self.shell[:n], self.plane_index[:n]
        )

    def in_smallest_box(self) -> FourierDisk:
        """The same frequencies in the smallest even box that holds them: images of fewer, larger pixels."""
        box = 2 * (math.floor(self.reach) + 1)
        index = (self.ky.long() % box) * (box // 2 + 1) + self.kx.long()
        return FourierDisk(box, self.kx, self.ky, self.radius, self.shell, index)

    def to(self, device: torch.device | str) -> FourierDisk:
        """The same disk on another device."""
        if self.kx.device == torch.device(device):
            return self
        moved = (t.to(device) for t in (self.kx, self.ky, self.radius, self.shell, self.plane_index))
        return FourierDisk(self.box_size, *moved)

    def mean_per_shell(self, values: Float[Tensor, " n"]) -> Float[Tensor, " shells"]:
        """Average of ``values`` over each ring; the empty shell 0 is 0."""
        return mean_per_shell(values, self.shell, self.shell_count)


def largest_radius(box_size: int) -> int:
    """The largest usable shell: even boxes have no symmetric Nyquist plane, so theirs stops one below it."""
    return (box_size - 1) // 2


def full_radius(box_size: int) -> float:
    """The radius that holds all of the largest usable shell, whose ring reaches half a shell further."""
    return largest_radius(box_size) + 0.49


@lru_cache(maxsize=32)
def make_fourier_disk(box_size: int, radius: float | None = None) -> FourierDisk:
    """The disk of a box, out to ``radius`` shells (default: all of the largest usable one)."""
    full = full_radius(box_size)
    radius = full if radius is None else min(radius, full)
    ky = torch.fft.fftfreq(box_size, 1 / box_size, dtype=torch.float64).round()
    kx = torch.fft.rfftfreq(box_size, 1 / box_size, dtype=torch.float64).round()
    ky, kx = torch.meshgrid(ky, kx, indexing="ij")
    norm = torch.sqrt(kx**2 + ky**2)
    chosen = ((norm <= radius + 1e-4) & ~((kx == 0) & (ky <= 0))).flatten().nonzero()[:, 0]
    chosen = chosen[torch.argsort(norm.flatten()[chosen], stable=True)]
    kx, ky, norm = (t.flatten()[chosen] for t in (kx, ky, norm))
    return FourierDisk(box_size, kx.float(), ky.float(), norm.float(), norm.round().long(), chosen)


def images_to_disk(images: Float[Tensor, "*batch box box"], disk: FourierDisk) -> Complex[Tensor, "*batch n"]:
    """Orthonormal Fourier coefficients of centred images on a disk."""
    plane = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)), norm="ortho")
    return plane.flatten(-2)[..., disk.plane_index]


def disk_to_images(coefficients: Complex[Tensor, "*batch n"], disk: FourierDisk) -> Float[Tensor, "*batch box box"]:
    """Centred images of zero mean from their coefficients on a disk; the inverse of `images_to_disk`."""
    box = disk.box_size
    plane = coefficients.new_zeros(*coefficients.shape[:-1], box * (box // 2 + 1))
    plane[..., disk.plane_index] = coefficients
    plane = plane.unflatten(-1, (box, box // 2 + 1))
    # irfft2 reads both halves of the column kx = 0, of which the disk holds only ky > 0.
    mirrored = torch.arange(-1, -((box - 1) // 2) - 1, -1, device=plane.device)
    plane[..., mirrored, 0] = plane[..., 1 : (box - 1) // 2 + 1, 0].conj()
    return torch.fft.fftshift(torch.fft.irfft2(plane, s=(box, box), norm="ortho"), dim=(-2, -1))


def filter_images(
    images: Float[Tensor, "*batch box box"], gain: Float[Tensor, "box half"]
) -> Float[Tensor, "*batch box box"]:
    """Multiply the coefficients of images by a real gain, everywhere in the plane (and not in a disk alone).

    Parameters
    ----------
    images
        Wherever their origin is: a real gain moves nothing.
    gain
        On the grid of `plane_radius`.
    """
    return torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=images.shape[-2:])


def plane_radius(box_size: int) -> Float[Tensor, "box half"]:
    """Distance from the zero frequency, in shells, of each coefficient of an ``rfft2`` plane."""
    ky = torch.fft.fftfreq(box_size, 1 / box_size)
    kx = torch.fft.rfftfreq(box_size, 1 / box_size)
    return torch.hypot(ky[:, None], kx[None])


def fft3(volume: Float[Tensor, "z y x"]) -> Complex[Tensor, "z y half"]:
    """Unnormalised transform of a centred volume; z and y centred, x from 0 (half space)."""
    transform = torch.fft.rfftn(torch.fft.ifftshift(volume))
    return torch.fft.fftshift(transform, dim=(0, 1))


def ifft3(transform: Complex[Tensor, "z y half"], box_size: int) -> Float[Tensor, "z y x"]:
    """The inverse of `fft3` for a cubic box."""
    plane = torch.fft.ifftshift(transform, dim=(0, 1))
    return torch.fft.fftshift(torch.fft.irfftn(plane, s=(box_size,) * 3))


def crop_or_pad(array: Tensor, box_size: int, dims: tuple[int, ...]) -> Tensor:
    """Crop a centred array to ``box_size`` along ``dims``, or pad it with zeros; the centre stays at box // 2."""
    for dim in dims:
        before = box_size // 2 - array.shape[dim] // 2
        after = box_size - array.shape[dim] - before
        if before < 0 or after < 0:
            start, stop = max(0, -before), array.shape[dim] - max(0, -after)
            array = array.narrow(dim, start, stop - start)
        if before > 0 or after > 0:
            pad = [0, 0] * array.ndim
            place = 2 * (array.ndim - 1 - dim % array.ndim)
            pad[place], pad[place + 1] = max(0, before), max(0, after)
            array = torch.nn.functional.pad(array, pad)
    return array


def resample(array: Float[Tensor, "*any"], box_size: int, dimensions: int) -> Float[Tensor, "*other"]:
    """Fourier crop or pad centred images (``dimensions=2``) or a volume (3) to ``box_size``; values are kept.

    The pixel size changes by ``old box / new box``. The unpaired Nyquist plane of an even box is dropped on the
    way, so that the result is real.
    """
    dims = tuple(range(-dimensions, 0))
    old = array.shape[-1]
    if old == box_size:
        return array
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(array, dim=dims), dim=dims), dim=dims)
    smaller = min(old, box_size)
    kept = crop_or_pad(spectrum, smaller, dims)
    if smaller % 2 == 0:
        for dim in dims:
            kept = kept.clone()
            kept.narrow(dim, 0, 1).zero_()
    kept = torch.fft.ifftshift(crop_or_pad(kept, box_size, dims), dim=dims)
    scale = (box_size / old) ** dimensions
    return torch.fft.fftshift(torch.fft.ifftn(kept, dim=dims), dim=dims).real * scale
