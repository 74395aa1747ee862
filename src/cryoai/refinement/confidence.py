"""How likely it is that a particle's pose is right, from how well its image fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CONFIDENT = 0.5
"""A pose above this confidence is called confident, wherever poses are counted."""

_ITERATIONS = 50
# From fewer particles the scale of a good fit cannot be told; nor from a smaller share of the set.
_FEWEST_FOR_SCALE, _SMALLEST_SHARE_FOR_SCALE = 20, 0.05
# The best of about so many independent poses is what a search finds in an image without a particle.
_INDEPENDENT_POSES = 1e5
# Where poses found by search but wrong lie at first, in standard deviations below the right ones.
_WRONG_START, _WRONG_SPREAD = 6.0, 3.0
# Wrong poses are not looked for nearer to the right ones than this.
_WRONG_NEAREST = 2.0
# Searching again costs a multiple of a refinement round: at most this share of the particles.
_LARGEST_SEARCHED_SHARE = 0.3


def fit_quality(gain: Float[Tensor, " n"], expected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How far each log-likelihood gain lies from its expectation, in standard deviations.

    At the right pose and with a perfect map the gain is Gaussian around E with variance 2 E.
    """
    return (gain - expected) / (2 * expected.clamp(min=1e-6)).sqrt()


def noise_quality(expected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The `fit_quality` of an image without a particle, at the best pose that a search finds.

    At any one pose its gain is Gaussian around -E with variance 2 E, so that its quality lies at -√(2 E); the best
    of N independent poses lies about √(2 ln N) above that.
    """
    return math.sqrt(2 * math.log(_INDEPENDENT_POSES)) - (2 * expected.clamp(min=0)).sqrt()


@dataclass(frozen=True)
class FitScale:
    """Where the fit qualities of right poses lie.

    Attributes
    ----------
    centre, spread
        Mean and standard deviation; 0 and 1 for a perfect map.
    """

    centre: float = 0.0
    spread: float = 1.0


def measure_fit_scale(quality: Float[Tensor, " n"], expected: Float[Tensor, " n"]) -> FitScale:
    """Median and median absolute deviation of the particles that fit more like a right pose than like noise.

    The set's own median would take most of a set for right, whatever it holds. Where next to none fit, the scale is
    that of a perfect map.
    """
    values = quality.double().numpy()
    good = values[values > 0.5 * noise_quality(expected).double().numpy()]
    if len(good) < max(_FEWEST_FOR_SCALE, _SMALLEST_SHARE_FOR_SCALE * len(values)):
        return FitScale()
    centre = float(np.median(good))
    return FitScale(centre, max(1.4826 * float(np.median(np.abs(good - centre))), 1e-6))


@dataclass(frozen=True)
class FitSummary:
    """How well a whole set fits maps that it is not in: a wrong map falls short in every particle, not in some.

    Attributes
    ----------
    median_quality
        `fit_quality`, standard deviations; 0 for right poses in a right map.
    median_ratio
        Gain by expected gain; 1 for right poses in a right map, less the more of the map is not in the images.
    median_expected
        Expected gain, nats: how much of a particle stands above the noise.
    median_noise_quality
        `noise_quality`: where images of nothing would lie. Near 0 or above, no single fit tells anything.
    fraction_confident
        Share of the poses that are confident.
    fraction_present
        Share of the particles that show what their maps hold rather than nothing, or something without features.
    """

    median_quality: float
    median_ratio: float
    median_expected: float
    median_noise_quality: float
    fraction_confident: float
    fraction_present: float


def summarise_fits(
    quality: Float[Tensor, " n"],
    expected: Float[Tensor, " n"],
    confidence: Float[Tensor, " n"],
    presence: Float[Tensor, " n"],
) -> FitSummary:
    """The fits of the particles that take part, medians over those that are present; NaN where there are none.

    Parameters
    ----------
    quality, expected
        `fit_quality` and expected gain (nats), measured against a map that each particle is not in.
    confidence
        Of each pose.
    presence
        Of each particle.
    """
    is_present = presence > CONFIDENT
    gain = expected + quality * (2 * expected.clamp(min=1e-6)).sqrt()
    medians = (quality, gain / expected.clamp(min=1e-6), expected, noise_quality(expected))
    return FitSummary(
        *(float(values[is_present].nanmedian()) if is_present.any() else math.nan for values in medians),
        fraction_confident=float((confidence > CONFIDENT).float().mean()),
        fraction_present=float(is_present.float().mean()),
    )


def doubtful_rows(
    used: Int[np.ndarray, " m"], quality: Float[Tensor, " m"], deviations: float, scale: FitScale
) -> Int[np.ndarray, " k"]:
    """Rows whose fit lies ``deviations`` standard deviations below a good one; a bounded share of them.

    Parameters
    ----------
    used
        Rows of the particles.
    quality
        Their fits.
    deviations
        In units of the scale's spread.
    scale
        Of good fits.
    """
    values = quality.double().numpy()
    order = np.argsort(values)[: int(_LARGEST_SEARCHED_SHARE * len(values))]
    return np.sort(used[order[values[order] < scale.centre - deviations * scale.spread]])


def estimate_confidence(
    quality: Float[Tensor, " n"], expected: Float[Tensor, " n"], scale: FitScale | None = None
) -> Float[Tensor, " n"]:
    """Posterior probability of belonging to the well-fitting population, from a mixture of two Gaussians.

    The right poses' Gaussian is ``scale``; the wrong poses' mean, spread and share are fitted by
    expectation-maximisation. What fits better than the centre is not doubted, unless noise would fit as well.

    Parameters
    ----------
    quality, expected
        Of each particle, measured against a map that it is not in.
    scale
        Of good fits; by default that of `measure_fit_scale`.
    """
    values = quality.double().numpy()
    scale = scale or measure_fit_scale(quality, expected)
    z = (values - scale.centre) / scale.spread
    noise = (noise_quality(expected).double().numpy() - scale.centre) / scale.spread
    share, mean, width = 0.05, -_WRONG_START, _WRONG_SPREAD
    wrong = np.zeros(len(z))
    for _ in range(_ITERATIONS):
        wrong = share * _gaussian(z, mean, width)
        wrong = wrong / (wrong + (1 - share) * _gaussian(z, 0.0, 1.0) + 1e-300)
        wrong = np.where(z > 0, 0.0, np.where(z < min(mean, -_WRONG_START), 1.0, wrong))
        total = wrong.sum()
        share = float(np.clip(total / len(z), 1e-4, 1 - 1e-4))
        if total > 1:
            mean = min(float((wrong * z).sum() / total), -_WRONG_NEAREST)
            width = max(float(np.sqrt((wrong * (z - mean) ** 2).sum() / total)), 1.0)
    # A worse fit is never more trusted, also where the two Gaussians cross twice.
    order = np.argsort(z)
    right = np.empty(len(z))
    right[order] = np.maximum.accumulate(1 - wrong[order])
    # Where the best of many poses would fit an image of nothing as well, a good fit says nothing.
    return torch.from_numpy(np.where(noise > -_WRONG_NEAREST, np.minimum(right, CONFIDENT), right)).float()


def _gaussian(z: np.ndarray, mean: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((z - mean) / width) ** 2) / width
