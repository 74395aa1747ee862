"""How alike two maps of a bootstrap are, wherever they lie."""

from __future__ import annotations

from cryoai.geometry.fourier import resample
from cryoai.metrics.alignment import align_maps, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.physics.slicing import FourierVolume, map_from_volume

# Two starts whose maps correlate less than this, averaged over their shells, found different molecules. Starts of
# runs that end right agreed to 0.98 or better, wrong ones have agreed to 0.71 (docs/benchmarks.md, Noise).
AGREEMENT_THRESHOLD = 0.8

AGREEMENT_OF_SHELLS = 0.65
"""Starts that ended early must agree so well in every shell, or they are made again with all their steps. Right
ones do to 0.73, those of real apoferritin, whose outer shells were not right, to 0.57."""


def compare_volumes(volume: FourierVolume, reference: FourierVolume, radius: int) -> tuple[float, float]:
    """Mean and lowest FSC of two maps within some shells, after alignment over rotation, shift and hand."""
    size = 2 * (radius + 1)
    density, target = (resample(map_from_volume(one), size, 3) for one in (volume, reference))
    alignment = align_maps(density, target)
    shells = compute_fsc(apply_alignment(density, alignment), target).correlation[:radius]
    return alignment.correlation, float(shells.min())
