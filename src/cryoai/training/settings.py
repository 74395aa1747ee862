"""What a training run is told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cryoai.settings import Settings
from cryoai.training.losses import Domain, Loss
from cryoai.volumes import VOLUMES, AbstractVolume, VolumeKind, make_volume

_BATCH_SIZE, _ENCODER_LEARNING_RATE = 256, 3e-3
# Steps between two checkpoints where there is no volume, and a step takes less time.
_SAVE_EVERY_ON_A_MAP = 250


class TrainingSettings(Settings):
    """Training encoder and volume from scratch (``--method amortized``); the defaults are for the grid head."""

    images: int = Field(default=50_000, ge=50)
    """At most this many images, drawn at random, are trained on."""
    steps: int = Field(default=500, ge=1)
    """Mini-batches."""
    batch_size: int = Field(default=_BATCH_SIZE, ge=2)
    """Particles in a mini-batch (of each process)."""
    volume: VolumeKind = "fourier_net"
    """The volume that is trained."""
    volume_width: int = Field(default=128, ge=8)
    """Neurons of a network's layers."""
    volume_options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of the volume: padding of a fourier_grid, feature_sigma of a positional_mlp."""
    encoder_learning_rate: float = Field(default=_ENCODER_LEARNING_RATE, gt=0)
    """Of Adam, for the encoder."""
    volume_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Of Adam, for the volume; by default 1e-3 for a network, 0.1 for a grid."""
    amsgrad: bool = False
    """Adam's variant that the paper used."""
    decay: bool = True
    """Lower the learning rates along a cosine."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the encoder's gradient."""
    first_radius: float = Field(default=4.0, ge=1)
    """Shells (of a box that the particle half fills); the radius of the loss marches from here"""
    last_radius: float = Field(default=16.0, ge=2)
    """to here,"""
    march_steps: int = Field(default=220, ge=0)
    """in so many steps."""
    search_radius: float = Field(default=10.0, ge=2)
    """Shells at which hypotheses are scored."""
    max_shift_box_lengths: float = Field(default=0.16, gt=0, lt=0.5)
    """Largest translation tried."""
    sampling_steps: int = Field(default=180, ge=0)
    """In the first steps the winner is drawn from the posterior; afterwards it is the best."""
    encoder_start: int = Field(default=140, ge=0)
    """Step at which an so3_grid head begins to learn: before, the volume says nothing about poses."""
    own_proposals_start: int = Field(default=240, ge=0)
    """Step from which most particles are scored at the encoder's own hypotheses alone."""
    own_proposals_share: float = Field(default=0.75, ge=0, le=1)
    """How many of them."""
    symmetrized: bool = False
    """The paper's symmetrised loss: the better of the image and its copy turned by π is trained."""
    whiten: bool = True
    """Divide residuals by the noise spectrum, in the loss and where hypotheses are scored."""
    domain: Domain = "fourier"
    """Where residuals are measured."""
    mask_radius_box_lengths: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """With domain real, only pixels closer to the centre count."""
    points_per_step: int = Field(default=24_576, ge=256)
    """Coefficients per step that the volume is trained on; particles beyond are left out of its loss."""
    refresh: int = Field(default=4, ge=1)
    """Steps between two renderings of the volume for scoring."""
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> TrainingSettings:
        if self.first_radius > self.last_radius:
            raise ValueError(f"first_radius {self.first_radius:g} is larger than last_radius {self.last_radius:g}")
        if self.mask_radius_box_lengths is not None and self.domain != "real":
            raise ValueError("mask_radius_box_lengths needs domain: real")
        VOLUMES.read_settings(self.volume, {"width": self.volume_width}, self.volume_options)
        return self

    def within(self, radius: float) -> TrainingSettings:
        """The same, where a box has only so many shells."""
        last = min(self.last_radius, radius)
        return self.model_copy(update={"first_radius": min(self.first_radius, last), "last_radius": last})

    def radius_at(self, step: int) -> float:
        """Shells of the loss at a step."""
        progress = min(1.0, step / max(1, self.march_steps))
        return self.first_radius + (self.last_radius - self.first_radius) * progress

    def make_volume(self, box_size: int, scale: float, seed: int) -> AbstractVolume:
        """The volume with its first parameters, for images whose coefficients are typically of size ``scale``."""
        return make_volume(
            self.volume, box_size, width=self.volume_width, scale=scale, seed=seed, **self.volume_options
        )

    def make_loss(self, volume: AbstractVolume | None) -> Loss:
        """The loss, in units of a volume's coefficients; without a volume only hypotheses are scored with it."""
        if volume is None:
            return Loss(whiten=self.whiten, symmetrized=self.symmetrized)
        mask = self.mask_radius_box_lengths
        mask_px = None if mask is None else mask * volume.box_size
        return Loss(float(volume.scale), self.whiten, self.domain, mask_px, self.symmetrized)


class HybridSettings(Settings):
    """The encoder after a bootstrap (``--method hybrid``)."""

    encoder: Literal["auto", "always", "never"] = "auto"
    """Whether to train one; auto does where posing by exhaustive search would take longer."""
    fewest_particles: int | None = Field(default=None, ge=0)
    """What auto goes by; by default 700,000 on a CPU, and no number on a GPU, which searches as fast."""
    simulated_steps: int = Field(default=1300, ge=1)
    """Mini-batches of images simulated from the bootstrap's map."""
    real_steps: int = Field(default=100, ge=0)
    """Mini-batches of real images after that."""
    batch_size: int = Field(default=_BATCH_SIZE, ge=2)
    """Images in a mini-batch."""
    learning_rate: float = Field(default=_ENCODER_LEARNING_RATE, gt=0)
    """Of Adam."""

    def training(self, radius: float, max_shift_box_lengths: float) -> TrainingSettings:
        """The training of the encoder alone, on a map that is known out to ``radius`` shells."""
        return TrainingSettings(
            steps=self.simulated_steps + self.real_steps, batch_size=self.batch_size,
            encoder_learning_rate=self.learning_rate, first_radius=radius, last_radius=radius,
            search_radius=radius, max_shift_box_lengths=max_shift_box_lengths, march_steps=0, sampling_steps=0,
            encoder_start=0, own_proposals_start=0, save_every=_SAVE_EVERY_ON_A_MAP,
        )  # fmt: skip
