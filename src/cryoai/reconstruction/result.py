"""What a reconstruction found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from cryoai.ab_initio.starts import AbInitioResult
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.metrics.alignment import MIRROR, mirror_volume
from cryoai.metrics.fsc import CorrectedFsc
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.poses import RefinementState
from cryoai.refinement.rounds import RoundSummary
from cryoai.run.config import ReconstructConfig
from cryoai.training.trainer import StepRecord
from cryoai.types import ParticleSet

_NYQUIST_TOLERANCE = 1.0001
"""A crossing this close to two voxels is the end of the curve, not of the data."""


@dataclass(frozen=True, eq=False)
class ReconstructionResult:
    """What a run found; the same is on disk in its folder.

    Attributes
    ----------
    folder
        Where ``map.mrc``, ``half1.mrc``, ``half2.mrc``, ``mask.mrc``, ``particles.star`` and ``fsc.csv`` are.
    config
        The options of the run.
    particles
        The input, all rows.
    state
        Final poses, half-sets, confidence and standard deviations, one entry per row of the input.
    halves
        The half-maps.
    density
        The Wiener-filtered, masked map.
    voxel_size
        Å.
    fsc
        Half-map FSC, corrected for the mask.
    ab_initio
        The starts of the bootstrap; None with known poses and ``--method amortized``.
    rounds
        What each refinement round did.
    warnings
        What the user should know before trusting the result.
    seconds
        Wall time of each part.
    encoder
        The trained encoder, if there is one.
    training
        One record per step of its training.
    """

    folder: Path
    config: ReconstructConfig
    particles: ParticleSet
    state: RefinementState
    halves: HalfMaps
    density: Float[np.ndarray, "box box box"]
    voxel_size: float
    fsc: CorrectedFsc
    ab_initio: AbInitioResult | None
    rounds: tuple[RoundSummary, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    encoder: TrainedEncoder | None = None
    training: tuple[StepRecord, ...] = ()

    @property
    def resolution(self) -> float:
        """Å, where the corrected half-map FSC falls below 0.143."""
        return self.fsc.corrected.resolution_angstrom(0.143)

    @property
    def at_nyquist(self) -> bool:
        """Whether the voxel size, rather than the particles, limits the resolution."""
        return self.resolution <= 2 * _NYQUIST_TOLERANCE * self.voxel_size


def mirror_result(result: ReconstructionResult) -> ReconstructionResult:
    """The other hand: the map reflected, and the rotations at which it looks the same."""
    reflect = torch.from_numpy(MIRROR).to(result.state.rotation)
    halves = result.halves
    mirrored = replace(
        halves,
        unfiltered=(mirror_volume(halves.unfiltered[0]), mirror_volume(halves.unfiltered[1])),
        mask=mirror_volume(halves.mask),
    )
    density = mirror_volume(torch.from_numpy(result.density)).numpy()
    state = replace(result.state, rotation=reflect @ result.state.rotation @ reflect)
    encoder = None if result.encoder is None else replace(result.encoder, mirrored=True)
    return replace(result, halves=mirrored, density=density, state=state, encoder=encoder)
