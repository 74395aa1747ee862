"""`reconstruct`: from a particle file to a map, poses and an honest resolution."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from cryoai.ab_initio.starts import (
    AGREEMENT_THRESHOLD,
    AbInitioResult,
    bootstrap_from_dict,
    bootstrap_settings,
    bootstrap_to_dict,
    choose_best,
    has_converged,
    run_start,
    split_for_bootstrap,
)
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.from_scratch import AmortizedResult, train_from_scratch
from cryoai.amortized.on_a_map import train_on_map, uses_encoder
from cryoai.amortized.posing import fit_to_run, pose_all
from cryoai.errors import InputError
from cryoai.geometry.fourier import full_radius
from cryoai.io import read_particles
from cryoai.metrics.fsc import phase_randomised_fsc
from cryoai.particles.dataset import ParticleData
from cryoai.physics.noise import estimate_shell_power
from cryoai.reconstruction.assist import assist, check_processes, process_rank
from cryoai.reconstruction.checks import FEWEST_PARTICLES, check_method, check_particles
from cryoai.reconstruction.output import write_outputs
from cryoai.reconstruction.reading import read_data, read_training_data, trains_on_subset
from cryoai.reconstruction.result import ReconstructionResult, mirror_result
from cryoai.reconstruction.run_folder import prepare_folder
from cryoai.refinement.poses import (
    RefinementState,
    reconstruct_halves,
    start_refinement,
    update_noise,
)
from cryoai.refinement.rounds import (
    RoundSummary,
    assign_all,
    finish,
    is_settled,
    refinement_round,
    state_from_dict,
    state_to_dict,
)
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.training.trainer import StepRecord
from cryoai.types import ParticleSet


def reconstruct(
    particles: str | Path | ParticleSet,
    output: str | Path,
    config: ReconstructConfig | None = None,
    *,
    datadir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ReconstructionResult:
    """Reconstruct a map and poses from particle images, with nothing known beforehand.

    Parameters
    ----------
    particles
        A RELION ``.star``, a cryoSPARC ``.cs`` or an ``.mrcs`` file, or what `cryoai.io.read_particles` gave.
    output
        Folder for the results.
    config
        Options; defaults otherwise.
    datadir
        Folder of the image stacks, where the file's own paths do not lead to them.
    resume
        Go on from the last finished step of a run that was stopped.
    overwrite
        Replace what an earlier run left in ``output``.
    progress
        Told what is going on.

    Raises
    ------
    InputError
        The input or an option is wrong.
    """
    config = config or ReconstructConfig()
    progress = progress or Progress()
    output = Path(output)
    check_method(config)
    check_processes(config)
    if not isinstance(particles, ParticleSet):
        particles = read_particles(particles, datadir=datadir, pixel_size=config.pixel_size)
    for note in particles.notes:
        progress.say(note)
    particles = check_particles(particles, config)
    if process_rank() > 0:
        assist(particles, output, config)
        sys.exit(0)
    checkpoint = prepare_folder(output, particles, config, resume=resume, overwrite=overwrite)
    run = _Run(particles, output, config, checkpoint, progress)
    try:
        return run.execute()
    finally:
        run.close()


class _Run:
    """One reconstruction: reads, then bootstraps, then refines, then writes. Each step is saved when finished."""

    def __init__(
        self,
        particles: ParticleSet,
        output: Path,
        config: ReconstructConfig,
        checkpoint: Checkpoint,
        progress: Progress,
    ) -> None:
        self.particles, self.output, self.config = particles, output, config
        self.checkpoint, self.progress = checkpoint, progress
        self.warnings: list[str] = []
        self.seconds: dict[str, float] = {}
        self.rounds: list[RoundSummary] = []
        self.encoder: TrainedEncoder | None = None
        self.training: tuple[StepRecord, ...] = ()
        self._clock = time.perf_counter()
        self._opened: ParticleData | None = None

    @property
    def _has_poses(self) -> bool:
        return self.config.known_poses or self.config.refine.start_from_input_poses

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def execute(self) -> ReconstructionResult:
        ab_initio = None
        training, contrast = self._train_on_subset()
        self.data = self._read(contrast)
        if self.config.known_poses:
            state = self._whiten(self._input_poses())
        elif self.config.refine.start_from_input_poses:
            state = self._refine(self._input_poses())
        elif self.config.method == "amortized":
            state = self._refine(self._amortize(training))
        else:
            ab_initio = self._bootstrap()
            state = self._refine(self._assign(ab_initio))
        state, halves = finish(self.data, state, self.config, self.progress)
        fsc = phase_randomised_fsc(
            *halves.unfiltered,
            halves.mask,
            torch.Generator().manual_seed(self.config.seed),
            voxel_size=self.data.pixel_size,
        )
        density = halves.wiener_map().cpu()
        if self.encoder is not None:
            self.encoder = fit_to_run(self.encoder, self.data, state, density)
        self._lap("final maps")
        result = ReconstructionResult(
            self.output, self.config, self.particles, state, halves, density.numpy(),
            self.data.pixel_size, fsc, ab_initio,
            tuple(self.rounds), tuple(self.warnings), dict(self.seconds), self.encoder, self.training,
        )  # fmt: skip
        if self.config.invert_hand:
            result = mirror_result(result)
        write_outputs(result)
        return result

    def _read(self, contrast: int | None = None) -> ParticleData:
        """All particles; ``contrast`` is what a subset of them has shown."""
        invert = None if contrast is None else ("yes" if contrast < 0 else "no")
        data = read_data(self.particles, self.config, self.output, self.progress, invert_contrast=invert)
        self._opened = data
        self._judge(data)
        self._lap("reading")
        return data

    def _judge(self, data: ParticleData) -> None:
        judgement = data.judgement
        bad = np.flatnonzero(~judgement.usable)
        if len(bad):
            shown = ", ".join(str(row + 1) for row in bad[:10]) + (", …" if len(bad) > 10 else "")
            self._warn(
                f"{len(bad)} of {len(data)} images are constant or not finite and are left out "
                f"(particles {shown}); they keep their rows with confidence 0"
            )
        self._check_usable(data)
        if judgement.contrast < 0:
            self.progress.say("Protein is black in these images: their contrast is inverted")
        elif (
            not judgement.contrast_is_sure
            and self.config.invert_contrast == "auto"
            and self.particles.contrast_sign is None
        ):
            self._warn(
                "whether protein is white or black could not be told from the images; white is assumed "
                "(--invert-contrast yes if the map comes out inside out)"
            )

    def _check_usable(self, data: ParticleData) -> None:
        fewest = 2 if self._has_poses else FEWEST_PARTICLES
        if len(data.usable_rows) < fewest:
            raise InputError(
                f"{len(data.usable_rows)} usable images are left, {fewest} are needed",
                file=self.particles.source.path,
            )

    def _input_poses(self) -> RefinementState:
        """The input's poses and, if it has them, its half-sets."""
        pose = self.particles.pose
        assert pose is not None
        start = start_refinement(self.data, self._first_noise(), self.config.seed)
        half = start.half
        subset = self.particles.random_subset
        if subset is None:
            self._warn(
                "the input has poses but no half-sets: its poses may come from one common map, and the resolution "
                "is then too good"
            )
        elif min(np.sum(self.data.judgement.usable & (subset == k)) for k in (1, 2)) < 2:
            self._warn(
                "the input's half-sets leave one half empty; a random split is used, and the resolution "
                "may be too good"
            )
        else:
            half = np.where(self.data.judgement.usable, subset - 1, -1)
        return replace(
            start,
            rotation=torch.from_numpy(pose.rotation.astype(np.float32)),
            translation=torch.from_numpy(pose.translation.astype(np.float32)),
            half=half,
        )

    def _whiten(self, state: RefinementState) -> RefinementState:
        """The noise spectrum that belongs to fixed poses."""
        full = full_radius(self.data.disk.box_size)
        with self.progress.step("Noise spectrum", len(state.used)) as done:
            diameter = self.config.particle_diameter
            diameter = None if diameter is None else diameter / self.data.pixel_size
            halves = reconstruct_halves(self.data, state, full, diameter, done)
        references = [halves.reference(half).to(self.data.device) for half in (0, 1)]
        return update_noise(self.data, state, references, full)

    def _first_noise(self) -> torch.Tensor:
        rows = self.data.usable_rows
        batch = self.data.batch(rows[:: max(1, len(rows) // 2000)])
        return estimate_shell_power(batch.images, batch.disk).clamp(min=1e-12)

    def _bootstrap(self) -> AbInitioResult:
        settings = bootstrap_settings(self.config, self.data)
        images, radius = self.config.bootstrap.images, settings.last_radius
        train, held_out = split_for_bootstrap(self.data, images, radius, self.config.seed)
        starts = []
        for number in range(1, self.config.seeds + 1):
            saved = self.checkpoint.load(f"bootstrap_{number:02d}")
            if saved is None:
                name = f"Bootstrap, start {number} of {self.config.seeds}"
                with self.progress.step(name, settings.steps) as done:
                    seed = self.config.seed * 1000 + number
                    saved = bootstrap_to_dict(run_start(train, held_out, settings, seed, done, self.data.device))
                self.checkpoint.save(f"bootstrap_{number:02d}", saved)
            starts.append(bootstrap_from_dict(saved))
        result = choose_best(starts, radius)
        if not has_converged(result):
            self._warn(
                f"the {len(starts)} starts found different maps (mean FSC with the best one at most "
                f"{max(a for a in result.agreements if a < 1):.2f}, {AGREEMENT_THRESHOLD} would be agreement); "
                "do not trust this map before more starts (--seeds) agree"
            )
        elif len(starts) > 1:
            self.progress.say(f"{result.agreeing} of {len(starts)} starts agree")
        self._lap("bootstrap")
        return result

    def _train_on_subset(self) -> tuple[AmortizedResult | None, int | None]:
        """Training on a part of a large set, before all of it is read, and the contrast seen; or nothing."""
        amortized = self.config.method == "amortized" and not self._has_poses
        if not amortized or not trains_on_subset(self.particles, self.config):
            return None, None
        data = read_training_data(self.particles, self.config, self.output, self.progress)
        try:
            self._check_usable(data)
            self._lap("reading the training set")
            training = train_from_scratch(data, self.config, self.checkpoint, self.progress)
            self._lap("training")
            return training, data.judgement.contrast
        finally:
            data.close()

    def _amortize(self, training: AmortizedResult | None) -> RefinementState:
        """Encoder and volume from scratch, then every particle's pose from them."""
        if training is None:
            training = train_from_scratch(self.data, self.config, self.checkpoint, self.progress)
            self._lap("training")
        self.training, self.encoder = training.history, training.trained
        # Half-maps that start from one wrong map agree; only another beginning tells.
        self.progress.say("Trained once: whether another --seed would find the same map is not known")
        if training.skipped:
            self._warn(f"{training.skipped} batches had no finite loss and were skipped in training")
        if self.config.refine.max_rounds == 0:
            self._warn(
                "all poses come from one volume and were not refined in halves: the resolution is too good "
                "(refine.max_rounds)"
            )
        saved = self.checkpoint.load("assigned")
        if saved is not None:
            return state_from_dict(saved)
        state = start_refinement(self.data, training.trained.noise_power, self.config.seed)
        radius = min(self.config.amortize.search_radius, self.config.amortize.last_radius)
        state = pose_all(
            self.data, state, training.trained, training.volume, radius, self.progress,
            refine=self.config.refine.max_rounds > 0,
        )  # fmt: skip
        self.checkpoint.save("assigned", state_to_dict(state))
        self._lap("posing")
        return state

    def _assign(self, ab_initio: AbInitioResult) -> RefinementState:
        """Every particle's pose against the bootstrap's map: by search, or by an encoder trained on it."""
        if uses_encoder(self.config, len(self.data.usable_rows), self.data.device):
            self.encoder, self.training = train_on_map(
                self.data, ab_initio.best, self.config, self.checkpoint, self.progress
            )
            self._lap("training")
        saved = self.checkpoint.load("assigned")
        if saved is not None:
            return state_from_dict(saved)
        noise = self._first_noise()
        measured = ab_initio.best.noise_power
        noise[: len(measured)] = measured
        state = start_refinement(self.data, noise, self.config.seed)
        if self.encoder is None:
            state = assign_all(self.data, state, ab_initio, self.config, self.progress)
        else:
            volume = ab_initio.best.volume
            state = pose_all(self.data, state, self.encoder, volume, self.encoder.radius, self.progress)
        self.checkpoint.save("assigned", state_to_dict(state))
        self._lap("posing")
        return state

    def _refine(self, state: RefinementState) -> RefinementState:
        for number in range(1, self.config.refine.max_rounds + 1):
            saved = self.checkpoint.load(f"round_{number:02d}")
            previous = self.rounds[-1] if self.rounds else None
            if saved is None:
                state, summary = refinement_round(self.data, state, number, self.config, self.progress, previous)
                self.checkpoint.save(
                    f"round_{number:02d}", {"state": state_to_dict(state), "summary": asdict(summary)}
                )
            else:
                state, summary = state_from_dict(saved["state"]), RoundSummary(**saved["summary"])
            self.rounds.append(summary)
            resolution = self.data.disk.box_size * self.data.pixel_size / summary.fsc_radius
            self.progress.say(f"Round {number}: half-maps agree to {resolution:.2f} Å")
            if is_settled(state, summary, previous):
                break
        self._lap("refinement")
        return state

    def _warn(self, message: str) -> None:
        self.warnings.append(message)
        self.progress.warn(message)

    def _lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._clock
        self._clock = now
