"""Sums of particles of a symmetric volume: each counts at all of its mates."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.half_space import read_half_space
from cryoai.geometry.point_groups import point_group
from cryoai.geometry.shells import half_space_axes
from cryoai.physics.kernels import run_in_threads, runs_kernels
from cryoai.physics.slicing import VolumeAccumulator, gridding_correction
from cryoai.physics.symmetry_kernels import add_turned_kernel

# A rotation takes an axis of the grid to an axis where it is so near.
_EXACT = 1e-6


@torch.no_grad()
def symmetrize(total: VolumeAccumulator, symmetry: str, reference: bool = False) -> VolumeAccumulator:
    """What the same particles add up to when each is inserted at all mates of its pose.

    The sums are turned on their grid, whatever the number of particles; `symmetric_gridding_correction` belongs to
    the result.

    Parameters
    ----------
    total
        Sums with their Friedel mates, on a grid that has room for one more point beyond their radius.
    symmetry
        As `cryoai.geometry.point_groups.point_group_name` has it, with RELION's axes.
    reference
        Work in plain torch instead of the kernel, which it defines; for tests.
    """
    group = torch.from_numpy(point_group(symmetry)).to(total.weight)
    if len(group) == 1:
        return total
    grid = torch.cat((total.numerator, total.weight[..., None]), -1)
    fused = runs_kernels(grid.device) and not reference
    summed = _add_turned_fused(grid, group[1:]) if fused else _add_turned(grid, group[1:])
    return replace(
        total, numerator=summed[..., :2].contiguous(), weight=summed[..., 2].contiguous(), symmetry=symmetry
    )


def _add_turned_fused(grid: Float[Tensor, "z y x 3"], rotations: Float[Tensor, "g 3 3"]) -> Tensor:
    shape = tuple(grid.shape[:3])
    values, summed = grid.reshape(-1, 3).numpy(), grid.reshape(-1, 3).numpy().copy()

    def work(start: int, stop: int, thread: int) -> None:
        add_turned_kernel(values, shape, rotations.numpy(), start, stop, summed)

    run_in_threads(work, shape[0])
    return torch.from_numpy(summed).view_as(grid)


def _add_turned(grid: Float[Tensor, "z y x 3"], rotations: Float[Tensor, "g 3 3"]) -> Tensor:
    kz, ky, kx = torch.broadcast_tensors(*(k.to(grid) for k in half_space_axes(grid.shape[:3])))
    points = torch.stack((kx, ky, kz), -1)
    within = (points.norm(dim=-1) <= grid.shape[2] - 2)[..., None]
    real, imaginary, weight = grid.unbind(-1)
    numerator = torch.stack((real, imaginary))
    both = torch.stack((weight, torch.zeros_like(weight)))
    summed = grid.clone()
    for element in rotations:
        turned = (points @ element.T).flatten(1, 2)
        read = torch.view_as_real(read_half_space(numerator, turned)), read_half_space(both, turned).real[..., None]
        summed += torch.cat(read, -1).view_as(grid) * within
    return summed


@lru_cache(maxsize=8)
def symmetric_gridding_correction(box_size: int, padding: int, symmetry: str) -> Float[Tensor, "z y x"]:
    """What symmetrised sums multiply the map by: that of the insertion, and of reading turned points.

    Reading multiplies by sinc² along each axis of the grid across which the points lie between those of the grid.

    Parameters
    ----------
    box_size, padding
        As of `cryoai.physics.slicing.gridding_correction`, which this is for C1.
    symmetry
        That the sums have been given.
    """
    total = gridding_correction(box_size, padding)
    axis = (torch.arange(box_size, dtype=torch.float32) - box_size // 2) / (padding * box_size)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    position = torch.stack((x, y, z), -1)
    group = point_group(symmetry)
    for element in group[1:]:
        lies_between = np.abs(element).max(1) < 1 - _EXACT
        power = torch.from_numpy(np.where(lies_between, 4, 2)).float()
        window = torch.sinc(position @ torch.from_numpy(element).float().T)
        total = total + (window**power).prod(-1)
    return total / len(group)
