"""The one loop over particles: each is handed to a function together with the map that it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.views import order_by_view
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.tensors import ParticleBatch

OnChunk = Callable[[int], None]

_COEFFICIENTS_AT_ONCE = 2**21
"""Of the particles held at once: 16 MiB, which a dozen arrays of that size go with."""


@dataclass(frozen=True, eq=False)
class References:
    """The maps that particles are compared with or inserted into, and which of them is whose.

    Attributes
    ----------
    index
        (n,) the place in ``volumes`` of each particle's map; -1 for particles left out.
    volumes
        The maps; empty where particles are only sorted.
    """

    index: Int[np.ndarray, " n"]
    volumes: tuple[FourierVolume, ...] = ()

    @property
    def used(self) -> Int[np.ndarray, " m"]:
        """The particles that have a map."""
        return np.flatnonzero(self.index >= 0)

    def swapped(self) -> References:
        """Each half's particles with the map of the other half, which holds none of them."""
        return replace(self, index=np.where(self.index >= 0, 1 - self.index, -1))


def one_reference(data: ParticleData, volume: FourierVolume) -> References:
    """The same map for all usable particles."""
    index = np.full(len(data), -1)
    index[data.usable_rows] = 0
    return References(index, (volume.to(data.device),))


@dataclass(frozen=True, eq=False)
class Portion:
    """Some particles that share a map.

    Attributes
    ----------
    rows
        (m,) which particles of the set.
    batch
        Their images, and perhaps those of others.
    image_of
        (m,) their places in ``batch``.
    map_index
        Which map is theirs.
    """

    rows: Int[np.ndarray, " m"]
    batch: ParticleBatch
    image_of: Int[Tensor, " m"]
    map_index: int
    references: References

    @property
    def volume(self) -> FourierVolume:
        """Their map."""
        return self.references.volumes[self.map_index]

    @property
    def own_batch(self) -> ParticleBatch:
        """Their images alone, in the order of `rows`."""
        return self.batch if len(self.image_of) == len(self.batch) else self.batch[self.image_of]


def map_particles(
    data: ParticleData,
    references: References,
    function: Callable[[Portion], None],
    rows: Int[np.ndarray, " m"] | None = None,
    radius: float | None = None,
    on_chunk: OnChunk = lambda done: None,
    views: Float[Tensor, "n 3 3"] | None = None,
) -> None:
    """Call a function with all particles, a portion of one map at a time.

    Parameters
    ----------
    data, references
        The particles, and which map is whose.
    function
        Called with each portion; what it finds it keeps.
    rows
        Which particles; by default all that have a map.
    radius
        Shells of the images; by default all.
    on_chunk
        Called with the number of particles done so far.
    views
        Rotations of all particles: those with like views come one after the other, which compare with, or add to,
        the same part of a map, in the cache then. By default particles come in the order of ``rows``.
    """
    rows = references.used if rows is None else rows
    if views is not None:
        rows = rows[order_by_view(views[rows])]
    size = particles_at_once(data)
    done = 0
    for part, batch in data.batches(rows, size, radius):
        for index in range(max(1, len(references.volumes), int(references.index.max(initial=0)) + 1)):
            mine = np.flatnonzero(references.index[part] == index)
            if len(mine):
                function(Portion(part[mine], batch, torch.from_numpy(mine), index, references))
        done += len(part)
        on_chunk(done)


def particles_at_once(data: ParticleData) -> int:
    """How many particles are held at once, by the coefficients of each."""
    return max(1, _COEFFICIENTS_AT_ONCE // len(data.disk))
