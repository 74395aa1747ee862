"""Training encoder and volume from scratch, as a part of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.geometry.fourier import full_radius
from cryoai.particles.dataset import ParticleData
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.encoder import EncoderSettings
from cryoai.poses.pose_encoder import PoseEncoder, PoseEncoderSettings, make_pose_encoder
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.training.model import AmortizedModel
from cryoai.training.settings import TrainingSettings
from cryoai.training.sources import RealParticles
from cryoai.training.trainer import StepRecord, Trainer, make_fabric
from cryoai.volumes import AbstractVolume, make_volume

# Images that the first guess of the spectra is measured on.
_FOR_SPECTRUM = 2000
_RENDER_PADDING = 2
_HYPOTHESES = {"so3_grid": 4608, "anchored": 60, "s2s2": 1}


@dataclass(frozen=True, eq=False)
class AmortizedResult:
    """What training left.

    Attributes
    ----------
    trained
        The encoder, with its spectra.
    volume
        The volume, rendered.
    history
        One record per step.
    skipped
        Batches without a finite loss.
    radius
        Shells of the volume that were trained.
    """

    trained: TrainedEncoder
    volume: FourierVolume
    history: tuple[StepRecord, ...]
    skipped: int
    radius: float

    @property
    def shared_shells(self) -> float:
        """Shells that encoder and volume have seen of all particles, whatever half they will be in."""
        box = self.trained.encoder.settings.encoder.box_size
        return max(self.radius, min(self.trained.radius, full_radius(box)))


def make_encoder(config: ReconstructConfig, data: ParticleData) -> PoseEncoder:
    """The encoder that a configuration asks for, with its first weights."""
    chosen = config.encoder
    encoder = EncoderSettings(chosen.box_size, chosen.widths, chosen.filter_sigmas, chosen.final_pool)
    box_length = data.disk.box_size * data.pixel_size
    hypotheses = chosen.hypotheses or _HYPOTHESES[chosen.head]
    settings = PoseEncoderSettings(box_length, chosen.head, hypotheses, encoder)
    return make_pose_encoder(settings, config.seed)


def train_from_scratch(
    data: ParticleData, config: ReconstructConfig, checkpoint: Checkpoint, progress: Progress
) -> AmortizedResult:
    """Train encoder and volume on the particles, or go on with what the checkpoint holds.

    Parameters
    ----------
    data
        From `cryoai.reconstruction.reading.read_training_data`.
    config, checkpoint, progress
        Of the run.

    Raises
    ------
    TrainingDivergedError
        The losses became meaningless; the last good checkpoint stays.
    """
    options = config.amortize
    rows = data.usable_rows
    look = data.batch(rows[:: max(1, len(rows) // _FOR_SPECTRUM)])
    image_power = estimate_shell_power(look.images, look.disk)
    settings = training_settings(config, data)
    volume = make_volume(
        options.volume, data.disk.box_size, width=options.volume_width,
        scale=float(look.images.abs().square().mean().sqrt()), seed=config.seed,
    )  # fmt: skip
    model = AmortizedModel(make_encoder(config, data), volume, settings)
    fabric = make_fabric("cuda" if data.device.type == "cuda" else "cpu", config.encoder.precision)
    source = RealParticles(
        data, rows, full_radius(data.disk.box_size), settings.batch_size, config.seed,
        fabric.global_rank, fabric.world_size,
    )  # fmt: skip
    trainer = Trainer(model, source, settings, seed=config.seed, image_power=image_power, fabric=fabric)
    # The first process prepares the folder that all of them read.
    fabric.barrier()
    saved = checkpoint.load("training", {})
    if saved is not None:
        trainer.load_state(saved)
    with progress.step("Training encoder and volume", settings.steps) as done:
        while trainer.step < settings.steps:
            until = min(settings.steps, trainer.step + options.save_every)
            trainer.train(until, lambda record: done(*describe_step(record, settings.batch_size)))
            if fabric.is_global_zero:
                checkpoint.save("training", {}, trainer.state())
    return _result(model, volume, trainer, data, config, image_power)


def training_settings(config: ReconstructConfig, data: ParticleData) -> TrainingSettings:
    """The trainer's settings: lengths in Å and shells that exist in this box."""
    options = config.amortize
    same = {
        name: getattr(options, name)
        for name in TrainingSettings.__dataclass_fields__
        if name in type(options).model_fields and name not in ("max_shift", "mask_radius")
    }
    same["last_radius"] = min(options.last_radius, full_radius(data.disk.box_size))
    same["first_radius"] = min(options.first_radius, same["last_radius"])
    box = data.disk.box_size
    return TrainingSettings(
        **same,
        max_shift=options.max_shift * box * data.pixel_size,
        mask_radius=None if options.mask_radius is None else options.mask_radius * box,
        keep=config.encoder.keep,
        encoder_ctf=config.encoder.ctf,
    )


def _result(
    model: AmortizedModel,
    volume: AbstractVolume,
    trainer: Trainer,
    data: ParticleData,
    config: ReconstructConfig,
    image_power: Float[Tensor, " shells"],
) -> AmortizedResult:
    model.eval()
    with trainer.fabric.autocast():
        rendered = volume.to_fourier_volume(trainer.settings.last_radius, _RENDER_PADDING)
    trained = TrainedEncoder(
        model.encoder.cpu(), config.encoder.ctf, config.amortize.symmetrized, data.disk.box_size,
        float(data.pixel_size), float(data.disk.radius[-1]), trainer.noise_power, image_power, config.encoder.keep,
    )  # fmt: skip
    return AmortizedResult(trained, rendered, tuple(trainer.history), trainer.skipped, trainer.settings.last_radius)


def describe_step(record: StepRecord, batch_size: int) -> tuple[int, str]:
    """Steps done, and the throughput and losses in words."""
    rate = (record.step + 1) * batch_size / max(record.seconds, 1e-9)
    parts = [f"{rate:,.0f} images/s"]
    for name, loss in (("volume", record.volume_loss), ("encoder", record.encoder_loss)):
        if math.isfinite(loss):
            parts.append(f"{name} loss {loss:.3f}")
    return record.step + 1, ", ".join(parts)
