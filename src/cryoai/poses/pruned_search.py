"""Exhaustive search in two steps: everything at few shells, and at many what that leaves open.

The cost of comparing everything grows with the fifth power of the radius. At few shells the right pose need not be
the best, but it is among the better ones; only blocks of directions about those, at the shifts about theirs, are
compared within the whole radius.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.rotations import random_rotations
from cryoai.physics.polar_kernels import LANES
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.posterior import Comparison, PosteriorSearch
from cryoai.poses.search import translation_step
from cryoai.poses.view_search import CHUNK, Asked, Views, best_poses, find_views, search_views
from cryoai.tensors import ParticleBatch, PoseHypotheses

# Shells of the first step, as a share of the radius; the radius up to which one step is cheap enough.
_COARSE_SHARE, _ONE_STEP = 0.7, 9
# Views of the first step that are gone on with: at most so many, not so many nats below the best, and not so large
# a share of its gain, of which the nearest view of a grid loses some.
_MOST_VIEWS, _NATS_BELOW, _SHARE_BELOW = 192, 20.0, 0.2
# How far about a pose of the first step the second one looks, in steps of the first one's grid.
_NEAR = 0.8


class PrunedSearch:
    """A grid that is searched in two steps, or in one where that is cheap enough.

    Parameters
    ----------
    box_size, pixel_size, shells, support, max_shift, finer, symmetry
        As in `PosteriorSearch`.
    """

    def __init__(
        self,
        box_size: int,
        pixel_size: float,
        shells: int,
        support: float,
        max_shift: float,
        finer: float = 1.0,
        symmetry: str = "C1",
    ) -> None:
        self._fine = PosteriorSearch(
            box_size, pixel_size, shells, support, max_shift, finer=finer, symmetry=symmetry
        )
        self._coarse: PosteriorSearch | None = None
        if shells > _ONE_STEP:
            first = max(_ONE_STEP, round(_COARSE_SHARE * shells))
            self._coarse = PosteriorSearch(box_size, pixel_size, first, support, max_shift, symmetry=symmetry)
            self._shifts = _shifts_near(self._coarse, self._fine)

    @torch.no_grad()
    def __call__(
        self,
        batch: ParticleBatch,
        volume: FourierVolume,
        noise_power: Float[Tensor, " any_shells"],
        keep: int,
        generator: torch.Generator | None = None,
    ) -> PoseHypotheses:
        """The best poses of each image, one for each of its best viewing directions; as `search_views`.

        Where fewer views than are kept lie near those of the first step, what fills up has a weight of -1e30.
        """
        if self._coarse is None:
            return search_views(self._fine, batch, volume, noise_power, keep, generator)
        turn = None if generator is None else random_rotations(1, generator)[0]
        rotation = self._fine.rotations(turn)
        fine = Comparison(self._fine, volume, noise_power, rotation)
        coarse = Comparison(self._coarse, volume, noise_power, self._coarse.rotations(turn))
        blocks = _blocks_near(self._coarse, self._fine, turn)
        parts = []
        for start in range(0, len(batch), CHUNK):
            images = batch[start : start + CHUNK]
            asked = Asked.everything(self._coarse, len(images))
            asked = self._near(self._coarse, find_views(coarse, self._coarse.within_reach(images), asked), blocks)
            views = find_views(fine, self._fine.within_reach(images), asked)
            parts.append(best_poses(self._fine, rotation, views, keep))
        return PoseHypotheses.concatenate(parts)

    def _near(self, coarse: PosteriorSearch, views: Views, blocks_near: Tensor) -> Asked:
        """What of the fine grid lies near the best views of the coarse one."""
        best = views.score.topk(min(_MOST_VIEWS, views.score.shape[1]), dim=1)
        highest = best.values[:, :1]
        least = highest - _NATS_BELOW - _SHARE_BELOW * highest.clamp(min=0)
        image, rank = (best.values > least).nonzero(as_tuple=True)
        view = best.indices[image, rank]
        block, _, lane = torch.unravel_index(view, (coarse.blocks, 2, LANES))
        blocks = blocks_near[block * LANES + lane]
        shifts = self._shifts[views.shift[image, view].long()]
        # One more block and shift, where those that do not exist go.
        asked = torch.zeros(len(best.values), self._fine.blocks + 1, len(self._fine.shifts) + 1, dtype=torch.bool)
        asked[image[:, None, None], blocks[:, :, None], shifts[:, None]] = True
        asked = asked[:, :-1, :-1]
        end = asked.sum((1, 2)).cumsum(0)
        _, block, shift = asked.nonzero(as_tuple=True)
        begin = torch.cat((end.new_zeros(1), end[:-1]))
        return Asked(begin.numpy(), end.numpy(), block.int().numpy(), shift.int().numpy())


def _blocks_near(
    coarse: PosteriorSearch, fine: PosteriorSearch, turn: Float[Tensor, "3 3"] | None
) -> Int[Tensor, "directions most"]:
    """Blocks of the fine grid about each direction of the coarse one, or about a mate; -1 where there are fewer."""
    about, among = coarse.directions(turn), fine.directions(turn)
    angle = _NEAR * math.sqrt(2 * math.pi / len(coarse.group) / len(about))
    near = torch.zeros(len(about), len(among), dtype=torch.bool)
    for element in coarse.group:
        near |= (about @ element @ among.T).abs() > math.cos(angle)
    return _list_true(near.unflatten(1, (fine.blocks, LANES)).any(2))


def _shifts_near(coarse: PosteriorSearch, fine: PosteriorSearch) -> Int[Tensor, "shifts most"]:
    """Shifts of the fine grid about each of the coarse one; -1 where there are fewer."""
    step = translation_step(coarse.grid.shells, coarse.box_size * coarse.pixel_size)
    return _list_true((coarse.shifts[:, None] - fine.shifts).abs().amax(2) <= _NEAR * step)


def _list_true(table: Tensor) -> Int[Tensor, "rows most"]:
    """The columns that are true in each row, then -1."""
    most = int(table.sum(1).max())
    order = table.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return torch.where(table.gather(1, order), order, -1)
