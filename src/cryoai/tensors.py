"""The tensors that pass between the package's parts: batches of particles and hypotheses about their poses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk


@dataclass(frozen=True, eq=False)
class ParticleBatch:
    """Particle images as Fourier coefficients on a disk, with their CTFs.

    Attributes
    ----------
    images
        (batch, n) orthonormal coefficients; protein positive.
    ctf
        (batch, n).
    disk
        The n frequencies, sorted by radius.
    pixel_size
        Å, of an image of ``disk.box_size``.
    """

    images: Complex[Tensor, "batch n"]
    ctf: Float[Tensor, "batch n"]
    disk: FourierDisk
    pixel_size: float

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> ParticleBatch:
        """Some of the particles."""
        return replace(self, images=self.images[rows], ctf=self.ctf[rows])

    @property
    def box_length(self) -> float:
        """Å, edge of the image."""
        return self.disk.box_size * self.pixel_size

    def to(self, device: torch.device | str) -> ParticleBatch:
        """The same particles on another device."""
        return replace(self, images=self.images.to(device), ctf=self.ctf.to(device), disk=self.disk.to(device))

    def prefix(self, radius: float) -> ParticleBatch:
        """The same particles inside a smaller radius."""
        n = self.disk.count(radius)
        if n == len(self.disk):
            return self
        return replace(
            self,
            images=self.images[:, :n].contiguous(),
            ctf=self.ctf[:, :n].contiguous(),
            disk=self.disk.prefix(radius),
        )


@dataclass(frozen=True, eq=False)
class PoseHypotheses:
    """Several poses for each particle, best first, with their log-likelihoods.

    Attributes
    ----------
    rotation
        (batch, h, 3, 3), image to volume coordinates.
    translation
        (batch, h, 2), Å.
    log_weight
        (batch, h) log-likelihood up to a constant per particle.
    """

    rotation: Float[Tensor, "batch h 3 3"]
    translation: Float[Tensor, "batch h 2"]
    log_weight: Float[Tensor, "batch h"]

    def __len__(self) -> int:
        return len(self.rotation)

    def __getitem__(self, rows: Any) -> PoseHypotheses:
        """Those of some of the particles."""
        return PoseHypotheses(self.rotation[rows], self.translation[rows], self.log_weight[rows])

    @staticmethod
    def concatenate(parts: Sequence[PoseHypotheses]) -> PoseHypotheses:
        """Those of the particles of all parts, one part after the other; of equal numbers each."""
        return PoseHypotheses(
            torch.cat([part.rotation for part in parts]),
            torch.cat([part.translation for part in parts]),
            torch.cat([part.log_weight for part in parts]),
        )

    def joined(self, other: PoseHypotheses) -> PoseHypotheses:
        """These of each particle, then the other ones of the same particle."""
        return PoseHypotheses(
            torch.cat((self.rotation, other.rotation), 1),
            torch.cat((self.translation, other.translation), 1),
            torch.cat((self.log_weight, other.log_weight), 1),
        )

    def posterior(self) -> Float[Tensor, "batch h"]:
        """Weights that sum to one over the hypotheses of a particle."""
        return torch.softmax(self.log_weight, dim=1)

    def sorted(self, keep: int | None = None) -> PoseHypotheses:
        """The ``keep`` best of each particle, best first."""
        order = self.log_weight.argsort(dim=1, descending=True)[:, :keep]
        rows = torch.arange(len(order), device=order.device)[:, None]
        return PoseHypotheses(
            self.rotation[rows, order], self.translation[rows, order], self.log_weight[rows, order]
        )
