"""What an image does not show, by its inner shells alone: at a tenth of the cost they tell most of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cryoai.physics.slicing import FourierVolume
from cryoai.poses.posterior import PosteriorSearch
from cryoai.tensors import ParticleBatch

# Share of the shells that are asked.
_INNER = 0.67
# A class, moved by some shift, is excluded if they leave it so little chance.
_EXCLUDED = 3e-5
# Asking pays where so large a share is excluded; where it did not, so many mini-batches go unasked.
_WORTH_IT, _UNASKED = 0.35, 5
# A shift of all shells stands between those of the inner ones; so many lattice steps away they speak for it.
_NEAR = 1.05


def inner_shells(shells: float) -> int:
    """How many of some shells are asked."""
    return int(_INNER * shells)


def exclude_poses(
    search: PosteriorSearch,
    inner: PosteriorSearch,
    batch: ParticleBatch,
    volumes: Sequence[FourierVolume],
    noise_power: Float[Tensor, " shells"],
    shares: Sequence[float],
) -> Bool[Tensor, "batch classes shifts"]:
    """Which classes, moved by which shifts of a search, each image does not show; never all of them.

    Parameters
    ----------
    search, inner
        In all shells, whose shifts are meant, and in the `inner_shells`.
    batch, volumes, noise_power
        The images, a map of each class, and ``E|noise|²`` per shell.
    shares
        Of the particles, those of each class.
    """
    even = inner(batch, volumes, noise_power).where
    weighed = even * torch.tensor(shares)[:, None]
    # By the odds and by the fit alone: inner shells would share images out by other odds than all shells do.
    chance = torch.maximum(even, weighed / weighed.sum((1, 2), keepdim=True).clamp(min=1e-30))
    possible = (chance > _EXCLUDED).float() @ _neighbours(search.shifts, inner.shifts).float().T
    return possible == 0


def _neighbours(shifts: Float[Tensor, "n 2"], lattice: Float[Tensor, "m 2"]) -> Bool[Tensor, "n m"]:
    """Which points of a lattice are about each shift; the nearest at least."""
    distance = torch.cdist(shifts, lattice)
    step = torch.cdist(lattice, lattice)[0, 1:].amin() if len(lattice) > 1 else torch.tensor(1.0)
    nearest = distance <= distance.amin(1, keepdim=True) * (1 + 1e-4)
    return (distance <= _NEAR * step) | nearest


class ExclusionWatch:
    """Whether it pays to ask the inner shells, learnt from mini-batch to mini-batch: not before maps tell."""

    def __init__(self) -> None:
        self._unasked = 0

    def asks(self) -> bool:
        """Whether the next mini-batch is asked."""
        self._unasked = max(0, self._unasked - 1)
        return self._unasked == 0

    def learn(self, excluded: Bool[Tensor, "batch classes shifts"]) -> None:
        """Take in what asking has brought."""
        if float(excluded.float().mean()) < _WORTH_IT:
            self._unasked = _UNASKED + 1
