"""Looking at every image once: which are unusable, how bright each is, and whether protein is white or black."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.geometry.shells import radial_distance

# A contrast sign is believed when the set's mean differs from zero by this many standard errors.
_CONTRAST_Z = 5.0
# Background is what lies outside this share of the half box; noise dominates it when its variance is at least
# this share of the whole image's.
_BACKGROUND_RADIUS = 0.9
_NOISE_DOMINATED = 0.5


@dataclass(frozen=True)
class Judgement:
    """What was learned from the images alone.

    Attributes
    ----------
    usable
        (n,) False for images that are not finite or constant.
    scale
        (n,) factor that brings each image to the set's common noise level, times ``contrast``; 0 if unusable.
    contrast
        1 if protein is white as it should be, -1 if the images are to be inverted.
    contrast_z
        Evidence for white, standard errors; negative for black.
    """

    usable: Bool[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    contrast: int
    contrast_z: float

    @property
    def contrast_is_sure(self) -> bool:
        """Whether the images tell their contrast."""
        return abs(self.contrast_z) >= _CONTRAST_Z


class Judge:
    """Collects statistics chunk by chunk; `verdict` sums them up."""

    def __init__(self, box_size: int) -> None:
        self._background = radial_distance(box_size, 2) > _BACKGROUND_RADIUS * box_size / 2
        self._usable: list[np.ndarray] = []
        self._variance: list[np.ndarray] = []
        self._background_variance: list[np.ndarray] = []
        self._blob: list[np.ndarray] = []

    def look(self, images: Float[Tensor, "m box box"]) -> Float[Tensor, "m box box"]:
        """Take note of some images; returns them with the unusable ones set to zero."""
        finite = torch.isfinite(images).flatten(1).all(1)
        images = torch.where(finite[:, None, None], images, 0.0)
        flat = images.flatten(1)
        variance = flat.double().var(1)
        level = flat.double().mean(1).abs()
        constant = variance <= (1e-6 * level) ** 2 + 1e-30
        usable = finite & ~constant
        self._usable.append(usable.numpy())
        self._variance.append(variance.numpy())
        self._background_variance.append(images[:, self._background].double().var(1).numpy())
        return torch.where(usable[:, None, None], images, 0.0)

    def compare_with_blob(
        self, coefficients: Complex[Tensor, "m n"], ctf: Float[Tensor, "m n"], disk: FourierDisk
    ) -> None:
        """Correlate images with a bright blob in the middle, seen through their CTFs."""
        blob = torch.exp(-2 * (math.pi * disk.radius / 8) ** 2) * (disk.radius > 1)
        self._blob.append((coefficients.real * ctf * blob).sum(1).double().numpy())

    def verdict(self, invert_contrast: str = "auto", stated_sign: int | None = None) -> Judgement:
        """Sum up.

        Parameters
        ----------
        invert_contrast
            ``"auto"``, ``"yes"`` or ``"no"``; ``"auto"`` inverts when the metadata say that protein is black, or
            say nothing and the images clearly show it.
        stated_sign
            What the metadata say: 1 for white protein, -1 for black, None for nothing.
        """
        usable = np.concatenate(self._usable)
        scale = np.zeros(len(usable), np.float32)
        if not usable.any():
            return Judgement(usable, scale, 1, 0.0)
        variance = np.concatenate(self._variance)[usable]
        scale[usable] = _scales(variance, np.concatenate(self._background_variance)[usable], self._background)
        blob = np.concatenate(self._blob)[usable] * scale[usable]
        error = blob.std() / math.sqrt(max(1, len(blob)))
        z = float(blob.mean() / error) if error > 0 else 0.0
        auto = stated_sign or (-1 if z < -_CONTRAST_Z else 1)
        contrast = {"auto": auto, "yes": -1, "no": 1}[invert_contrast]
        return Judgement(usable, scale * contrast, contrast, z)


def _scales(variance: np.ndarray, background_variance: np.ndarray, background: Tensor) -> np.ndarray:
    """One over each image's noise level, shrunk towards the set's by how much of the spread is real.

    Where the background is not noise (noise-free or downscaled images) all images get the same scale.
    """
    # The median: one wild image must not set the scale of all others.
    common = 1 / math.sqrt(np.median(variance))
    if len(variance) < 2 or np.median(background_variance) < _NOISE_DOMINATED * np.median(variance):
        return np.full(len(variance), common)
    log_level = 0.5 * np.log(np.maximum(background_variance, 1e-30))
    centre = np.median(log_level)
    # The standard deviation of n Gaussian pixels is known to 1 / sqrt(2 n).
    sampling = 1 / (2 * int(background.sum()))
    spread = np.var(np.clip(log_level, centre - 1, centre + 1))
    shrink = max(0.0, 1 - sampling / max(spread, 1e-12))
    return common * np.exp(-shrink * (log_level - centre))
