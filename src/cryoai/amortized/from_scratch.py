"""Training encoder and volume from scratch, as a part of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.training import train_with_checkpoints, trained_encoder
from cryoai.geometry.fourier import full_radius
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.slicing import FourierVolume
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.training.make import make_trainer
from cryoai.training.sources import BatchSource, RealParticles
from cryoai.training.trainer import StepRecord, Trainer, make_fabric

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
        box = self.trained.encoder.settings.box_size
        return max(self.radius, min(self.trained.radius, full_radius(box)))


def make_trainer_from_scratch(
    data: ParticleData,
    config: ReconstructConfig,
    rows: Int[np.ndarray, " m"] | None = None,
    source: BatchSource | None = None,
) -> Trainer:
    """What `train_from_scratch` trains with, for those who want to look at it on the way, or have other particles.

    Parameters
    ----------
    data, config
        As there.
    rows
        Which particles take part, in place of all usable ones.
    source
        What is trained on, in place of those particles.
    """
    rows = data.usable_rows if rows is None else rows
    radius = full_radius(data.disk.box_size)
    settings = config.amortize.within(radius)
    fabric = make_fabric("cuda" if data.device.type == "cuda" else "cpu", config.encoder.precision)
    source = source or RealParticles(
        data, rows, radius, settings.batch_size, config.seed, fabric.global_rank, fabric.world_size
    )
    look = data.batch(sample_rows(rows, _FOR_SPECTRUM))
    return make_trainer(config.encoder, settings, source, look, seed=config.seed, fabric=fabric)


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
    trainer = make_trainer_from_scratch(data, config)
    inputs = {"amortize": config.amortize, "encoder": config.encoder, "seed": config.seed}
    title = "Training encoder and volume"
    train_with_checkpoints(trainer, "training", title, inputs, checkpoint, progress)
    volume = trainer.model.volume
    assert volume is not None
    trained = trained_encoder(trainer, data, float(data.disk.radius[-1]))
    with trainer.fabric.autocast():
        rendered = volume.to_fourier_volume(trainer.settings.last_radius, _RENDER_PADDING)
    return AmortizedResult(trained, rendered, tuple(trainer.history), trainer.skipped, trainer.settings.last_radius)
