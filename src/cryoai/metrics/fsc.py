"""Fourier shell correlation, where it crosses a threshold, and its correction for the mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import fft3, ifft3, largest_radius
from cryoai.geometry.shells import half_space_radius, sum_per_shell

_RANDOMISE_BELOW = 0.8
# A mask smears each coefficient over a few neighbours: right behind the randomisation shell the masked maps
# still share what leaks from coefficients that were not randomised, so correction starts two shells later.
_TRANSITION_SHELLS = 2


@dataclass(frozen=True)
class FscCurve:
    """Fourier shell correlation of two maps.

    Attributes
    ----------
    shell
        1, 2, … up to the largest usable shell (even boxes stop one below Nyquist).
    correlation
        FSC of each shell, −1 to 1.
    box_size
        px.
    voxel_size
        Å.
    """

    shell: Int[np.ndarray, " shells"]
    correlation: Float[np.ndarray, " shells"]
    box_size: int
    voxel_size: float = 1.0

    def crossing(self, threshold: float) -> float:
        """Shell at which the curve *first* falls below ``threshold``, by linear interpolation.

        The search starts at shell 1 and takes the first crossing even where the curve rises again later, as
        the field does; shell 0 counts as a correlation of 1. A curve that never falls below gives Nyquist,
        ``box_size / 2`` (a resolution of 2 px).
        """
        below = np.flatnonzero(self.correlation < threshold)
        if len(below) == 0:
            return self.box_size / 2
        first = int(below[0])
        before = 1.0 if first == 0 else float(self.correlation[first - 1])
        after = float(self.correlation[first])
        return float(self.shell[first]) - 1 + (before - threshold) / (before - after)

    def resolution_px(self, threshold: float) -> float:
        """``box_size / crossing``, px; infinite for a threshold of 1 that is never met."""
        crossing = self.crossing(threshold)
        return self.box_size / crossing if crossing > 0 else math.inf

    def resolution_angstrom(self, threshold: float) -> float:
        """Resolution at which the curve falls below ``threshold``, Å."""
        return self.resolution_px(threshold) * self.voxel_size


@dataclass(frozen=True)
class CorrectedFsc:
    """The curves of `phase_randomised_fsc`.

    Attributes
    ----------
    corrected
        The FSC with the mask's own correlations removed; the one to report.
    masked, unmasked
        FSC of the half-maps with and without the mask.
    randomised
        FSC of the masked half-maps whose phases were randomised beyond ``randomisation_shell``.
    randomisation_shell
        First shell with random phases.
    """

    corrected: FscCurve
    masked: FscCurve
    unmasked: FscCurve
    randomised: FscCurve
    randomisation_shell: int


def compute_fsc(
    a: Float[Tensor, "box box box"],
    b: Float[Tensor, "box box box"],
    mask: Float[Tensor, "box box box"] | None = None,
    *,
    voxel_size: float = 1.0,
) -> FscCurve:
    """Fourier shell correlation of two maps.

    ``FSC(s) = Re Σ A B* / sqrt(Σ|A|² Σ|B|²)`` over the coefficients whose radius rounds to ``s`` (Harauz and
    van Heel, Optik 73, 1986). A shell where one of the maps is zero gives 0.

    Parameters
    ----------
    a, b
        Real-space maps (z, y, x), any unit; origin at ``box // 2``.
    mask
        Multiplies both maps before the transform.
    voxel_size
        Å; only carried along for `FscCurve.resolution_angstrom`.
    """
    if mask is not None:
        a, b = a * mask, b * mask
    return _spectra_fsc(fft3(a), fft3(b), a.shape[-1], voxel_size)


def phase_randomised_fsc(
    half1: Float[Tensor, "box box box"],
    half2: Float[Tensor, "box box box"],
    mask: Float[Tensor, "box box box"],
    generator: torch.Generator | None = None,
    *,
    voxel_size: float = 1.0,
) -> CorrectedFsc:
    """Masked half-map FSC, corrected for the correlations that the mask itself makes.

    Chen et al., Ultramicroscopy 135 (2013): phases are randomised in both half-maps from the shell where the
    unmasked FSC falls below 0.8; whatever correlation the masked, randomised maps show there (``FSC_n``) is
    the mask's, and ``FSC = (FSC_t − FSC_n) / (1 − FSC_n)`` removes it from the masked FSC ``FSC_t``.

    Parameters
    ----------
    half1, half2
        Independent half-maps (z, y, x).
    mask
        Between 0 and 1, soft edged.
    generator
        Source of the random phases (on the CPU).
    voxel_size
        Å.
    """
    box = half1.shape[-1]
    unmasked = compute_fsc(half1, half2, voxel_size=voxel_size)
    masked = compute_fsc(half1, half2, mask, voxel_size=voxel_size)
    start = max(1, math.ceil(unmasked.crossing(_RANDOMISE_BELOW)))
    noise1, noise2 = (_randomise_phases(half, start, generator) for half in (half1, half2))
    randomised = compute_fsc(noise1, noise2, mask, voxel_size=voxel_size)
    total, noise = masked.correlation, randomised.correlation
    # FSC_n ≥ 1 cannot be corrected: the mask explains everything, and the shell proves nothing.
    corrected = np.where(noise < 1 - 1e-6, (total - noise) / np.maximum(1 - noise, 1e-6), 0.0)
    corrected = np.where(masked.shell < start + _TRANSITION_SHELLS, total, corrected)
    curve = FscCurve(masked.shell, corrected, box, voxel_size)
    return CorrectedFsc(curve, masked, unmasked, randomised, start)


def _spectra_fsc(
    a: Complex[Tensor, "z y half"], b: Complex[Tensor, "z y half"], box_size: int, voxel_size: float
) -> FscCurve:
    """Correlate two half-space transforms as `fft3` gives them."""
    shell = half_space_radius(a.shape, device=a.device).round().long().flatten()
    count = largest_radius(box_size) + 1
    # Each coefficient stands for itself and for its Friedel mate, but for those of the plane kx = 0.
    weight = torch.full((a.shape[-1],), 2.0, dtype=torch.float64, device=a.device)
    weight[0] = 1.0
    inside = (shell >= 1) & (shell < count)
    weight, shell = weight.expand(a.shape).flatten()[inside], shell[inside]
    a, b = a.flatten()[inside], b.flatten()[inside]

    def total(values: Tensor) -> Tensor:
        return sum_per_shell(values.double() * weight, shell, count)[1:]

    norm = (total(a.abs() ** 2) * total(b.abs() ** 2)).sqrt()
    correlation = torch.where(norm > 0, total((a * b.conj()).real) / norm.clamp(min=1e-300), 0.0)
    return FscCurve(np.arange(1, len(correlation) + 1), correlation.cpu().numpy(), box_size, voxel_size)


def _randomise_phases(
    volume: Float[Tensor, "box box box"], start: int, generator: torch.Generator | None
) -> Float[Tensor, "box box box"]:
    """Keep a map's amplitudes and replace its phases from shell ``start`` on."""
    box = volume.shape[-1]
    # The phases of white noise are uniform and already have the Friedel symmetry of a real map.
    noise = fft3(torch.randn(volume.shape, generator=generator).to(volume))
    spectrum = fft3(volume)
    beyond = half_space_radius(spectrum.shape, device=volume.device).round() >= start
    random = spectrum.abs() * noise / noise.abs().clamp(min=1e-30)
    return ifft3(torch.where(beyond, random, spectrum), box)
