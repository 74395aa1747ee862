"""What a refinement carries from round to round."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cryoai.particles.dataset import ParticleData
from cryoai.particles.grouping import split_groups
from cryoai.run.streams import numpy_stream


@dataclass(frozen=True, eq=False)
class RefinementState:
    """Everything a refinement carries from round to round; one entry per particle of the set.

    Attributes
    ----------
    rotation
        (n, 3, 3).
    translation
        (n, 2), Å.
    half
        (n,) 0 or 1; -1 for particles left out.
    noise_power
        ``E|noise|²`` per shell.
    confidence
        (n,) probability that the pose is in the right basin; 0 for particles left out.
    rotation_std, translation_std
        (n,) radians and Å: in the rounds from the Gauss-Newton Hessian, at the end those of the posterior.
    certainty
        (n,) share of the pose in the posterior over all that its last global search found; 1 if there was none.
    is_confirmed
        (n,) whether that search found the pose that the particle had.
    presence
        (n,) probability that the particle shows what its map holds, and not junk.
    """

    rotation: Float[Tensor, "n 3 3"]
    translation: Float[Tensor, "n 2"]
    half: Int[np.ndarray, " n"]
    noise_power: Float[Tensor, " shells"]
    confidence: Float[Tensor, " n"]
    rotation_std: Float[Tensor, " n"]
    translation_std: Float[Tensor, " n"]
    certainty: Float[Tensor, " n"]
    is_confirmed: Bool[np.ndarray, " n"]
    presence: Float[Tensor, " n"]

    def rows(self, half: int) -> Int[np.ndarray, " m"]:
        """The particles of one half."""
        return np.flatnonzero(self.half == half)

    @property
    def used(self) -> Int[np.ndarray, " m"]:
        """The particles that take part."""
        return np.flatnonzero(self.half >= 0)

    @property
    def present(self) -> Int[np.ndarray, " m"]:
        """Those of them that are likely to show what their maps hold."""
        return np.flatnonzero((self.half >= 0) & (self.presence > 0.5).numpy())


def start_refinement(data: ParticleData, noise_power: Tensor, seed: int) -> RefinementState:
    """Split the usable particles in two at random, copies together; poses are still to be found."""
    n = len(data)
    half = split_groups(data.grouping.group, data.usable_rows, numpy_stream(seed, "half-sets"))
    return RefinementState(
        torch.eye(3).repeat(n, 1, 1), torch.zeros(n, 2), half, noise_power,
        torch.zeros(n), torch.full((n,), np.nan), torch.full((n,), np.nan),
        torch.ones(n), np.zeros(n, bool), torch.ones(n),
    )  # fmt: skip


def merge_states(
    first: RefinementState, second: RefinementState, of_second: Bool[np.ndarray, " n"]
) -> RefinementState:
    """One state of what two say of the same particles; the noise is the first one's."""
    rows = torch.from_numpy(of_second)
    merged = {}
    for part in fields(first):
        old, new = getattr(first, part.name), getattr(second, part.name)
        if part.name != "noise_power":
            both = old.clone() if isinstance(old, torch.Tensor) else old.copy()
            chosen = rows if isinstance(old, torch.Tensor) else of_second
            both[chosen] = new[chosen]
            merged[part.name] = both
    return replace(first, **merged)
