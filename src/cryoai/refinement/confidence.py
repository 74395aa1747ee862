"""How likely it is that a particle's pose is right, from how well its image fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_ITERATIONS = 50
# From fewer particles the scale of a good fit cannot be told.
_FEWEST_FOR_SCALE = 20
# Where poses found by search but wrong lie at first, in standard deviations below the right ones.
_WRONG_START, _WRONG_SPREAD = 6.0, 3.0
# Searching again costs a multiple of a refinement round: at most this share of the particles.
_LARGEST_SEARCHED_SHARE = 0.3


def fit_quality(gain: Float[Tensor, " n"], expected: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How far each log-likelihood gain lies from its expectation, in standard deviations.

    At the right pose and with a perfect map the gain is Gaussian around E with variance 2 E.
    """
    return (gain - expected) / (2 * expected.clamp(min=1e-6)).sqrt()


@dataclass(frozen=True)
class FitScale:
    """Where the fit qualities of right poses lie.

    Attributes
    ----------
    centre, spread
        Mean and standard deviation.
    """

    centre: float
    spread: float


def measure_fit_scale(quality: Float[Tensor, " n"]) -> FitScale:
    """By the median and the median absolute deviation: most poses of a set are taken to be right."""
    values = quality.double().numpy()
    centre = float(np.median(values))
    return FitScale(centre, max(1.4826 * float(np.median(np.abs(values - centre))), 1e-6))


def doubtful_rows(
    used: Int[np.ndarray, " m"], quality: Float[Tensor, " m"], deviations: float, scale: FitScale | None = None
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
        Of good fits, by default that of `measure_fit_scale`.
    """
    scale = scale or measure_fit_scale(quality)
    values = quality.double().numpy()
    order = np.argsort(values)[: int(_LARGEST_SEARCHED_SHARE * len(values))]
    return np.sort(used[order[values[order] < scale.centre - deviations * scale.spread]])


def estimate_confidence(quality: Float[Tensor, " n"], scale: FitScale | None = None) -> Float[Tensor, " n"]:
    """Posterior probability of belonging to the well-fitting population, from a mixture of two Gaussians.

    The right poses' Gaussian is ``scale``, by default that of `measure_fit_scale`; the wrong poses' mean, spread
    and share are fitted by expectation-maximisation. What fits better than the centre is not doubted.
    """
    values = quality.double().numpy()
    if scale is None:
        if len(values) < _FEWEST_FOR_SCALE:
            return torch.ones(len(values))
        scale = measure_fit_scale(quality)
    centre, spread = scale.centre, scale.spread
    z = (values - centre) / spread
    share, mean, width = 0.05, -_WRONG_START, _WRONG_SPREAD
    wrong = np.zeros(len(z))
    for _ in range(_ITERATIONS):
        wrong = share * _gaussian(z, mean, width)
        wrong = wrong / (wrong + (1 - share) * _gaussian(z, 0.0, 1.0) + 1e-300)
        wrong = np.where(z > 0, 0.0, wrong)
        total = wrong.sum()
        share = float(np.clip(total / len(z), 1e-4, 0.6))
        if total > 1:
            mean = min(float((wrong * z).sum() / total), -2.0)
            width = max(float(np.sqrt((wrong * (z - mean) ** 2).sum() / total)), 1.0)
    # A worse fit is never more trusted, also where the two Gaussians cross twice.
    order = np.argsort(z)
    right = np.empty(len(z))
    right[order] = np.maximum.accumulate(1 - wrong[order])
    return torch.from_numpy(right).float()


def _gaussian(z: np.ndarray, mean: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((z - mean) / width) ** 2) / width
