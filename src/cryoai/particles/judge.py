"""Looking at every image once: which are unusable, how bright each is, and whether protein is white or black."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.geometry.shells import radial_distance
from cryoai.particles.contrast import ContrastTest, skew_is_sure

# Background is what lies outside this share of the half box; noise dominates it when its variance is at least
# this share of the whole image's.
_BACKGROUND_RADIUS = 0.9
_NOISE_DOMINATED = 0.5
# Numbers beyond this overflow where float32 squares and adds them.
_LARGEST = 1e15
# An image is looked at for hot pixels where its largest deviation exceeds so many of its standard deviations. A
# pixel is hot where it stands out from the median of its neighbours so many times more than all but a few do: by
# 20 standard deviations of white noise; the sharpest peaks of noise-free images stand out 5.5 times. More than this
# share of an image are no single pixels.
_SUSPECT, _HOT, _LARGEST_HOT_SHARE = 8.0, 8.0, 0.01
# Brightness (standard deviation) is out of line beyond this factor from the set's median, and beyond so many of the
# set's own (robust) standard deviations of its logarithm: unnormalised sets differ by small factors.
_WILD_FACTOR, _WILD_SIGMAS = 10.0, 8.0


@dataclass(frozen=True)
class Judgement:
    """What was learned from the images alone.

    Attributes
    ----------
    usable
        (n,) False for images that are left out.
    scale
        (n,) factor that brings each image to the set's common noise level, times ``contrast``; 0 if unusable.
    contrast
        1 if protein is white as it should be, -1 if the images are to be inverted.
    contrast_skew, contrast_error
        Skewness of the mean image, positive for white protein, and its standard error.
    empty
        (n,) constant, or not finite.
    wild
        (n,) of another brightness than the rest by orders of magnitude.
    clipped
        (n,) with hot pixels that were replaced by their neighbours.
    """

    usable: Bool[np.ndarray, " n"]
    scale: Float[np.ndarray, " n"]
    contrast: int
    contrast_skew: float
    contrast_error: float
    empty: Bool[np.ndarray, " n"]
    wild: Bool[np.ndarray, " n"]
    clipped: Bool[np.ndarray, " n"]

    @property
    def contrast_is_sure(self) -> bool:
        """Whether the images tell their contrast."""
        return skew_is_sure(self.contrast_skew, self.contrast_error)

    def warnings(self) -> list[str]:
        """What is wrong with which images, one sentence for each kind."""
        total = len(self.usable)
        left_out = "and are left out (particles {}); they keep their rows with confidence 0"
        kinds = (
            (self.empty, "images are constant or not finite " + left_out),
            (self.wild, "images are brighter or darker than the rest by orders of magnitude " + left_out),
            (self.clipped, "images have hot pixels, which take the values around them (particles {})"),
        )
        return [
            f"{int(which.sum())} of {total} " + text.format(_named(np.flatnonzero(which)))
            for which, text in kinds
            if which.any()
        ]


class Judge:
    """Collects statistics chunk by chunk; `verdict` sums them up."""

    def __init__(self, box_size: int) -> None:
        self._background = radial_distance(box_size, 2) > _BACKGROUND_RADIUS * box_size / 2
        self._empty: list[np.ndarray] = []
        self._clipped: list[np.ndarray] = []
        self._variance: list[np.ndarray] = []
        self._background_variance: list[np.ndarray] = []
        self._contrast = ContrastTest()
        self._weight = torch.zeros(0)

    def look(self, images: Float[Tensor, "m box box"]) -> Float[Tensor, "m box box"]:
        """Take note of some images; returns them without hot pixels, and the unusable ones set to zero."""
        finite = (images.abs() <= _LARGEST).flatten(1).all(1)
        images = torch.where(finite[:, None, None], images, 0.0)
        images, clipped = _without_hot_pixels(images)
        flat = images.flatten(1).double()
        variance = flat.var(1)
        constant = variance <= (1e-6 * flat.mean(1).abs()) ** 2 + 1e-30
        usable = finite & ~constant
        self._empty.append((~usable).numpy())
        self._clipped.append((clipped & usable).numpy())
        self._variance.append(variance.numpy())
        self._background_variance.append(images[:, self._background].double().var(1).numpy())
        self._weight = torch.where(usable, variance.clamp(min=1e-30).rsqrt(), 0.0)
        return torch.where(usable[:, None, None], images, 0.0)

    def look_at_contrast(
        self, coefficients: Complex[Tensor, "m n"], ctf: Float[Tensor, "m n"], disk: FourierDisk
    ) -> None:
        """Take note of the outline of the images that `look` was shown last."""
        self._contrast.look(coefficients, ctf, disk, self._weight)

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
        empty, clipped = np.concatenate(self._empty), np.concatenate(self._clipped)
        variance = np.concatenate(self._variance)
        wild = _out_of_line(variance, ~empty)
        usable = ~empty & ~wild
        scale = np.zeros(len(usable), np.float32)
        if usable.any():
            background = np.concatenate(self._background_variance)[usable]
            scale[usable] = _scales(variance[usable], background, self._background)
        skew, error = self._contrast.skew()
        auto = stated_sign or (-1 if skew < 0 and skew_is_sure(skew, error) else 1)
        contrast = {"auto": auto, "yes": -1, "no": 1}[invert_contrast]
        return Judgement(usable, scale * contrast, contrast, skew, error, empty, wild, clipped & usable)


def _without_hot_pixels(
    images: Float[Tensor, "m box box"],
) -> tuple[Float[Tensor, "m box box"], Bool[Tensor, " m"]]:
    """The images with single wild pixels replaced by the median of their neighbours, and which had some.

    Only images whose extremes are out of proportion are looked at: in all others no pixel can be that hot.
    """
    flat = images.flatten(1).double()
    centred = flat - flat.mean(1, keepdim=True)
    largest = centred.abs().amax(1)
    suspect = (largest > _SUSPECT * centred.square().mean(1).sqrt()).nonzero()[:, 0]
    clipped = torch.zeros(len(images), dtype=torch.bool)
    if len(suspect) == 0:
        return images, clipped
    images = images.clone()
    for row in suspect.tolist():
        middle = _neighbours(images[row].double()).median(0).values
        stands_out = (images[row].double() - middle).abs()
        hot = stands_out > _HOT * stands_out.flatten().quantile(1 - 2 * _LARGEST_HOT_SHARE)
        if 0 < int(hot.sum()) <= _LARGEST_HOT_SHARE * hot.numel():
            images[row][hot] = middle[hot].to(images)
            clipped[row] = True
    return images, clipped


def _neighbours(image: Float[Tensor, "box box"]) -> Float[Tensor, "8 box box"]:
    """The eight pixels around each; images are reflected at their edges."""
    padded = torch.nn.functional.pad(image[None, None], (1, 1, 1, 1), mode="reflect")[0, 0]
    box = len(image)
    places = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    return torch.stack([padded[dy : dy + box, dx : dx + box] for dy, dx in places])


def _out_of_line(variance: Float[np.ndarray, " n"], usable: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Which images are brighter or darker than the others by more than sets ever differ within."""
    if usable.sum() < 3:
        return np.zeros(len(variance), bool)
    level = 0.5 * np.log(np.maximum(variance, 1e-300))
    centre = np.median(level[usable])
    spread = 1.4826 * np.median(np.abs(level[usable] - centre))
    return usable & (np.abs(level - centre) > max(math.log(_WILD_FACTOR), _WILD_SIGMAS * spread))


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


def _named(rows: Int[np.ndarray, " m"]) -> str:
    """Rows as a user counts them; of many the first."""
    return ", ".join(str(row + 1) for row in rows[:10]) + (", …" if len(rows) > 10 else "")
