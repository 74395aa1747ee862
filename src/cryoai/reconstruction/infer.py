"""`infer`: a trained encoder poses particles that its run has never seen."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.amortized.encoder_file import ENCODER_FILE, TrainedEncoder, read_encoder
from cryoai.amortized.posing import EncoderInference, best_of_encoder
from cryoai.errors import InputError
from cryoai.geometry.fourier import full_radius
from cryoai.io import read_map, read_particles, write_particles_star
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.poses.local import fit_poses, pose_standard_deviations, refine_poses
from cryoai.reconstruction.checks import check_device, check_particles, choose_device
from cryoai.reconstruction.output import finite_for_star
from cryoai.refinement.confidence import (
    FitScale,
    doubtful_rows,
    estimate_confidence,
    fit_quality,
    measure_fit_scale,
)
from cryoai.refinement.global_search import GlobalSearch, search_batch
from cryoai.refinement.map_particles import OnChunk, Portion, map_particles, one_reference
from cryoai.refinement.pose_posterior import look_about
from cryoai.run.config import ReconstructConfig, RefineSettings, load_config
from cryoai.run.progress import Progress
from cryoai.tensors import ParticleBatch
from cryoai.types import ParticleSet, Pose

# Box lengths in Å that differ by less are the same: pixel sizes are calibrated to about this.
_SAME_LENGTH = 2e-3
# Shells that hypotheses are scored at: enough to tell them apart, few enough to pull a coarse pose in.
_SCORING_RADIUS = 12.0
_REFINEMENT_STEPS = 4
# Refined poses that fit so many standard deviations worse than the run's own are searched for globally.
_DOUBTFUL = 2.0
_FOR_POWER = 2000


@dataclass(frozen=True, eq=False)
class InferredPoses:
    """Poses of new particles.

    Attributes
    ----------
    rotation
        (n, 3, 3), image to volume coordinates of the run's map.
    translation
        (n, 2), Å.
    confidence
        (n,) probability that the pose is in the right basin, compared with the run's own particles (without
        refinement: with the other new ones); 0 for images that cannot be used.
    rotation_std, translation_std
        (n,) radians and Å; NaN for images that cannot be used.
    usable
        (n,) whether the image could be used.
    warnings
        What the user should know.
    seconds
        Wall time of posing, without reading.
    """

    rotation: Float[Tensor, "n 3 3"]
    translation: Float[Tensor, "n 2"]
    confidence: Float[Tensor, " n"]
    rotation_std: Float[Tensor, " n"]
    translation_std: Float[Tensor, " n"]
    usable: np.ndarray
    warnings: tuple[str, ...]
    seconds: float


def infer(
    particles: str | Path | ParticleSet,
    run: str | Path,
    output: str | Path | None = None,
    *,
    refine: bool = True,
    datadir: str | Path | None = None,
    pixel_size: float | None = None,
    no_ctf: bool = False,
    invert_contrast: str = "auto",
    device: str = "auto",
    progress: Progress | None = None,
) -> InferredPoses:
    """Pose new particles with the encoder and the map of a finished run.

    Parameters
    ----------
    particles
        As for `reconstruct`.
    run
        The run's folder, with ``encoder.pt`` and ``map.mrc``.
    output
        STAR file to write: the input's rows with poses and confidence; none is written by default.
    refine
        Refine the best hypotheses locally, and the winner to the map's full resolution; search all poses for the
        particles that fit badly then. Otherwise the rotation is that of the encoder's best-scoring hypothesis, and
        the translation the best on a lattice around its own.
    datadir
        Folder of the image stacks.
    pixel_size
        Å, of the images, in place of what the file says.
    no_ctf
        Take the images as not modulated by a CTF.
    invert_contrast
        ``"auto"``, ``"yes"`` or ``"no"``.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    progress
        Told what is going on.

    Raises
    ------
    InputError
        The run has no encoder, the particles do not fit it, or the output would replace them.
    """
    progress = progress or Progress()
    config = load_config(None, {"pixel_size": pixel_size, "no_ctf": no_ctf, "device": device})
    check_device(config)
    run = Path(run)
    if not run.is_dir():
        raise InputError("is not a folder", file=run, advice="give the folder of a finished cryoai reconstruct")
    trained = read_encoder(run / ENCODER_FILE)
    density = read_map(run / "map.mrc")
    if density.box_size != trained.box_size:
        raise InputError(
            f"has {density.box_size} voxels, the encoder was trained with {trained.box_size}",
            file=run / "map.mrc",
            advice="give the folder as cryoai reconstruct left it",
        )
    if not isinstance(particles, ParticleSet):
        particles = read_particles(particles, datadir=datadir, pixel_size=config.pixel_size)
    particles = _check_fit(particles, trained, config)
    where = choose_device(config)
    scratch = run
    if output is not None:
        _refuse_own_input(Path(output), particles)
        scratch = Path(output).parent
        scratch.mkdir(parents=True, exist_ok=True)
    assert particles.pixel_size is not None
    with progress.step("Reading and judging the images", len(particles)) as done:
        data = ParticleData(
            particles, particles.pixel_size, trained.box_size,
            invert_contrast=_contrast(particles, trained, invert_contrast),
            memory_limit=int(config.cache_gib * 2**30), scratch=scratch, device=where, on_chunk=done,
        )  # fmt: skip
    try:
        volume = volume_from_map(torch.from_numpy(np.array(density.density, np.float32))).to(where)
        poses = _pose(data, trained, volume, refine, progress)
    finally:
        data.close()
    if output is not None:
        _write(particles, poses, Path(output))
    return poses


def _refuse_own_input(output: Path, particles: ParticleSet) -> None:
    for path in (particles.source.path, *particles.stack_paths):
        if Path(path).resolve() == output.resolve():
            raise InputError("would be replaced by the result", file=path, advice="give another -o")


def _check_fit(particles: ParticleSet, trained: TrainedEncoder, config: ReconstructConfig) -> ParticleSet:
    """Refuse particles that the encoder cannot be shown; Fourier cropping to its box is exact, nothing else is."""
    particles = check_particles(particles, config, fewest=1)
    assert particles.pixel_size is not None and particles.box_size is not None
    length = particles.box_size * particles.pixel_size
    file = particles.source.path
    if abs(length / trained.box_length - 1) > _SAME_LENGTH:
        raise InputError(
            f"its images are {length:.1f} Å wide ({particles.box_size} px of {particles.pixel_size:g} Å), those of "
            f"the run {trained.box_length:.1f} Å: the encoder would see the particle at another size",
            file=file,
            advice=f"extract them with a box of {trained.box_length / particles.pixel_size:.0f} px",
        )
    if particles.box_size < trained.box_size:
        raise InputError(
            f"its images have {particles.box_size} px, fewer than the {trained.box_size} px of the run's: what "
            "is missing cannot be made up",
            file=file,
            advice=f"extract them with at least {trained.box_size} px",
        )
    return particles


class _Posing:
    """New particles and what has been found out about their poses so far.

    Parameters
    ----------
    data
        The particles.
    trained, volume
        The run's encoder and map.
    scale
        Brings the images to the intensity of the run's.
    refine
        Whether poses are refined to the map's full resolution.
    """

    def __init__(
        self, data: ParticleData, trained: TrainedEncoder, volume: FourierVolume, scale: float, refine: bool
    ) -> None:
        self._data, self._trained, self._scale, self._refine = data, trained, scale, refine
        self._reference = one_reference(data, volume)
        self._full = full_radius(data.disk.box_size)
        self._scoring_radius = min(_SCORING_RADIUS, self._full)
        count = len(data)
        self.rotation, self.translation = torch.eye(3).repeat(count, 1, 1), torch.zeros(count, 2)
        self.rotation_std, self.translation_std = torch.full((2, count), np.nan)
        self.quality, self.expected = torch.full((2, count), np.nan)

    def by_encoder(self, rows: Int[np.ndarray, " m"], done: OnChunk) -> None:
        """The encoder's best hypothesis, refined if asked."""
        inference = EncoderInference(self._trained, self._data.device)
        noise = self._trained.noise_power

        def pose(portion: Portion) -> None:
            batch = self._scaled(portion)
            best = best_of_encoder(batch, inference, portion.volume, noise, self._scoring_radius, self._refine)
            self._settle(portion, batch, *best, iterations=_REFINEMENT_STEPS if self._refine else 0)

        map_particles(self._data, self._reference, pose, rows, on_chunk=done)

    def by_search(self, rows: Int[np.ndarray, " m"], done: OnChunk) -> None:
        """The best of all poses on a grid and of the current one."""
        # The encoder misses those that lie farther out than what it was trained on, so translations go far.
        settings = RefineSettings()
        radius, support = self._scoring_radius, self._data.support()
        stages = ((radius, settings.search_refined), (self._full, 1))
        search = GlobalSearch(int(radius), settings.max_shift_box_lengths, support, settings.search_keep, stages)

        def find(portion: Portion) -> None:
            batch = self._scaled(portion)
            current = self.rotation[portion.rows], self.translation[portion.rows]
            noise = self._trained.noise_power
            rotation, translation, _ = search_batch(batch, portion.volume, noise, search, current)
            self._settle(portion, batch, rotation, translation, iterations=0)

        map_particles(self._data, self._reference, find, rows, on_chunk=done)

    def _scaled(self, portion: Portion) -> ParticleBatch:
        batch = portion.own_batch
        return replace(batch, images=batch.images * self._scale)

    def _settle(
        self, portion: Portion, batch: ParticleBatch, rotation: Tensor, translation: Tensor, iterations: int
    ) -> None:
        """Keep these poses after some steps of local refinement, with their errors and how well they fit."""
        noise, volume, at = self._trained.noise_power, portion.volume, portion.rows
        local = refine_poses(batch, volume, noise, rotation, translation, iterations=iterations)
        self.rotation[at], self.translation[at] = local.rotation, local.translation
        if self._refine:
            about = look_about(batch, volume, noise, local.rotation, local.translation)
            self.rotation_std[at], self.translation_std[at] = about.rotation_std, about.translation_std
        else:
            # Far from the peak there is no posterior to look at, and what takes most of the time is saved.
            deviations = pose_standard_deviations(local.hessian)
            self.rotation_std[at], self.translation_std[at] = (s.float() for s in deviations)
        gain, self.expected[at] = fit_poses(batch, volume, noise, local.rotation, local.translation)
        self.quality[at] = fit_quality(gain, self.expected[at])


def _pose(
    data: ParticleData, trained: TrainedEncoder, volume: FourierVolume, refine: bool, progress: Progress
) -> InferredPoses:
    rows = data.usable_rows
    if len(rows) == 0:
        raise InputError("none of the images can be used: they are constant or not finite")
    scale, warnings = _match_scale(data, trained)
    warnings += data.judgement.warnings()
    posing = _Posing(data, trained, volume, scale, refine)
    start = time.perf_counter()
    with progress.step("Posing", len(rows)) as done:
        posing.by_encoder(rows, done)
    # Poses that were not refined fit worse than the run's: they can only be compared with each other.
    good_fit = (
        FitScale(trained.fit_centre, trained.fit_spread)
        if refine
        else measure_fit_scale(posing.quality[rows], posing.expected[rows])
    )
    doubtful = doubtful_rows(rows, posing.quality[rows], _DOUBTFUL, good_fit) if refine else rows[:0]
    if len(doubtful):
        with progress.step(f"Searching {len(doubtful):,} doubtful particles", len(doubtful)) as done:
            posing.by_search(doubtful, done)
    confidence = torch.zeros(len(data))
    confidence[rows] = estimate_confidence(posing.quality[rows], posing.expected[rows], good_fit)
    return InferredPoses(
        posing.rotation, posing.translation, confidence, posing.rotation_std, posing.translation_std,
        data.judgement.usable, tuple(warnings), time.perf_counter() - start,
    )  # fmt: skip


def _contrast(particles: ParticleSet, trained: TrainedEncoder, invert_contrast: str) -> str:
    """Where neither the user nor the file says it, new images have the contrast that the run's had."""
    if invert_contrast != "auto" or particles.contrast_sign is not None:
        return invert_contrast
    return "yes" if trained.contrast < 0 else "no"


def _match_scale(data: ParticleData, trained: TrainedEncoder) -> tuple[float, list[str]]:
    """The factor that brings new images to the intensity of the run's, from their power spectra."""
    rows = data.usable_rows
    batch = data.batch(sample_rows(rows, _FOR_POWER)[:_FOR_POWER])
    power = estimate_shell_power(batch.images, batch.disk)
    shells = min(len(power), len(trained.image_power))
    ratio = (trained.image_power[1:shells] / power[1:shells].clamp(min=1e-20)).sqrt()
    scale = float(ratio.median())
    spread = float((ratio / scale).log().abs().median().exp())
    warnings = []
    if spread > 1.3:
        warnings.append(
            "the power spectrum of these images differs from that of the run's (another microscope, dose or "
            "molecule?): look at the confidence before using the poses"
        )
    return scale, warnings


def _write(particles: ParticleSet, poses: InferredPoses, path: Path) -> None:
    """The input's rows with poses and confidence; images that cannot be used keep the input's pose."""
    rotation, translation = poses.rotation.double().numpy(), poses.translation.double().numpy()
    if particles.pose is not None:
        unused = ~poses.usable
        rotation = np.where(unused[:, None, None], particles.pose.rotation, rotation)
        translation = np.where(unused[:, None], particles.pose.translation, translation)
    extra = {
        "cryoaiConfidence": poses.confidence.double().numpy().clip(0, 1),
        "cryoaiRotationStdDeg": finite_for_star(np.degrees(poses.rotation_std.double().numpy())),
        "cryoaiTranslationStdAngst": finite_for_star(poses.translation_std.double().numpy()),
    }
    write_particles_star(path, particles, Pose(rotation, translation), extra)
