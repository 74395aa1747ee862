"""Accumulating particle images into a volume: the weighted adjoint of image formation."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.physics.bounds import check_poses, check_reach, without_nan
from cryoai.physics.kernels import insert_kernel, run_in_threads, runs_kernels, slice_kernel
from cryoai.physics.slicing import (
    FourierVolume,
    VolumeAccumulator,
    enforce_friedel,
    insert_slices,
    make_accumulator,
    slice_volume,
)
from cryoai.physics.translation import compute_shift
from cryoai.tensors import ParticleBatch

# Each thread adds to a grid of its own, since two threads may hit the same point; their memory bounds how many.
_THREAD_GRID_BYTES = 512 * 2**20


class Inserter:
    """Sums of ``CTF · image · ramp* / σ²`` and ``CTF² / σ²`` over particles, on a padded Fourier grid.

    Parameters
    ----------
    box_size
        px of the map.
    radius
        Largest shell inserted.
    padding
        Grid points per shell.
    device
        Where to accumulate; particles may be anywhere, and sums come back to the host's memory. The CPU uses a
        fused kernel in several threads.
    """

    def __init__(self, box_size: int, radius: float, padding: int = 2, device: torch.device | str = "cpu") -> None:
        self._zero = make_accumulator(box_size, radius, padding, device)
        self._sum = self._zero
        points = self._zero.weight.numel()
        self._fused = runs_kernels(self._zero.weight.device)
        threads = max(1, min(torch.get_num_threads(), _THREAD_GRID_BYTES // (12 * points)))
        self._grids = [np.zeros((points, 3), np.float32) for _ in range(threads)] if self._fused else []

    def add(
        self,
        batch: ParticleBatch,
        rotation: Float[Tensor, "m 3 3"],
        translation: Float[Tensor, "m 2"],
        noise_power: Float[Tensor, " shells"],
        image_of: Int[Tensor, " m"] | None = None,
        weight: Float[Tensor, " m"] | None = None,
    ) -> None:
        """Insert m weighted poses of a batch of particles; a ValueError where these do not fit together.

        Parameters
        ----------
        batch
            The particles; all of its disk is inserted.
        rotation, translation
            The poses, Å.
        noise_power
            ``E|noise|²`` per shell.
        image_of
            Which particle of the batch each pose belongs to; default: one pose per particle, in order.
        weight
            Posterior weight of each pose; default 1.
        """
        if image_of is None:
            image_of = torch.arange(len(batch))
        if weight is None:
            weight = torch.ones(len(image_of))
        check_poses(batch, rotation, translation, image_of, weight)
        device = self._zero.weight.device
        batch, noise_power = batch.to(device), noise_power.to(device)
        rotation, translation, image_of, weight = (t.to(device) for t in (rotation, translation, image_of, weight))
        precision = 1 / noise_power[batch.disk.shell]
        if self._fused:
            self._add_fused(batch, rotation, translation, precision, image_of, weight)
            return
        ramp = compute_shift(-translation, batch.disk, batch.pixel_size)
        scale = batch.ctf[image_of] * precision * weight[:, None]
        self._sum = insert_slices(
            self._sum,
            batch.images[image_of] * ramp * scale,
            batch.ctf[image_of] * scale,
            rotation,
            batch.disk,
        )

    def _add_fused(
        self,
        batch: ParticleBatch,
        rotation: Tensor,
        translation: Tensor,
        precision: Tensor,
        image_of: Tensor,
        weight: Tensor,
    ) -> None:
        shape = tuple(self._zero.weight.shape)
        check_reach(shape, self._zero.padding, rotation, batch.disk)
        images, ctf = kernel_images(batch)
        rotations = rotation.float().contiguous().numpy()
        shifts = (translation.double() / batch.box_length).numpy()
        radius = math.ceil(batch.disk.reach)

        def work(start: int, stop: int, thread: int) -> None:
            insert_kernel(
                self._grids[thread], shape, images, ctf, precision.float().numpy(),
                rotations[start:stop], shifts[start:stop], image_of[start:stop].numpy(),
                weight[start:stop].float().numpy(), batch.disk.kx.numpy(), batch.disk.ky.numpy(),
                radius, np.float32(self._zero.padding),
            )  # fmt: skip

        run_in_threads(work, len(rotations), len(self._grids))

    def result(self) -> VolumeAccumulator:
        """The sums so far, with the Friedel mates of the plane x = 0 completed."""
        total = self._sum
        if self._fused:
            while len(self._grids) > 1:
                self._grids[0] += self._grids.pop()
            grid = torch.from_numpy(self._grids[0]).reshape(*total.weight.shape, 3)
            total = VolumeAccumulator(
                grid[..., :2].contiguous(), grid[..., 2].contiguous(), total.box_size, total.padding
            )
        return enforce_friedel(total).cpu()


def kernel_grid(volume: FourierVolume) -> Float[np.ndarray, "points 2"]:
    """A volume as the kernels read it."""
    return volume.values.detach().float().contiguous().reshape(-1, 2).numpy()


def kernel_images(batch: ParticleBatch) -> tuple[Float[np.ndarray, "batch n 2"], Float[np.ndarray, "batch n"]]:
    """Images and CTFs as the kernels read them."""
    images = batch.images.to(torch.complex64).resolve_conj().contiguous()
    return torch.view_as_real(images).numpy(), batch.ctf.float().contiguous().numpy()


@torch.no_grad()
def slice_quickly(volume: FourierVolume, rotation: Float[Tensor, "batch 3 3"], disk: FourierDisk) -> Tensor:
    """`slice_volume` without gradients: (batch, n) complex, in the host's memory; fused on the CPU.

    A ValueError where the disk reaches beyond the grid; a rotation that is not a number gives a slice that is not
    one.
    """
    if len(rotation) == 0:
        return torch.zeros(0, len(disk), dtype=torch.complex64)
    if not runs_kernels(volume.device):
        return slice_volume(volume, rotation.to(volume.device), disk.to(volume.device)).cpu()
    out = np.empty((len(rotation), len(disk), 2), np.float32)
    shape = tuple(volume.values.shape[:3])
    check_reach(shape, volume.padding, rotation, disk, allow_nan=True)
    rotation, unknown = without_nan(rotation)
    grid = kernel_grid(volume)
    rotations = rotation.float().contiguous().numpy()

    def work(start: int, stop: int, thread: int) -> None:
        slice_kernel(
            grid, shape, rotations[start:stop], disk.kx.numpy(), disk.ky.numpy(),
            np.float32(volume.padding), out[start:stop],
        )  # fmt: skip

    run_in_threads(work, len(rotations))
    out[unknown.numpy()] = np.nan
    return torch.view_as_complex(torch.from_numpy(out))
