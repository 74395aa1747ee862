"""Exhaustive pose search: every rotation × translation of a grid, for every image, as one matrix product."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.asymmetric_unit import depth_in_unit
from cryoai.geometry.point_groups import point_group
from cryoai.geometry.rotations import random_rotations
from cryoai.geometry.so3_grid import make_so3_grid
from cryoai.physics.image_formation import image_slices
from cryoai.physics.insertion import slice_quickly
from cryoai.physics.slicing import FourierVolume
from cryoai.physics.translation import compute_shift
from cryoai.poses.local import score_hypotheses
from cryoai.precision import product_dtype
from cryoai.tensors import ParticleBatch, PoseHypotheses

# The score matrix of one chunk of images should stay in the last-level cache.
_CHUNK_BYTES = 24 * 2**20


# Coefficients of moved images at once, in `search_translations`.
_MOVED_AT_ONCE = 2**23


@dataclass(frozen=True, eq=False)
class SearchGrid:
    """The poses an exhaustive search tries.

    Attributes
    ----------
    rotation
        (rotations, 3, 3).
    translation
        (shifts, 2), Å.
    """

    rotation: Float[Tensor, "rotations 3 3"]
    translation: Float[Tensor, "shifts 2"]


def make_translation_grid(max_shift: float, step: float) -> Float[Tensor, "shifts 2"]:
    """A square lattice of translations within a circle; Å, the origin included."""
    count = math.floor(max_shift / step + 1e-6)
    axis = step * torch.arange(-count, count + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack((x.flatten(), y.flatten()), -1)
    return grid[grid.norm(dim=1) <= max_shift + 1e-4 * step]


def translation_step(radius: float, box_length: float) -> float:
    """A lattice step, Å, fine enough for coefficients within ``radius`` shells.

    At the largest frequency the nearest lattice point is off by at most 0.2 periods along each axis.
    """
    return 0.4 * box_length / radius


def make_search_grid(
    rotations: int, max_shift: float, step: float, generator: torch.Generator | None = None, symmetry: str = "C1"
) -> SearchGrid:
    """An SO(3) grid, turned at random when a generator is given, and a lattice of translations (Å).

    Of the grid what the symmetry, with RELION's axes, does not repeat.
    """
    rotation = make_so3_grid(rotations)
    if generator is not None:
        rotation = random_rotations(1, generator) @ rotation
    if symmetry != "C1":
        group = torch.from_numpy(point_group(symmetry)).float()
        rotation = rotation[depth_in_unit(rotation[:, :, 2], group) > 0]
    return SearchGrid(rotation, make_translation_grid(max_shift, step))


@torch.no_grad()
def search_poses(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    grid: SearchGrid,
    keep: int = 16,
    dtype: torch.dtype | None = None,
) -> PoseHypotheses:
    """The best poses of each image on a grid, one translation per rotation, with their log-likelihoods.

    The log-likelihood of a pose is ``2 Re⟨ramp* CTF image, slice⟩ - ⟨CTF², |slice|²⟩`` on whitened coefficients,
    up to a constant per image. It is computed for the whole grid in bfloat16 where the device is fast at it, and
    again in float32 for the hypotheses kept.

    Parameters
    ----------
    batch
        The images; all of its disk is compared.
    volume
        What they are compared with.
    noise_power
        ``E|noise|²`` per shell.
    grid
        Rotations and translations (Å).
    keep
        Hypotheses per image.
    dtype
        Of the matrix product over the grid; by default what `product_dtype` says.

    Returns
    -------
    PoseHypotheses
        Best first; in the host's memory, wherever the volume is.
    """
    batch, noise_power = batch.to(volume.device), noise_power.to(volume.device)
    dtype = dtype or product_dtype(volume.device)
    grid = SearchGrid(grid.rotation.to(volume.device), grid.translation.to(volume.device))
    whitening = noise_power[batch.disk.shell].rsqrt()
    slices = slice_quickly(volume, grid.rotation, batch.disk).to(volume.device) * whitening
    rotations, n = slices.shape
    matrix = torch.view_as_real(slices).reshape(rotations, 2 * n).to(dtype).T.contiguous()
    power = (slices.real**2 + slices.imag**2).to(dtype).T
    # The product of an image with ramp* is its image moved back by the translation.
    ramps = compute_shift(-grid.translation, batch.disk, batch.pixel_size)
    shifts = len(ramps)
    chunk = max(1, _CHUNK_BYTES // (dtype.itemsize * shifts * rotations))
    found = []
    for start in range(0, len(batch), chunk):
        images = batch.images[start : start + chunk] * whitening
        ctf = batch.ctf[start : start + chunk]
        moved = ((images * ctf)[:, None] * ramps).reshape(-1, n)
        product = (torch.view_as_real(moved).reshape(-1, 2 * n).to(dtype) @ matrix).view(
            len(images), shifts, rotations
        )
        score = product.amax(1).float() - 0.5 * ((ctf**2).to(dtype) @ power).float()
        rotation_index = score.topk(keep, dim=1).indices
        column = rotation_index[:, None].expand(-1, shifts, -1)
        found.append((rotation_index, product.gather(2, column).argmax(1)))
    rotation = grid.rotation[torch.cat([r for r, _ in found])]
    translation = grid.translation[torch.cat([t for _, t in found])]
    found = PoseHypotheses(rotation.cpu(), translation.cpu(), torch.zeros(len(batch), keep))
    return score_hypotheses(batch, volume, noise_power, found).sorted()


@torch.no_grad()
def search_translations(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    hypotheses: PoseHypotheses,
    moves: Float[Tensor, "moves 2"],
) -> PoseHypotheses:
    """Each hypothesis at the best of several moves of its translation, with its log-likelihood.

    An encoder knows translations less well than the frequencies that tell rotations apart require.

    Parameters
    ----------
    batch
        The images; all of its disk is compared.
    volume
        What they are compared with.
    noise_power
        ``E|noise|²`` per shell.
    hypotheses
        Of each particle.
    moves
        Å, added to the translations; the origin should be among them.

    Returns
    -------
    PoseHypotheses
        In the order given; log-weights up to a constant per image, in the host's memory.
    """
    count, n = hypotheses.log_weight.shape[1], len(batch.disk)
    size = max(1, _MOVED_AT_ONCE // (n * (len(moves) + count)))
    parts = [
        _move_part(batch[start : start + size], volume, noise_power, hypotheses[start : start + size], moves)
        for start in range(0, len(batch), size)
    ]
    translation = hypotheses.translation + moves[torch.cat([best for best, _ in parts])]
    return PoseHypotheses(hypotheses.rotation, translation, torch.cat([score for _, score in parts]))


def _move_part(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Tensor,
    hypotheses: PoseHypotheses,
    moves: Tensor,
) -> tuple[Tensor, Tensor]:
    """Which move is best for each hypothesis, and its log-likelihood."""
    device = volume.device
    batch = batch.to(device)
    whitening = noise_power.to(device)[batch.disk.shell].rsqrt()
    shape = hypotheses.log_weight.shape
    slices = slice_quickly(volume, hypotheses.rotation.flatten(0, 1).to(device).contiguous(), batch.disk).to(device)
    model = image_slices(
        slices.unflatten(0, shape), hypotheses.translation.to(device), (batch.ctf * whitening)[:, None],
        batch.disk, batch.pixel_size,
    )  # fmt: skip
    power = (model.real**2 + model.imag**2).sum(-1)
    # The product of an image with ramp* is its image moved back.
    ramps = compute_shift(-moves.to(device), batch.disk, batch.pixel_size)
    moved = (batch.images * whitening)[:, None] * ramps
    product = torch.view_as_real(moved).flatten(2) @ torch.view_as_real(model).flatten(2).mT
    best, index = product.max(1)
    return index.cpu(), (2 * best - power).cpu()
