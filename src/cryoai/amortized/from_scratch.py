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
from cryoai.poses.pose_encoder import PoseEncoder, make_pose_encoder
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.training.model import AmortizedModel
from cryoai.training.sources import RealParticles
from cryoai.training.trainer import StepRecord, Trainer, make_fabric
from cryoai.volumes import AbstractVolume

# Images that the first guess of the spectra is measured on.
_FOR_SPECTRUM = 2000
_RENDER_PADDING = 2


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
    """

    trained: TrainedEncoder
    volume: FourierVolume
    history: tuple[StepRecord, ...]
    skipped: int


def make_encoder(config: ReconstructConfig, data: ParticleData) -> PoseEncoder:
    """The encoder that a configuration asks for, with its first weights."""
    return make_pose_encoder(config.encoder, data.disk.box_size * data.pixel_size, config.seed)


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
    rows = data.usable_rows
    look = data.batch(rows[:: max(1, len(rows) // _FOR_SPECTRUM)])
    image_power = estimate_shell_power(look.images, look.disk)
    settings = config.amortize.within(full_radius(data.disk.box_size))
    scale = float(look.images.abs().square().mean().sqrt())
    volume = settings.make_volume(data.disk.box_size, scale, config.seed)
    model = AmortizedModel(make_encoder(config, data), volume, settings)
    fabric = make_fabric("cuda" if data.device.type == "cuda" else "cpu", config.encoder.precision)
    source = RealParticles(
        data, rows, full_radius(data.disk.box_size), settings.batch_size, config.seed,
        fabric.global_rank, fabric.world_size,
    )  # fmt: skip
    trainer = Trainer(model, source, settings, seed=config.seed, image_power=image_power, fabric=fabric)
    # The first process prepares the folder that all of them read.
    fabric.barrier()
    saved = checkpoint.load("training")
    if saved is not None:
        trainer.load_state(saved)
    with progress.step("Training encoder and volume", settings.steps) as done:
        while trainer.step < settings.steps:
            until = min(settings.steps, trainer.step + settings.save_every)
            trainer.train(until, lambda record: done(*describe_step(record, settings.batch_size)))
            if fabric.is_global_zero:
                checkpoint.save("training", trainer.state())
    return _result(model, volume, trainer, data, config, image_power)


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
        model.encoder.cpu(), model.loss.symmetrized, data.disk.box_size, float(data.pixel_size),
        float(data.disk.radius[-1]), trainer.noise_power, image_power,
    )  # fmt: skip
    return AmortizedResult(trained, rendered, tuple(trainer.history), trainer.skipped)


def describe_step(record: StepRecord, batch_size: int) -> tuple[int, str]:
    """Steps done, and the throughput and losses in words."""
    rate = (record.step + 1) * batch_size / max(record.seconds, 1e-9)
    parts = [f"{rate:,.0f} images/s"]
    for name, loss in (("volume", record.volume_loss), ("encoder", record.encoder_loss)):
        if math.isfinite(loss):
            parts.append(f"{name} loss {loss:.3f}")
    return record.step + 1, ", ".join(parts)
