"""Which class every particle belongs to, by the likelihoods of the bootstrap's maps over all poses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.ab_initio.bootstrap import BootstrapResult, make_posterior_search
from cryoai.ab_initio.excluded import exclude_poses, inner_shells
from cryoai.ab_initio.images import BootstrapImages
from cryoai.ab_initio.shares import share_out
from cryoai.geometry.fourier import full_radius
from cryoai.metrics.classes import SINK
from cryoai.particles.dataset import ParticleData
from cryoai.poses.featureless import featureless_gain, tells
from cryoai.poses.posterior import MASK_MARGIN, PosteriorSearch
from cryoai.run.progress import Progress
from cryoai.tensors import ParticleBatch

_CHUNK = 500


@dataclass(frozen=True, eq=False)
class Classification:
    """Classes of all particles of a set.

    Attributes
    ----------
    label
        (n,) the likeliest class, from 1; `SINK` for none, and for images that cannot be used.
    confidence
        (n,) probability of the label.
    classes
        How many there are.
    """

    label: Int[np.ndarray, " n"]
    confidence: Float[Tensor, " n"]
    classes: int

    @classmethod
    def of_probability(cls, probability: Float[Tensor, "n classes_and_sink"]) -> Classification:
        """The likeliest class of each; the first column is the sink's."""
        return cls(probability.argmax(1).numpy(), probability.amax(1), probability.shape[1] - 1)

    @property
    def counts(self) -> Int[np.ndarray, " classes_and_sink"]:
        """How many images are in the sink, and in each class."""
        return np.bincount(self.label, minlength=self.classes + 1)

    def largest_first(self) -> tuple[Classification, list[int]]:
        """The same with classes numbered by their size, and the places, from 0, that they had."""
        order = np.argsort(-self.counts[1:], kind="stable")
        number = np.zeros(self.classes + 1, int)
        number[order + 1] = np.arange(1, self.classes + 1)
        return replace(self, label=number[self.label]), order.tolist()


@torch.no_grad()
def classify(
    data: ParticleData, start: BootstrapResult, images: BootstrapImages, progress: Progress
) -> Classification:
    """The posterior probability of each class, and of none, for every particle.

    The shares of classes and sink are estimated from all particles (expectation-maximisation). Where maps do not
    tell particles from what has no features (`cryoai.poses.featureless.tells`), nothing goes to the sink.

    Parameters
    ----------
    data
        The particles.
    start
        The maps, and their shares to begin with.
    images
        What the start was made of: the particle's size and the range of shifts are as there.
    progress
        Of the run.
    """
    rows = data.usable_rows
    radii = (int(start.radius), inner_shells(start.radius))
    search, inner = (make_posterior_search(images, radius) for radius in radii)
    reach = min(int(start.radius) + MASK_MARGIN, full_radius(data.disk.box_size))
    parts = []
    with progress.step("Classifying every particle", len(rows)) as done:
        for _, batch in data.batches(rows, _CHUNK, reach):
            featureless = featureless_gain(
                batch.prefix(search.grid.shells + 0.5), start.noise_power, search.mask_radius
            )
            parts.append(torch.cat((featureless[:, None], _gains(batch, start, search, inner)), 1))
            done(sum(len(one) for one in parts))
    gain = torch.cat(parts).double()
    if not tells((gain[:, 1:].amax(1) - gain[:, 0]).float()):
        gain[:, 0] = -torch.inf
    probability = torch.zeros(len(data), gain.shape[1])
    probability[:, SINK] = 1
    probability[rows] = share_out(gain, torch.tensor([1.0, *start.shares], dtype=torch.double)).float()
    return Classification.of_probability(probability)


def _gains(
    batch: ParticleBatch, start: BootstrapResult, search: PosteriorSearch, inner: PosteriorSearch
) -> Float[Tensor, "batch classes"]:
    """By each class, over all poses; -inf for classes that the inner shells all but exclude."""
    if len(start.volumes) == 1:
        return search(batch, start.volume, start.noise_power).gain[:, None]
    excluded = exclude_poses(search, inner, batch, start.volumes, start.noise_power, start.shares)
    gains = torch.full(excluded.shape[:2], -torch.inf)
    for index, volume in enumerate(start.volumes):
        still = torch.nonzero(~excluded[:, index].all(1))[:, 0]
        if len(still):
            gains[still, index] = search(batch[still], volume, start.noise_power).gain
    return gains
