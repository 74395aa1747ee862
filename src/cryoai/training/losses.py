"""What the networks are trained on: reconstruction costs, and the winner among a particle's hypotheses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, disk_to_images
from cryoai.geometry.shells import radial_distance

Domain = Literal["fourier", "real"]


@dataclass(frozen=True)
class Loss:
    """How a volume's images are compared with the particles; another loss is another class with these members.

    Attributes
    ----------
    scale
        Typical magnitude of the images' coefficients: what residuals count in where they are not whitened.
    whiten
        Divide residuals by the noise spectrum; otherwise it is plain L2 that counts, also where hypotheses are
        scored.
    domain
        Where residuals are measured.
    mask_radius_px
        In real space only pixels closer to the centre count; None: all.
    symmetrized
        The better of an image and its copy turned by π is trained (Levy et al. 2022, eq. 10).
    """

    scale: float = 1.0
    whiten: bool = True
    domain: Domain = "fourier"
    mask_radius_px: float | None = None
    symmetrized: bool = False

    def cost(
        self,
        model: Complex[Tensor, "*batch n"],
        images: Complex[Tensor, "*batch n"],
        disk: FourierDisk,
        noise_power: Float[Tensor, " shells"],
    ) -> Float[Tensor, "*batch"]:
        """What is minimised, for each image.

        Parameters
        ----------
        model, images
            Coefficients on ``disk``.
        disk
            Where they are.
        noise_power
            ``E|noise|²`` per shell.
        """
        precision = self._precision(disk, noise_power)
        if self.domain == "real":
            return real_cost(model, images, precision, disk, self.mask_radius_px)
        return fourier_cost(model, images, precision)

    def scoring_noise(self, noise_power: Float[Tensor, " shells"]) -> Float[Tensor, " shells"]:
        """The noise that hypotheses are scored with: white where the loss is L2, so that it chooses its winners."""
        if self.whiten:
            return noise_power
        coefficients = torch.arange(len(noise_power), dtype=noise_power.dtype)
        return (noise_power @ coefficients / coefficients.sum()).expand_as(noise_power)

    def _precision(self, disk: FourierDisk, noise_power: Float[Tensor, " shells"]) -> Float[Tensor, " n"]:
        device = disk.shell.device
        if self.whiten:
            return 1 / noise_power.to(device)[disk.shell]
        return (torch.tensor(self.scale, device=device) ** -2).expand(len(disk))


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
    mask_radius_px: float | None = None,
) -> Float[Tensor, "*batch"]:
    """The same in real space: mean squared residual over the pixels, inside a circle if asked.

    Without a mask this is `fourier_cost` times ``2 n / box²`` (Parseval; the disk holds one of each Friedel pair).

    Parameters
    ----------
    model, images, precision, disk
        As in `fourier_cost`, and the disk they are on.
    mask_radius_px
        Only pixels closer to the centre count.
    """
    residual = disk_to_images((model - images) * precision.sqrt(), disk)
    squared = residual.square()
    if mask_radius_px is not None:
        inside = radial_distance(disk.box_size, 2).to(squared.device) <= mask_radius_px
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
