"""What an image may show instead of a particle: something without features that a map could share, or nothing.

The rival of every map is a random Gaussian field with a power of its own in each shell: ice, carbon, what has
aggregated, a strong gradient. It explains how much there is in a shell, not where; a map of what the image shows
explains that as well, and gains more the more its features say. Images of nothing are the field without power.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import disk_to_images, images_to_disk
from cryoai.geometry.shells import mean_per_shell
from cryoai.geometry.soft_masks import make_soft_disc
from cryoai.poses.posterior import MASK_EDGE
from cryoai.tensors import ParticleBatch

# A map tells what shows something else while so large a share of images prefers it to that by so many nats.
_TELLS, _TELLING_SHARE = 5.0, 0.15
_STEPS = 50


def featureless_gain(
    batch: ParticleBatch, noise_power: Float[Tensor, " any_shells"], mask_radius: float
) -> Float[Tensor, " batch"]:
    """Log-likelihood gain of the likeliest field over no particle at all, less what its freedom costs.

    In a shell of n coefficients with r times the power of noise, ``n (r - 1 - ln r) - ½ ln n``, where that is
    positive and r above 1: the second term is what one fitted power is worth (Schwarz, Ann. Statist. 1978).

    Parameters
    ----------
    batch
        The images, to the radius within which maps are compared.
    noise_power
        ``E|noise|²`` per shell, that maps are compared with as well.
    mask_radius
        Of the disc that maps are compared in, box lengths.
    """
    disk = batch.disk.in_smallest_box()
    mask = make_soft_disc(disk.box_size, (mask_radius + MASK_EDGE / 2) * disk.box_size, MASK_EDGE * disk.box_size)
    mask = mask.to(batch.images.device)
    masked = images_to_disk(disk_to_images(batch.images, disk) * mask, disk)
    kept = float(mask.square().mean())
    power = mean_per_shell(masked.real**2 + masked.imag**2, disk.shell, disk.shell_count)[:, 1:]
    count = kept * torch.bincount(disk.shell, minlength=disk.shell_count)[1:]
    ratio = (power / (kept * noise_power[1 : disk.shell_count])).clamp(min=1)
    gain = count * (ratio - 1 - ratio.log()) - 0.5 * count.clamp(min=1).log()
    return gain.clamp(min=0).sum(1)


def tells(difference: Float[Tensor, " n"]) -> bool:
    """Whether a map is good enough to say of images, a mixture, which of them show something else.

    Parameters
    ----------
    difference
        Of each image, the map's log-likelihood less its rival's.
    """
    return float((difference > _TELLS).float().mean()) >= _TELLING_SHARE


def share_of_particles(difference: Float[Tensor, " n"]) -> float:
    """How many of some images show what a map holds, by expectation-maximisation.

    Parameters
    ----------
    difference
        Of each image, the map's log-likelihood less its rival's.
    """
    share = torch.tensor(0.5)
    for _ in range(_STEPS):
        share = presence(difference, float(share)).mean()
    return float(share)


def presence(difference: Float[Tensor, " n"], share: float) -> Float[Tensor, " n"]:
    """Posterior probability that each image shows what the map holds.

    Parameters
    ----------
    difference
        Of each image, the map's log-likelihood less its rival's.
    share
        Of the images, those that do.
    """
    return (difference + torch.logit(torch.tensor(share), eps=1e-6)).sigmoid()
