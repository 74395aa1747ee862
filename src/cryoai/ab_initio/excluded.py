"""Classes that an image is not of, by its inner shells alone: these tell most classes, at a fifth of the cost."""

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
# A class is excluded if they leave it so little chance, with a share of the particles of so much at least.
_EXCLUDED, _LEAST_SHARE = 1e-4, 0.01
# Asking pays where so large a share of classes is excluded; where it did not, so many mini-batches go unasked.
_WORTH_IT, _UNASKED = 0.35, 5


def inner_shells(shells: float) -> int:
    """How many of some shells are asked."""
    return int(_INNER * shells)


def exclude_classes(
    inner: PosteriorSearch,
    batch: ParticleBatch,
    volumes: Sequence[FourierVolume],
    noise_power: Float[Tensor, " shells"],
    shares: Sequence[float],
) -> Bool[Tensor, "batch classes"]:
    """Which classes each image is not of; never all of them.

    Parameters
    ----------
    inner
        Of the `inner_shells`.
    batch, volumes, noise_power
        The images, a map of each class, and ``E|noise|²`` per shell.
    shares
        Of the particles, those of each class.
    """
    gains = torch.stack([inner(batch, volume, noise_power).gain for volume in volumes], 1)
    chance = (gains + torch.tensor(shares).clamp(min=_LEAST_SHARE).log()).softmax(1)
    return chance <= _EXCLUDED


class Patience:
    """Whether it pays to ask: not before maps differ."""

    def __init__(self) -> None:
        self._unasked = 0

    def asks(self) -> bool:
        """Whether the next mini-batch is asked."""
        self._unasked = max(0, self._unasked - 1)
        return self._unasked == 0

    def learn(self, excluded: Bool[Tensor, "batch classes"]) -> None:
        """Take in what asking has brought."""
        if float(excluded.float().mean()) < _WORTH_IT:
            self._unasked = _UNASKED + 1
