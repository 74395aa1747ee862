"""Distances from the centre, in real and in Fourier space, and sums over the shells they make.

A shell index is a frequency in Fourier pixels: k · box · pixel size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def radial_distance(box_size: int, dimensions: int) -> Float[Tensor, "*box"]:
    """Distance of each voxel or pixel from the centre ``box // 2``, px."""
    axis = torch.arange(box_size, dtype=torch.float32) - box_size // 2
    squared = torch.zeros((box_size,) * dimensions)
    for dim in range(dimensions):
        shape = [1] * dimensions
        shape[dim] = box_size
        squared = squared + axis.reshape(shape) ** 2
    return squared.sqrt()


def half_space_axes(
    shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "z 1 1"], Float[Tensor, "y 1"], Float[Tensor, " x"]]:
    """Coordinates z, y and x, in grid points, of a half-space grid; they broadcast to it.

    Parameters
    ----------
    shape
        (z, y, x, …): z and y centred at ``size // 2``, x from 0, as `cryoai.geometry.fourier.fft3` gives them.
    device
        Where they are wanted.
    """
    size_z, size_y, size_x = shape[:3]
    z = torch.arange(size_z, device=device, dtype=torch.float32) - size_z // 2
    y = torch.arange(size_y, device=device, dtype=torch.float32) - size_y // 2
    x = torch.arange(size_x, device=device, dtype=torch.float32)
    return z[:, None, None], y[:, None], x


def half_space_radius(
    shape: tuple[int, ...], padding: int = 1, device: torch.device | str = "cpu"
) -> Float[Tensor, "z y x"]:
    """Distance of each point of a half-space grid from the origin, shells.

    Parameters
    ----------
    shape, device
        As in `half_space_axes`.
    padding
        Grid points per shell.
    """
    z, y, x = half_space_axes(shape, device)
    return (z**2 + y**2 + x**2).sqrt() / padding


def sum_per_shell(
    values: Float[Tensor, "*batch n"], shell: Int[Tensor, " n"], count: int | None = None
) -> Float[Tensor, "*batch shells"]:
    """Sum over each shell.

    Parameters
    ----------
    values
        Summed along the last dimension, in their own precision.
    shell
        Which shell each belongs to, from 0.
    count
        Shells wanted (default: up to the largest that occurs); empty ones are 0.
    """
    if count is None:
        count = int(shell.max()) + 1 if len(shell) else 0
    return values.new_zeros(*values.shape[:-1], count).index_add_(-1, shell, values)


def mean_per_shell(
    values: Float[Tensor, "*batch n"], shell: Int[Tensor, " n"], count: int | None = None
) -> Float[Tensor, "*batch shells"]:
    """Mean over each shell; parameters as in `sum_per_shell`, empty shells are 0."""
    total = sum_per_shell(values, shell, count)
    return total / torch.bincount(shell, minlength=total.shape[-1]).clamp(min=1)
