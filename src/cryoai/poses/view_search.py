"""Exhaustive search over views: the best in-plane angle and shift of every direction, by angular modes on rings."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.physics.kernels import run_in_threads
from cryoai.physics.polar_kernels import LANES, best_views_kernel
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.posterior import Comparison, PosteriorSearch
from cryoai.tensors import ParticleBatch, PoseHypotheses

# Images whose moved rings are held at once.
_CHUNK = 64
_FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0]))


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
    rotation = search.rotations(generator)
    comparison = Comparison(search, volume, noise_power, rotation)
    find = _find_by_reference if reference else _find_by_kernel
    parts = [find(comparison, search.within_reach(batch[i : i + _CHUNK])) for i in range(0, len(batch), _CHUNK)]
    score, shift, angle = (torch.cat(part) for part in zip(*parts, strict=True))
    best = score.topk(min(keep, score.shape[1]), dim=1)
    shift, angle = shift.gather(1, best.indices), angle.gather(1, best.indices)
    # Blocks of directions, each followed by the mirror images of the same.
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


def _find_by_kernel(comparison: Comparison, batch: ParticleBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Of every direction and side (batch, blocks · 2 · LANES): the best score, and its shift and angle."""
    _, spectrum, _, power = comparison.prepare(batch)
    arguments = comparison.kernel_arguments(spectrum, power)
    shape = (len(batch), comparison.search.blocks, 2, LANES)
    best, shift, angle = (np.zeros(shape, np.float32) for _ in range(3))

    def work(start: int, stop: int, thread: int) -> None:
        best_views_kernel(*arguments, best, shift, angle, start, stop)

    run_in_threads(work, len(batch), max(1, torch.get_num_threads()))
    return (
        torch.from_numpy(best).flatten(1),
        torch.from_numpy(shift).flatten(1),
        torch.from_numpy(angle).flatten(1),
    )


def _find_by_reference(comparison: Comparison, batch: ParticleBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain torch, image by image."""
    _, spectrum, _, power = comparison.prepare(batch)
    found = []
    for i in range(len(batch)):
        score = comparison.scores(spectrum[i], power[i])
        score = score.unflatten(3, (comparison.search.blocks, LANES)).permute(3, 1, 4, 0, 2)
        angles = score.shape[-1]
        best = score.flatten(3).max(3)
        shift, angle = best.indices // angles, best.indices % angles
        found.append([part.flatten().float() for part in (best.values, shift, angle)])
    score, shift, angle = (torch.stack(part) for part in zip(*found, strict=True))
    return score, shift, angle
