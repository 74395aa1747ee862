"""What the networks are trained on: reconstruction costs, and the winner among a particle's hypotheses."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, disk_to_images
from cryoai.geometry.shells import radial_distance

Domain = Literal["fourier", "real"]


def fourier_cost(
    model: Complex[Tensor, "*batch n"], images: Complex[Tensor, "*batch n"], precision: Float[Tensor, " n"]
) -> Float[Tensor, "*batch"]:
    """Mean squared residual over the disk, each coefficient over its noise power: L2, whitened.

    Parameters
    ----------
    model, images
        Coefficients on the same disk.
    precision
        One over the noise power; a constant gives the plain L2 loss.
    """
    residual = model - images
    return ((residual.real**2 + residual.imag**2) * precision).mean(-1)


def real_cost(
    model: Complex[Tensor, "*batch n"],
    images: Complex[Tensor, "*batch n"],
    precision: Float[Tensor, " n"],
    disk: FourierDisk,
    mask_radius: float | None = None,
) -> Float[Tensor, "*batch"]:
    """The same in real space: mean squared residual over the pixels, inside a circle if asked.

    Without a mask this is `fourier_cost` times ``2 n / box²`` (Parseval; the disk holds one of each Friedel pair).

    Parameters
    ----------
    model, images, precision, disk
        As in `fourier_cost`, and the disk they are on.
    mask_radius
        px; only pixels closer to the centre count.
    """
    residual = disk_to_images((model - images) * precision.sqrt(), disk)
    squared = residual.square()
    if mask_radius is not None:
        inside = radial_distance(disk.box_size, 2).to(squared.device) <= mask_radius
        return squared[..., inside].mean(-1)
    return squared.mean((-2, -1))


def pick_winner(
    cost: Float[Tensor, "batch h"], temperature: float = 0.0, generator: torch.Generator | None = None
) -> Int[Tensor, " batch"]:
    """The hypothesis that is trained: the cheapest, or drawn with weight ``exp(-cost / temperature)``.

    Taking the minimum over an image and its copy turned by π is the symmetrised loss (Levy et al. 2022, eq. 10);
    over any number of hypotheses, winner-takes-all. Drawing it keeps losers alive while the volume says little.
    """
    if temperature <= 0:
        return cost.argmin(1)
    # Costs that are not finite give no weights; their batch is skipped when the loss is seen.
    weight = torch.softmax(-(cost - cost.amin(1, keepdim=True)) / temperature, 1).cpu().nan_to_num(1.0)
    return torch.multinomial(weight, 1, generator=generator)[:, 0].to(cost.device)


def grid_targets(
    rotation: Float[Tensor, "batch 3 3"], anchors: Float[Tensor, "rotations 3 3"], width: float
) -> Float[Tensor, "batch rotations"]:
    """Soft classes over a grid of rotations: a Gaussian in the Frobenius distance, summing to one.

    Parameters
    ----------
    rotation
        What is to be classified.
    anchors
        The grid.
    width
        Standard deviation of the Frobenius distance, which is about √2 times the angle in radians.
    """
    squared = 6 - 2 * rotation.flatten(1) @ anchors.flatten(1).T
    return torch.softmax(-squared / (2 * width**2), 1)
