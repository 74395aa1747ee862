"""From inserted particles to half-maps, their FSC, and Wiener-filtered maps and references."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.shells import half_space_radius, mean_per_shell
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.alignment import mirror_volume
from cryoai.metrics.fsc import FscCurve, compute_fsc, phase_randomised_fsc
from cryoai.physics.slicing import (
    FourierVolume,
    VolumeAccumulator,
    grid_to_real,
    volume_from_map,
)
from cryoai.physics.symmetrize import symmetric_gridding_correction
from cryoai.refinement.masks import make_solvent_mask

# An FSC of 1 would mean no noise at all; the cap keeps the signal-to-noise ratio finite.
_LARGEST_FSC = 0.9999
# Of the random phases that show what the mask makes; any will do, the same in every round.
_PHASE_SEED = 1
_SMALLEST_SSNR = 1e-3
# Gaps in Fourier space are filled up to this share of the mean weight, so that half-maps stay finite.
_GAP_FILL = 1e-3
_SPHERE_EDGE_PX = 4.0


@dataclass(frozen=True, eq=False)
class HalfMaps:
    """Two independent reconstructions and what their agreement tells.

    Attributes
    ----------
    accumulators
        One per half.
    unfiltered
        The half-maps in real space, without mask or filter.
    mask
        Soft, around the particle.
    fsc
        Of the masked half-maps, without the correlations that the mask itself makes.
    radius
        Largest shell inserted.
    """

    accumulators: tuple[VolumeAccumulator, VolumeAccumulator]
    unfiltered: tuple[Tensor, Tensor]
    mask: Float[Tensor, "box box box"]
    fsc: FscCurve
    radius: float

    def negated(self) -> HalfMaps:
        """The other contrast."""
        first, second = self.accumulators
        half1, half2 = self.unfiltered
        return replace(self, accumulators=(first.negated(), second.negated()), unfiltered=(-half1, -half2))

    def mirrored(self) -> HalfMaps:
        """The other hand, z → -z, about the centre voxel.

        The first plane of an even box has no partner inside it: there the maps keep what they had (see
        `mirror_volume`), while maps from the sums show what lay just outside.
        """
        first, second = self.accumulators
        return replace(
            self,
            accumulators=(first.mirrored(), second.mirrored()),
            unfiltered=(mirror_volume(self.unfiltered[0]), mirror_volume(self.unfiltered[1])),
            mask=mirror_volume(self.mask),
        )

    def ssnr(self) -> Float[Tensor, " shells"]:
        """Spectral signal-to-noise ratio of one half-map per shell (0 up to the radius): FSC / (1 - FSC)."""
        correlation = np.clip(np.concatenate(([1.0], self.fsc.correlation)), 0, _LARGEST_FSC)
        # Beyond the first shell without agreement nothing is believed, however the noise correlates there.
        below = np.flatnonzero(correlation[3:] < 0.05)
        if len(below):
            correlation[3 + below[0] :] = 0
        return torch.from_numpy((correlation / (1 - correlation)).astype(np.float32)).clamp(min=_SMALLEST_SSNR)

    def wiener_map(self, half: int | None = None) -> Float[Tensor, "box box box"]:
        """Masked, Wiener-filtered map of one half, or of both together.

        ``V = Σ CTF·y/σ² / (Σ CTF²/σ² + τ)``, where τ is the shell's mean weight over its SSNR
        (Scheres, J. Struct. Biol. 2012, eq. 6); twice the particles have twice the SSNR.
        """
        first, second = self.accumulators
        total = first + second if half is None else self.accumulators[half]
        return self.filtered_map(total, 2 if half is None else 1)

    def filtered_map(self, total: VolumeAccumulator, share: float) -> Float[Tensor, "box box box"]:
        """A masked, Wiener-filtered map of other sums, with some multiple of the signal to noise of one half."""
        density = _wiener_filter(total, share * self.ssnr(), self.radius)
        return (density - _solvent_level(density, self.mask)) * self.mask

    def reference(self, half: int) -> FourierVolume:
        """What a half's particles are compared with: its own Wiener map, ready for slicing."""
        return volume_from_map(self.wiener_map(half), self.radius)


def make_half_maps(
    accumulators: tuple[VolumeAccumulator, VolumeAccumulator],
    radius: float,
    voxel_size: float,
    diameter_px: float | None,
) -> HalfMaps:
    """Reconstruct both halves, find the mask, and compare them.

    Parameters
    ----------
    accumulators
        Sums over each half.
    radius
        Largest shell inserted.
    voxel_size
        Å.
    diameter_px
        Of the particle, if known.
    """
    unfiltered = (_unfiltered(accumulators[0], radius), _unfiltered(accumulators[1], radius))
    box = accumulators[0].box_size
    largest = max(box // 2, box - 8)
    inner = (largest if diameter_px is None else min(diameter_px, largest)) / 2
    sphere = make_soft_sphere(box, inner + _SPHERE_EDGE_PX, _SPHERE_EDGE_PX).to(unfiltered[0].device)
    first = HalfMaps(accumulators, unfiltered, sphere, compute_fsc(unfiltered[0], unfiltered[1], sphere), radius)
    ssnr = 2 * first.ssnr()
    density = _wiener_filter(accumulators[0] + accumulators[1], ssnr, radius)
    noise = _wiener_filter(_noise_alone(*accumulators), ssnr, radius)
    mask = make_solvent_mask(density - _solvent_level(density, sphere), noise, diameter_px)
    generator = torch.Generator().manual_seed(_PHASE_SEED)
    fsc = phase_randomised_fsc(*unfiltered, mask, generator, voxel_size=voxel_size).corrected
    return HalfMaps(accumulators, unfiltered, mask, fsc, radius)


def _wiener_filter(total: VolumeAccumulator, ssnr: Float[Tensor, " shells"], radius: float) -> Tensor:
    """The map of some sums; shells beyond those of ``ssnr`` count as noise."""
    distance = half_space_radius(total.weight.shape, total.padding, total.weight.device)
    shell = distance.round().long()
    mean = mean_per_shell(total.weight.flatten(), shell.flatten())
    ssnr = torch.nn.functional.pad(ssnr, (0, max(0, len(mean) - len(ssnr))), value=_SMALLEST_SSNR)
    tau = mean / ssnr[: len(mean)].to(mean.device)
    values = total.numerator / (total.weight + tau[shell] + 1e-20)[..., None]
    values[distance > radius] = 0
    return _to_map(values, total)


def _noise_alone(first: VolumeAccumulator, second: VolumeAccumulator) -> VolumeAccumulator:
    """Sums with the noise of ``first + second``, from which what the halves share cancels.

    A numerator is ``weight · map`` plus noise of variance ``weight``: ``√(w₂/w₁) N₁ - √(w₁/w₂) N₂`` leaves the map
    out and has the noise's variance ``w₁ + w₂``, whichever half saw more of it.
    """
    both = ((first.weight > 0) & (second.weight > 0)).to(first.weight)
    ratio = (second.weight.clamp(min=1e-30) / first.weight.clamp(min=1e-30)).sqrt()
    numerator = first.numerator * (both * ratio)[..., None] - second.numerator * (both / ratio)[..., None]
    return replace(first, numerator=numerator, weight=first.weight + second.weight)


def _unfiltered(total: VolumeAccumulator, radius: float) -> Tensor:
    values = total.numerator / (total.weight + _GAP_FILL * total.weight.mean() + 1e-20)[..., None]
    distance = half_space_radius(total.weight.shape, total.padding, total.weight.device)
    values[distance > radius] = 0
    return _to_map(values, total)


def _to_map(values: Tensor, total: VolumeAccumulator) -> Tensor:
    """Real-space map; what insertion spread over neighbouring grid points is undone."""
    density = grid_to_real(values, total.box_size, total.padding)
    correction = symmetric_gridding_correction(total.box_size, total.padding, total.symmetry)
    return density / correction.to(density.device)


def _solvent_level(density: Tensor, mask: Tensor) -> Tensor:
    """What stands for zero: the images have no zero frequency, so only the solvent tells."""
    solvent = 1 - mask
    return (density * solvent).sum() / solvent.sum().clamp(min=1)
