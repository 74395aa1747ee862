"""The images of a particle set, read from their stacks when asked for."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.io import StackReader
from cryoai.types import ParticleSet


class ParticleImages:
    """Lazy access to images that may lie in thousands of stacks.

    Parameters
    ----------
    particles
        Whose images.

    Attributes
    ----------
    box_size
        px; the same for all stacks.

    Raises
    ------
    InputError
        A stack is missing, truncated or not square; the stacks' boxes differ.
    """

    def __init__(self, particles: ParticleSet) -> None:
        self._particles = particles
        self._readers: dict[int, StackReader] = {}
        self.box_size = self._reader(int(particles.stack_index[0])).box_size

    def __len__(self) -> int:
        return len(self._particles)

    def _reader(self, stack: int) -> StackReader:
        if stack not in self._readers:
            reader = StackReader(self._particles.stack_paths[stack])
            if self._readers and reader.box_size != self.box_size:
                raise InputError(
                    f"has images of {reader.box_size} px, the stacks before it of {self.box_size} px",
                    file=reader.path,
                    advice="split the particles by box size, or rescale them to one box",
                )
            self._readers[stack] = reader
        return self._readers[stack]

    def read(self, rows: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m box box"]:
        """Images of some particles, in the order of ``rows`` (counted from 0), as they are on disk."""
        images = np.empty((len(rows), self.box_size, self.box_size), np.float32)
        stacks = self._particles.stack_index[rows]
        for stack in np.unique(stacks):
            chosen = np.flatnonzero(stacks == stack)
            images[chosen] = self._reader(int(stack)).read(self._particles.image_index[rows[chosen]])
        return images
