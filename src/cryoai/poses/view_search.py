"""Exhaustive search over views: the best in-plane angle and shift of every direction, by angular modes on rings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.rotations import random_rotations
from cryoai.physics.kernels import run_in_threads
from cryoai.physics.polar_kernels import LANES, best_views_kernel
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.posterior import Comparison, PosteriorSearch
from cryoai.tensors import ParticleBatch, PoseHypotheses

CHUNK = 64
"""Images whose moved rings are held at once."""
_FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))


@dataclass(frozen=True, eq=False)
class Asked:
    """What each image of a batch is compared with: blocks of directions, each moved by a shift.

    Attributes
    ----------
    begin, end
        (batch,) where the image's own lie in the following.
    block, shift
        (asked,) of each comparison.
    """

    begin: Int[np.ndarray, " batch"]
    end: Int[np.ndarray, " batch"]
    block: Int[np.ndarray, " asked"]
    shift: Int[np.ndarray, " asked"]

    @classmethod
    def everything(cls, search: PosteriorSearch, batch: int) -> Asked:
        """Every block at every shift, for each of so many images."""
        blocks, shifts = search.blocks, len(search.shifts)
        block = np.arange(blocks, dtype=np.int32).repeat(shifts)
        shift = np.tile(np.arange(shifts, dtype=np.int32), blocks)
        return cls(np.zeros(batch, np.int64), np.full(batch, blocks * shifts), block, shift)


@dataclass(frozen=True, eq=False)
class Views:
    """Each image's best pose in every direction and its mirror image, in blocks: LANES of one, LANES of the other.

    Attributes
    ----------
    score
        Log-likelihood gain, nats; -1e30 where a direction was left out.
    shift, angle
        Indices into the grid.
    """

    score: Float[Tensor, "batch views"]
    shift: Float[Tensor, "batch views"]
    angle: Float[Tensor, "batch views"]


@torch.no_grad()
def search_views(
    search: PosteriorSearch,
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " any_shells"],
    keep: int,
    generator: torch.Generator | None = None,
    reference: bool = False,
) -> PoseHypotheses:
    """The best poses of each image, one for each of its best viewing directions.

    Parameters
    ----------
    search
        The grid.
    batch
        The images, best to `MASK_MARGIN` shells beyond the radius; what is further out is not read.
    volume
        What they are compared with.
    noise_power
        ``E|noise|²`` per shell.
    keep
        Hypotheses per image; at most two for each direction of the grid.
    generator
        Turns the grid; without one it is as it is.
    reference
        Work in plain torch instead of the kernel, which it defines; for tests.

    Returns
    -------
    PoseHypotheses
        Best first; log-weights are log-likelihood gains over no particle at all, nats.
    """
    rotation = search.rotations(None if generator is None else random_rotations(1, generator)[0])
    comparison = Comparison(search, volume, noise_power, rotation)
    parts = []
    for start in range(0, len(batch), CHUNK):
        images = search.within_reach(batch[start : start + CHUNK])
        views = (
            _find_by_reference(comparison, images)
            if reference
            else find_views(comparison, images, Asked.everything(search, len(images)))
        )
        parts.append(best_poses(search, rotation, views, keep))
    return PoseHypotheses.concatenate(parts)


def best_poses(
    search: PosteriorSearch, rotation: Float[Tensor, "directions 3 3"], views: Views, keep: int
) -> PoseHypotheses:
    """The best of each image's views as poses; ``rotation`` to the grid's directions."""
    best = views.score.topk(min(keep, views.score.shape[1]), dim=1)
    shift, angle = views.shift.gather(1, best.indices), views.angle.gather(1, best.indices)
    block, side, lane = torch.unravel_index(best.indices, (search.blocks, 2, LANES))
    found = rotation[block * LANES + lane]
    found = torch.where((side == 1)[..., None, None], found @ _FLIP, found)
    return PoseHypotheses(found @ _turn_back(angle, search.grid.angles), search.shifts[shift.long()], best.values)


def _turn_back(angle: Tensor, angles: int) -> Float[Tensor, "*batch 3 3"]:
    """About z by minus an in-plane angle of the grid."""
    psi = (angle + 0.5) * (2 * np.pi / angles)
    cosine, sine, zero, one = psi.cos(), psi.sin(), torch.zeros_like(psi), torch.ones_like(psi)
    rows = (cosine, sine, zero, -sine, cosine, zero, zero, zero, one)
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def find_views(comparison: Comparison, batch: ParticleBatch, asked: Asked) -> Views:
    """The best shift and in-plane angle of the directions that each image is asked for."""
    _, spectrum, _, power = comparison.prepare(batch)
    arguments = comparison.kernel_arguments(spectrum, power)
    shape = (len(batch), comparison.search.blocks, 2, LANES)
    score, shift, angle = (np.zeros(shape, np.float32) for _ in range(3))

    def work(start: int, stop: int, thread: int) -> None:
        best_views_kernel(
            *arguments, asked.begin, asked.end, asked.block, asked.shift, score, shift, angle, start, stop
        )

    run_in_threads(work, len(batch), max(1, torch.get_num_threads()))
    return Views(*(torch.from_numpy(part).flatten(1) for part in (score, shift, angle)))


def _find_by_reference(comparison: Comparison, batch: ParticleBatch) -> Views:
    """The same of all directions in plain torch, image by image."""
    _, spectrum, _, power = comparison.prepare(batch)
    found = []
    for i in range(len(batch)):
        score = comparison.scores(spectrum[i], power[i])
        score = score.unflatten(3, (comparison.search.blocks, LANES)).permute(3, 1, 4, 0, 2)
        angles = score.shape[-1]
        best = score.flatten(3).max(3)
        shift, angle = best.indices // angles, best.indices % angles
        found.append([part.flatten().float() for part in (best.values, shift, angle)])
    return Views(*(torch.stack(part) for part in zip(*found, strict=True)))
