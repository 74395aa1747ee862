"""What the kernels take for granted, checked once per call: they read and write without looking where."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.tensors import ParticleBatch

# Of a sample's place, relative; single precision is a hundred times better.
_ROUNDING = 1e-5


def check_reach(
    shape: tuple[int, ...],
    padding: int,
    rotation: Float[Tensor, "batch 3 3"],
    disk: FourierDisk,
    *,
    allow_nan: bool = False,
) -> None:
    """Refuse slices that would reach beyond a grid.

    Parameters
    ----------
    shape
        (z, y, x, …) of the half-space grid.
    padding
        Its points per shell.
    rotation
        In the host's memory they are looked at too: one that is no rotation, or not a number, reaches anywhere.
        On a device that would mean to wait for it.
    disk
        The coefficients of a slice.
    allow_nan
        Let rotations pass that are not numbers; see `without_nan`.

    Raises
    ------
    ValueError
        A sample or one of its trilinear neighbours lies outside.
    """
    longest = 1.0
    if rotation.device.type == "cpu" and len(rotation):
        # A coordinate of a sample is at most |k| times the length of its row.
        length = rotation.detach()[:, :, :2].square().sum(2).sqrt()
        longest = float((length.nan_to_num(0.0, math.inf) if allow_nan else length).amax())
    reach = disk.reach * longest * (1 + _ROUNDING)
    size_z, size_y, size_x = shape[:3]
    # The neighbour above the farthest sample counts too.
    limit = min((size_z - 1) // 2, (size_y - 1) // 2, size_x - 1)
    if not reach * padding < limit:  # so that nan is refused
        raise ValueError(
            f"the slices reach {reach:.2f} shells; a grid of shape {tuple(shape[:3])} with {padding} points per "
            f"shell holds less than {limit / padding:g}"
        )


def without_nan(rotation: Float[Tensor, "batch 3 3"]) -> tuple[Float[Tensor, "batch 3 3"], Bool[Tensor, " batch"]]:
    """Rotations that can be read at, and which of them are not numbers: their results must not be, either.

    An encoder whose training fails gives such rotations, and who asked for a score of one should see that.
    """
    unknown = rotation.isnan().flatten(1).any(1)
    identity = torch.eye(3, dtype=rotation.dtype, device=rotation.device)
    return torch.where(unknown[:, None, None], identity, rotation), unknown


def check_poses(
    batch: ParticleBatch,
    rotation: Tensor,
    translation: Tensor,
    image_of: Int[Tensor, " m"],
    weight: Tensor | None = None,
) -> None:
    """Refuse poses that do not belong to a batch of particles.

    Parameters
    ----------
    batch
        The particles.
    rotation, translation, weight
        One entry per pose.
    image_of
        Which particle each pose belongs to.

    Raises
    ------
    ValueError
        Numbers of entries that differ, a particle that is not there, or images and CTFs that are not on the disk.
    """
    sizes = [len(values) for values in (rotation, translation, image_of, weight) if values is not None]
    if len(set(sizes)) > 1:
        raise ValueError(f"rotations, translations, particles and weights of poses differ in number: {sizes}")
    if image_of.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"particles are numbered by integers, not {image_of.dtype}")
    if len(image_of) and not 0 <= int(image_of.min()) <= int(image_of.max()) < len(batch):
        raise ValueError(
            f"poses of particles {int(image_of.min())} to {int(image_of.max())}, but there are {len(batch)}"
        )
    expected = (len(batch), len(batch.disk))
    if batch.images.shape != expected or batch.ctf.shape != expected:
        raise ValueError(
            f"images {tuple(batch.images.shape)} and CTFs {tuple(batch.ctf.shape)} on a disk of {expected[1]}"
        )
