"""What a reconstruction found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from cryoai.ab_initio.agreement import AbInitioResult
from cryoai.ab_initio.classify import Classification
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.geometry.point_groups import point_group
from cryoai.metrics.alignment import MIRROR, mirror_volume
from cryoai.metrics.fsc import CorrectedFsc
from cryoai.metrics.views import ViewCoverage, measure_views
from cryoai.reconstruction.evidence import Evidence, gather_evidence
from cryoai.reconstruction.verdict import Verdict, judge
from cryoai.refinement.confidence import CONFIDENT, FitSummary
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.rounds import RoundSummary
from cryoai.refinement.state import RefinementState, merge_states
from cryoai.refinement.symmetry import NO_SYMMETRY, FoundSymmetry
from cryoai.run.config import ReconstructConfig
from cryoai.training.trainer import StepRecord
from cryoai.types import Map, ParticleSet

# A crossing this close to two voxels is the end of the curve, not of the data.
_NYQUIST_TOLERANCE = 1.0001


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
    fits
        How well the particles fit the half-map that they are not in.
    density
        The Wiener-filtered, masked map.
    voxel_size
        Å.
    fsc
        Half-map FSC, corrected for the mask.
    ab_initio
        The starts of the bootstrap; None with known poses and ``--method amortized``.
    shared_shells
        Shells within which both half-sets have seen the same map, so that their agreement there is no evidence.
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
    symmetry
        The point group that the map was given, or that was found in it.
    alone
        Probability that each particle is alone in its image, one entry per row of the input; None: not asked.
    """

    folder: Path
    config: ReconstructConfig
    particles: ParticleSet
    state: RefinementState
    halves: HalfMaps
    fits: FitSummary
    density: Float[np.ndarray, "box box box"]
    voxel_size: float
    fsc: CorrectedFsc
    ab_initio: AbInitioResult | None
    shared_shells: float
    rounds: tuple[RoundSummary, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    encoder: TrainedEncoder | None = None
    training: tuple[StepRecord, ...] = ()
    symmetry: FoundSymmetry = NO_SYMMETRY
    alone: Float[torch.Tensor, " n"] | None = None

    @property
    def resolution(self) -> float:
        """Å, where the corrected half-map FSC falls below 0.143."""
        return self.fsc.corrected.resolution_angstrom(0.143)

    @property
    def is_at_nyquist(self) -> bool:
        """Whether the voxel size limits the resolution, and not the data."""
        return self.resolution <= 2 * _NYQUIST_TOLERANCE * self.voxel_size

    @property
    def shows_it(self) -> Bool[np.ndarray, " n"]:
        """Which images are likely to show this map, and nothing beside; with given poses all that take part."""
        shown = np.zeros(len(self.particles), bool)
        shown[self.state.used if self.config.known_poses else self.state.present] = True
        if self.alone is not None and not self.config.known_poses:
            shown &= (self.alone > CONFIDENT).numpy()
        return shown

    @property
    def fraction_confident(self) -> float:
        """Share of the particles that take part whose pose is confident."""
        return float((self.state.confidence[self.state.used] > CONFIDENT).float().mean())

    @cached_property
    def views(self) -> ViewCoverage:
        """How evenly the particles that take part see the molecule, weighted by their confidence.

        With known poses there is no confidence, and all count alike.
        """
        used = self.state.used
        confidence = self.state.confidence[used].double().cpu().numpy()
        group = point_group(self.config.imposed_symmetry)
        return measure_views(self.state.rotation[used].double().cpu().numpy(), confidence, group=group)

    @cached_property
    def evidence(self) -> Evidence:
        """Every number that speaks for or against the map."""
        return gather_evidence(self)

    @property
    def verdict(self) -> Verdict:
        """Whether the molecule was found, why, and what would help."""
        return judge(self.evidence)


@dataclass(frozen=True, eq=False)
class ClassesResult:
    """What a run found, class by class; the same is on disk in its folder.

    Attributes
    ----------
    folder
        Of the run; where there are several classes, each has one of its own in it.
    classes
        In the order of their numbers, the largest first.
    classification
        Which particle is in which, by the bootstrap's maps; None where there is one class.
    too_small
        The bootstrap's maps of the classes that follow, which have too few particles to be refined.
    """

    folder: Path
    classes: tuple[ReconstructionResult, ...]
    classification: Classification | None = None
    too_small: tuple[Map, ...] = ()

    @property
    def label(self) -> Int[np.ndarray, " n"]:
        """Each particle's class, from 1; 0 for what shows none of them."""
        if self.classification is not None:
            # A particle that fits badly where it was posed is still one of its class; its confidence says the rest.
            return self.classification.label
        return self.classes[0].shows_it.astype(int)

    @property
    def state(self) -> RefinementState:
        """Every particle's pose, each in the frame of its own class's map."""
        merged = self.classes[0].state
        for one in self.classes[1:]:
            merged = merge_states(merged, one.state, one.state.half >= 0)
        return merged


def lower_confidence(result: ReconstructionResult) -> ReconstructionResult:
    """No pose is confident in a map that is likely wrong (see `Verdict`); which ones fit better stays known."""
    state = result.state
    factor = result.verdict.confidence_factor
    return replace(result, state=replace(state, confidence=factor * state.confidence))


def mirror_result(result: ReconstructionResult) -> ReconstructionResult:
    """The other hand: every map reflected (z → -z), and the rotations at which they look the same."""
    reflect = torch.from_numpy(MIRROR).to(result.state.rotation)
    density = mirror_volume(torch.from_numpy(result.density)).numpy()
    state = replace(result.state, rotation=reflect @ result.state.rotation @ reflect)
    encoder = None if result.encoder is None else replace(result.encoder, mirrored=not result.encoder.mirrored)
    ab_initio = result.ab_initio
    if ab_initio is not None:
        best = replace(ab_initio.best, volumes=tuple(one.mirrored() for one in ab_initio.best.volumes))
        ab_initio = replace(ab_initio, best=best)
    return replace(
        result,
        halves=result.halves.mirrored(),
        density=density,
        state=state,
        ab_initio=ab_initio,
        encoder=encoder,
    )


def negate_result(result: ReconstructionResult) -> ReconstructionResult:
    """The other contrast: images of the other sign give the same poses and the negative of every map."""
    ab_initio, encoder = result.ab_initio, result.encoder
    if ab_initio is not None:
        best = replace(ab_initio.best, volumes=tuple(one.negated() for one in ab_initio.best.volumes))
        ab_initio = replace(ab_initio, best=best)
    if encoder is not None:
        # New images are turned white before anything else; the encoder has learned from them as they were.
        encoder = replace(encoder, contrast=-encoder.contrast, input_sign=-encoder.input_sign)
    return replace(
        result, halves=result.halves.negated(), density=-result.density, ab_initio=ab_initio, encoder=encoder
    )
