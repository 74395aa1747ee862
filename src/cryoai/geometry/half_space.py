"""Reading a Hermitian function, of which a grid holds the half space x ≥ 0, by trilinear interpolation.

Grids are as in `cryoai.geometry.shells.half_space_axes`; the other half is read at the Friedel mate.
`trilinear_neighbours` serves reading, its adjoint and its derivatives; `read_half_space` reads one grid at very
many points, three times as fast.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor


def fold_to_half_space(
    points: Float[Tensor, "*batch 3"],
) -> tuple[Float[Tensor, "*batch 3"], Bool[Tensor, "*batch"]]:
    """Points (xyz) in the half space, themselves or their Friedel mates; and which are mates (conjugate values)."""
    flipped = points[..., 0] < 0
    return torch.where(flipped[..., None], -points, points), flipped


def trilinear_neighbours(
    shape: tuple[int, ...], points: Float[Tensor, "batch n 3"]
) -> tuple[Int[Tensor, "m 8"], Float[Tensor, "m 8"], Float[Tensor, "batch n 3"], Bool[Tensor, "batch n"]]:
    """The eight grid points around each sample.

    Parameters
    ----------
    shape
        (z, y, x, …) of the grid; points outside it are not checked.
    points
        Grid points, xyz.

    Returns
    -------
    tuple
        Places in the flattened grid and their weights (x fastest), the fractions (xyz) beyond the lowest of
        them, and which samples are read at their Friedel mates.
    """
    size_z, size_y, size_x = shape[:3]
    points, flipped = fold_to_half_space(points)
    # A point that is not a number reads the origin, with a weight that is not one.
    floor = points.detach().floor().nan_to_num(0.0)
    fraction = points - floor
    corner = floor.long()
    base = ((corner[..., 2] + size_z // 2) * size_y + corner[..., 1] + size_y // 2) * size_x + corner[..., 0]
    offset = torch.tensor(
        [(dz * size_y + dy) * size_x + dx for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)],
        device=points.device,
    )
    both = torch.stack((1 - fraction, fraction), -1)  # (batch, n, xyz, low/high)
    weight = both[..., 2, :, None, None] * both[..., 1, None, :, None] * both[..., 0, None, None, :]
    return base.reshape(-1, 1) + offset, weight.reshape(-1, 8), fraction, flipped


def read_half_space(
    channels: Float[Tensor, "2 d d w"], points: Float[Tensor, "batch n 3"]
) -> Complex[Tensor, "batch n"]:
    """Trilinear values at points.

    Parameters
    ----------
    channels
        Real and imaginary parts on a grid of ``d = 2 w - 1``.
    points
        Grid points, xyz; what lies outside the grid counts as 0.
    """
    points, flipped = fold_to_half_space(points)
    reach = channels.shape[-1] - 1
    # From -1 to 1 across each axis: x starts at the grid's edge, y and z at its middle.
    places = points / reach - points.new_tensor([1.0, 0.0, 0.0]) * (1 - points / reach)
    # One volume for each row, all of them the same memory: PyTorch's threads share the work by volumes.
    values = torch.nn.functional.grid_sample(
        channels.expand(len(points), *channels.shape), places[:, None, None], align_corners=True
    )[:, :, 0, 0]
    return torch.complex(values[:, 0], torch.where(flipped, -values[:, 1], values[:, 1]))
