"""Images of a bootstrap that show no particle: left out as soon as a map tells them from those that do.

Early on a map explains every particle a little and no junk; later it has taken in what junk it was given.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.poses.featureless import share_of_particles, tells

# Share of a new mini-batch in the running share of particles.
_RATE = 0.2


class JunkWatch:
    """How likely images are to be junk, learnt from mini-batch to mini-batch."""

    def __init__(self) -> None:
        self._share: float | None = None

    @property
    def share_of_particles(self) -> float:
        """How many images show a particle; 1 while no map tells."""
        return 1.0 if self._share is None else self._share

    def rival(self, featureless: Float[Tensor, " batch"]) -> Float[Tensor, " batch"] | None:
        """What images have to gain by a map, so that they count by half; None while no map tells.

        Parameters
        ----------
        featureless
            `featureless_gain` of each.
        """
        if self._share is None:
            return None
        return featureless - torch.logit(torch.tensor(self._share), eps=1e-6)

    def learn(self, difference: Float[Tensor, " batch"]) -> None:
        """Take in how much more a map gains in each image of a mini-batch than a featureless field."""
        if not tells(difference):
            self._share = None
            return
        share = share_of_particles(difference)
        self._share = share if self._share is None else self._share + _RATE * (share - self._share)
