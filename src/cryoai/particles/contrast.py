"""Whether protein is white or black, from what images or a map show at low resolution.

Protein is denser than the ice around it, and compact: whatever its shape, most of a map (or of a mean image) is
ice, a little below the mean, and the protein stands out far above it. The distribution of the values is skewed to
the side of the protein, for a hollow shell as for a solid ball.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, disk_to_images, fft3, ifft3
from cryoai.geometry.shells import half_space_radius, sum_per_shell

# Shells that carry the outline; the first is that of the box.
_LAST_SHELL = 8
_LAST_SHELL_OF_MAP = 10
# Where the CTF has passed less than this share of its best, the mean image is not raised further.
_RIDGE = 0.01
_GROUPS = 20
# A particle that fills the image turns the skew around: shells as wide as the box reach -0.5, real and simulated
# particles of ordinary size 0.8 and more (docs/method.md). Noise alone has errors that are as large.
_SURE_SKEW, _SURE_ERRORS = 0.7, 5.0
# Maps have more solvent: those of shells as wide as the box have 2.3, of particles 0.8 to 6, of noise 0.2.
_SURE_SKEW_OF_MAP = 0.5


class ContrastTest:
    """The mean image, corrected for the CTF and averaged over all directions, and how its values are distributed.

    Images are not aligned, but for their centres: translations blur the mean, and leave its sign.
    """

    def __init__(self) -> None:
        self._signal: Tensor | None = None
        self._weight: Tensor | None = None
        self._seen = 0

    def look(
        self,
        coefficients: Complex[Tensor, "m n"],
        ctf: Float[Tensor, "m n"],
        disk: FourierDisk,
        weight: Float[Tensor, " m"],
    ) -> None:
        """Take note of some images; ``weight`` is one over the standard deviation of each, or 0 to leave it out."""
        self._disk = inside = disk.prefix(min(_LAST_SHELL, float(disk.radius[-1])))
        n, shells = len(inside), inside.shell_count
        group = (torch.arange(len(coefficients)) + self._seen) % _GROUPS
        self._seen += len(coefficients)
        ctf = ctf[:, :n].double()
        images = coefficients[:, :n].real.double() * weight[:, None].double()
        signal = sum_per_shell(ctf * images, inside.shell, shells)
        power = sum_per_shell(ctf**2 * (weight > 0)[:, None], inside.shell, shells)
        if self._signal is None or self._weight is None:
            self._signal, self._weight = torch.zeros(2, _GROUPS, shells, dtype=torch.float64)
        self._signal.index_add_(0, group, signal)
        self._weight.index_add_(0, group, power)

    def skew(self) -> tuple[float, float]:
        """Skewness of the mean image's pixels, positive for white protein, and its standard error (jackknife)."""
        if self._signal is None or self._weight is None or self._seen < 2:
            return 0.0, math.inf
        signal, weight = self._signal, self._weight
        used = weight.sum(1) > 0
        total = self._skew_of(signal.sum(0), weight.sum(0))
        groups = int(used.sum())
        if groups < 2:
            return total, math.inf
        without = [
            self._skew_of(signal.sum(0) - signal[g], weight.sum(0) - weight[g]) for g in used.nonzero()[:, 0]
        ]
        return total, math.sqrt((groups - 1) * float(np.var(without)))

    def _skew_of(self, signal: Tensor, weight: Tensor) -> float:
        count = torch.bincount(self._disk.shell, minlength=len(signal)).clamp(min=1)
        mean_weight = weight / count
        profile = (signal / count) / (mean_weight + _RIDGE * float(mean_weight.max()) + 1e-30)
        image = disk_to_images(profile[self._disk.shell].to(torch.complex64), self._disk)
        return skewness(image)


def skew_is_sure(skew: float, error: float) -> bool:
    """Whether a mean image of this skewness tells its contrast."""
    return abs(skew) >= _SURE_SKEW and abs(skew) >= _SURE_ERRORS * error


def contrast_of_map(density: Float[Tensor, "box box box"]) -> int:
    """1 where a map's protein is positive, -1 where it is negative, 0 where that cannot be told.

    Parameters
    ----------
    density
        Filtered, with its solvent; the zero frequency does not matter.
    """
    transform = fft3(density)
    radius = half_space_radius(transform.shape, device=density.device)
    transform[(radius < 0.5) | (radius > _LAST_SHELL_OF_MAP)] = 0
    skew = skewness(ifft3(transform, density.shape[-1]))
    return 0 if abs(skew) < _SURE_SKEW_OF_MAP else int(math.copysign(1, skew))


def skewness(values: Float[Tensor, "*any"]) -> float:
    """Third central moment over the 3/2 power of the second; 0 where all values are the same."""
    centred = values.double() - values.double().mean()
    variance = float(centred.square().mean())
    return float(centred.pow(3).mean()) / variance**1.5 if variance > 0 else 0.0
