"""Make a trainer: encoder, volume, model and loop from settings and a few particles to measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.poses.settings import EncoderSettings
from cryoai.tensors import ParticleBatch
from cryoai.training.model import AmortizedModel
from cryoai.training.settings import TrainingSettings
from cryoai.training.sources import BatchSource
from cryoai.training.trainer import Trainer, make_fabric
from cryoai.volumes import AbstractVolume

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def make_trainer(
    encoder: EncoderSettings,
    settings: TrainingSettings,
    source: BatchSource,
    look: ParticleBatch,
    *,
    seed: int,
    volume: AbstractVolume | None = None,
    map_volume: FourierVolume | None = None,
    noise_power: Float[Tensor, " shells"] | None = None,
    fabric: Fabric | None = None,
) -> Trainer:
    """A trainer before its first step, in which everything random follows from the seed.

    Parameters
    ----------
    encoder, settings
        Of the encoder and of the training; radii within the box.
    source
        Particles by step.
    look
        Particles whose spectrum, strength, box and pixel size are taken for those of all.
    seed
        Of the first weights and of the training.
    volume
        What is trained, in place of a new volume of the settings' kind.
    map_volume
        A map that is trained on; no volume is trained then.
    noise_power
        ``E|noise|²`` per shell, where it is known; else it is measured along the way.
    fabric
        Device, precision and processes; by default the device of ``look`` and the encoder's precision.
    """
    if fabric is None:
        fabric = make_fabric("cuda" if look.images.is_cuda else "cpu", encoder.precision)
    if volume is None and map_volume is None:
        scale = float(look.images.abs().square().mean().sqrt())
        volume = settings.make_volume(look.disk.box_size, scale, seed)
    model = AmortizedModel(make_pose_encoder(encoder, look.box_length, seed), volume, settings)
    return Trainer(
        model, source, settings, seed=seed, image_power=estimate_shell_power(look.images, look.disk),
        map_volume=map_volume, noise_power=noise_power, fabric=fabric,
    )  # fmt: skip
