"""Odds by which images show all of several classes as often, for as long as maps do not tell classes apart.

A map that has come further than the others explains every image better, whatever it shows, would be given all of
them, and come further still. What counts early on is not how well a class explains an image but how much better
than it explains the others: with the odds that share out a mini-batch evenly, each class gets the images that suit
it best (Sinkhorn's iteration, as in optimal transport). How far odds may go shrinks as maps become good: images
that are sure of their class are left there, and there may be more of one class than of another.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Nats between the odds of classes at first, and in the end.
_FARTHEST, _NEAREST = 30.0, 10.0
# What a share that is negligible is taken for, so that no odds make it count.
_LEAST = 1e-26
_ITERATIONS, _DAMPING = 100, 0.5


class ClassBalance:
    """The odds of so many classes, learnt from mini-batch to mini-batch."""

    def __init__(self, classes: int) -> None:
        self._log_odds = torch.full((classes,), 1 / classes).log().double()
        self._farthest = _FARTHEST

    @property
    def odds(self) -> list[float]:
        """How likely images are to show each class; sum to 1."""
        return self._log_odds.softmax(0).tolist()

    def loosen(self, progress: float) -> None:
        """Let classes differ more in size; from 0, evenly shared out, to 1, as images say that are sure."""
        self._farthest = _FARTHEST + (_NEAREST - _FARTHEST) * min(1.0, progress)

    def learn(self, map_share: Float[Tensor, "batch classes"], presence: Float[Tensor, " batch"]) -> None:
        """Take in a mini-batch.

        Parameters
        ----------
        map_share
            Posterior probabilities of classes, by the odds that there were.
        presence
            How likely each image is to show any.
        """
        gain = map_share.double().clamp(min=_LEAST).log() - self._log_odds.log_softmax(0)
        weight = (presence / presence.sum().clamp(min=1e-12)).double()
        odds, even = self._log_odds, 1 / len(self._log_odds)
        for _ in range(_ITERATIONS):
            share = weight @ (gain + odds).softmax(1)
            odds = odds - _DAMPING * (share.clamp(min=1e-12) / even).log()
            odds = (odds - odds.amax()).clamp(min=-self._farthest)
        self._log_odds = odds
