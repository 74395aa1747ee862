"""What a training run is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cryoai.poses.encoder_input import CtfTreatment
from cryoai.training.losses import Domain, Loss
from cryoai.volumes import AbstractVolume

Precision = Literal["auto", "bf16-mixed", "32-true"]


@dataclass(frozen=True)
class TrainingSettings:
    """How encoder and volume are trained; the defaults are for the grid head.

    Attributes
    ----------
    steps, batch_size
        Mini-batches, and particles in each.
    encoder_learning_rate, volume_learning_rate
        Of Adam. A grid wants a rate about fifty times a network's.
    amsgrad
        Adam's variant that the paper used.
    decay
        Lower the learning rates along a cosine towards the end.
    gradient_clip
        Largest norm of the encoder's gradient.
    first_radius, last_radius, march_steps
        Shells; the radius of the loss marches linearly over so many steps.
    search_radius
        Shells at which the grid of rotations is scored.
    max_shift
        Å; largest translation that is searched.
    sampling_steps
        In the first steps the winner is drawn from the posterior; afterwards it is the best.
    encoder_start
        Step at which the grid head begins to learn: before, the volume says nothing about poses.
    own_proposals_start
        Step from which a part of each batch is scored at the encoder's own best rotations alone.
    own_proposals_share
        That part.
    keep
        Hypotheses of the encoder that are scored.
    symmetrized
        Show the encoder each image's copy turned by π as well, and train the better of both.
    encoder_ctf
        What is done about the CTF in the encoder's input.
    whiten
        Divide by the noise spectrum, measured along the way; otherwise it is plain L2 that counts, also where
        hypotheses are scored.
    domain, mask_radius
        Where residuals are measured; px of the circle in real space.
    points_per_step
        Coefficients per step at which the volume is trained; particles beyond are left out of its loss.
    refresh
        Steps between two renderings of the volume on the grid that hypotheses are scored against.
    """

    steps: int = 500
    batch_size: int = 256
    encoder_learning_rate: float = 3e-3
    volume_learning_rate: float = 1e-3
    amsgrad: bool = False
    decay: bool = True
    gradient_clip: float = 1.0
    first_radius: float = 4.0
    last_radius: float = 16.0
    march_steps: int = 220
    search_radius: float = 10.0
    max_shift: float = 50.0
    sampling_steps: int = 180
    encoder_start: int = 140
    own_proposals_start: int = 240
    own_proposals_share: float = 0.75
    keep: int = 32
    symmetrized: bool = False
    encoder_ctf: CtfTreatment = "flip"
    whiten: bool = True
    domain: Domain = "fourier"
    mask_radius: float | None = None
    points_per_step: int = 24_576
    refresh: int = 4

    def radius_at(self, step: int) -> float:
        """Shells of the loss at a step."""
        progress = min(1.0, step / max(1, self.march_steps))
        return self.first_radius + (self.last_radius - self.first_radius) * progress

    def make_loss(self, volume: AbstractVolume | None) -> Loss:
        """The loss, in units of a volume's coefficients; without a volume only hypotheses are scored with it."""
        scale = 1.0 if volume is None else float(volume.scale)
        return Loss(scale, self.whiten, self.domain, self.mask_radius, self.symmetrized)
