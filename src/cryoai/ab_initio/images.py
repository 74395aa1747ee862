"""What a bootstrap works on: images to learn from, others to judge it by, their noise, and the particle's size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cryoai.particles.dataset import ParticleData
from cryoai.physics.noise import estimate_noise_outside
from cryoai.poses.posterior import MASK_MARGIN
from cryoai.run.config import BootstrapSettings
from cryoai.run.streams import numpy_stream
from cryoai.tensors import ParticleBatch

# Images that the noise is measured on.
_MEASURED = 4000


@dataclass(frozen=True, eq=False)
class BootstrapImages:
    """Images of a bootstrap, and what is measured before anything is aligned.

    Attributes
    ----------
    train
        What a start learns from, to `MASK_MARGIN` shells beyond the last radius where the box has them.
    held_out
        Images that no start sees, nor any copy of theirs.
    noise_power
        ``E|noise|²`` per shell, from outside the particle.
    support
        Radius of the particle, box lengths.
    settings
        The bootstrap's, with radii that exist in the box.
    symmetry
        That maps are given, with RELION's axes.
    """

    train: ParticleBatch
    held_out: ParticleBatch
    noise_power: Float[Tensor, " shells"]
    support: float
    settings: BootstrapSettings
    symmetry: str = "C1"


def choose_images(
    data: ParticleData,
    settings: BootstrapSettings,
    seed: int,
    diameter: float | None = None,
    symmetry: str = "C1",
) -> BootstrapImages:
    """A random subset to bootstrap from, and others held out (the same ones where there are very few).

    Parameters
    ----------
    data
        The particles.
    settings
        How many, and to which radius.
    seed
        Of the choice.
    diameter
        Of the particle, Å; None measures it.
    symmetry
        That maps are to have, with RELION's axes.
    """
    settings = settings.in_box(data.disk.box_size)
    rows = numpy_stream(seed, "bootstrap images").permutation(data.usable_rows)
    rows = rows[: settings.images + settings.held_out_images]
    held_out = min(settings.held_out_images, len(rows) // 5)
    train, test = np.sort(rows[held_out:]), np.sort(rows[:held_out])
    # A copy of an image that was trained on is not held out.
    train = train[~np.isin(data.grouping.group[train], data.grouping.group[test])]
    some = data.batch(np.sort(rows[:_MEASURED]))
    support = data.support(diameter)
    noise_power = estimate_noise_outside(some.images, some.disk, support).clamp(min=1e-12)
    reach = settings.last_radius + MASK_MARGIN
    held_out_batch = data.batch(test if len(test) else train, reach)
    return BootstrapImages(data.batch(train, reach), held_out_batch, noise_power, support, settings, symmetry)
