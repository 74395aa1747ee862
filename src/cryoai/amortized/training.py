"""Training as a part of a run: its checkpoints, its progress, and the encoder it leaves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.particles.dataset import ParticleData
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.progress import Progress
from cryoai.training.trainer import StepRecord, Trainer


def train_with_checkpoints(
    trainer: Trainer,
    step: str,
    title: str,
    inputs: Mapping[str, Any],
    checkpoint: Checkpoint,
    progress: Progress,
    after: str | None = None,
) -> None:
    """Train to the last step, or go on with what the checkpoint holds.

    Parameters
    ----------
    trainer
        Before its first step.
    step, title
        What the checkpoint and the user call it.
    inputs, after
        What it depends on, and the step that it goes on from, as for `Checkpoint.step`.
    checkpoint, progress
        Of the run.

    Raises
    ------
    TrainingDivergedError
        The losses became meaningless; the last good checkpoint stays.
    """
    settings = trainer.settings
    # The first process prepares the folder that all of them read.
    trainer.fabric.barrier()
    saved = checkpoint.load(step, inputs, after)
    if saved is not None:
        trainer.load_state(saved)
    with progress.step(title, settings.steps) as done:
        while trainer.step < settings.steps:
            until = min(settings.steps, trainer.step + settings.save_every)
            trainer.train(until, lambda record: done(*describe_step(record, settings.batch_size)))
            if trainer.fabric.is_global_zero:
                checkpoint.save(step, inputs, trainer.state(), after)


def describe_step(record: StepRecord, batch_size: int) -> tuple[int, str]:
    """Steps done, and the throughput and losses in words."""
    rate = (record.step + 1) * batch_size / max(record.seconds, 1e-9)
    parts = [f"{rate:,.0f} images/s"]
    for name, loss in (("volume", record.volume_loss), ("encoder", record.encoder_loss)):
        if math.isfinite(loss):
            parts.append(f"{name} loss {loss:.3f}")
    return record.step + 1, ", ".join(parts)


def trained_encoder(trainer: Trainer, data: ParticleData, radius: float) -> TrainedEncoder:
    """The encoder as it is now, in the host's memory; it was shown ``radius`` shells of its particles."""
    model = trainer.model.eval()
    return TrainedEncoder(
        model.encoder.cpu(), model.loss.symmetrized, data.disk.box_size, float(data.pixel_size), radius,
        trainer.noise_power, trainer.image_power,
    )  # fmt: skip
