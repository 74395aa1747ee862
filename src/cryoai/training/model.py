"""Encoder and volume as one module whose forward pass is a training step's loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoai.physics.image_formation import image_slices, residual_power
from cryoai.poses.encoder_input import make_encoder_images, pose_both_ways, turn_by_pi, undo_turn
from cryoai.poses.local import score_hypotheses
from cryoai.poses.pose_encoder import PoseEncoder
from cryoai.tensors import ParticleBatch, PoseHypotheses
from cryoai.training.losses import Loss, pick_winner
from cryoai.training.settings import TrainingSettings
from cryoai.training.winners import (
    Scorer,
    Winners,
    random_winners,
    winners_among,
    winners_on_grid,
)
from cryoai.volumes import AbstractVolume

# Of the spread of a particle's costs.
_FIRST_GUESS_TEMPERATURE = 0.3


class StepInput:
    """What a step is given. No dataclass: Fabric would take one apart to cast what is in it.

    Parameters
    ----------
    batch
        Particles on their full disk.
    scorer
        What their hypotheses are scored with.
    step
        From 0; what is trained depends on it.
    winners
        Poses that are known, such as those of simulated images; otherwise they are found.
    """

    def __init__(self, batch: ParticleBatch, scorer: Scorer, step: int, winners: Winners | None = None) -> None:
        self.batch, self.scorer, self.step, self.winners = batch, scorer, step, winners


class AmortizedModel(nn.Module):
    """An encoder and a volume that explain each other.

    Everything that is trained is used in `forward`, so that several processes can share the gradient.

    Parameters
    ----------
    encoder
        Images to poses.
    volume
        Poses to images; None to train the encoder against a map that stays as it is.
    settings
        Of the training.
    loss
        How images are compared; by default as the settings say.
    """

    def __init__(
        self,
        encoder: PoseEncoder,
        volume: AbstractVolume | None,
        settings: TrainingSettings,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.volume = volume
        self.settings = settings
        self.loss = loss or settings.make_loss(volume)

    def encoder_images(self, batch: ParticleBatch) -> Float[Tensor, "batch box box"]:
        """What the encoder looks at."""
        settings = self.encoder.settings
        return make_encoder_images(batch, settings.box_size, ctf=settings.ctf)

    def forward(self, given: StepInput) -> dict[str, Tensor]:
        """The losses of a step.

        Returns
        -------
        dict
            ``volume`` and ``encoder`` losses, and ``residual``, the mean squared residual per shell.
        """
        if self.encoder.head.needs_search:
            return self._searched_step(given.batch, given.scorer, given.step, given.winners)
        return self._hypotheses_step(given.batch, given.scorer)

    def _searched_step(
        self, batch: ParticleBatch, scorer: Scorer, step: int, winners: Winners | None
    ) -> dict[str, Tensor]:
        """The head learns the winner; the volume learns the image at it."""
        head = self.encoder.head
        losses: dict[str, Tensor] = {}
        learns = winners is not None or step >= self.settings.encoder_start
        if not learns:
            # Poses of particles that the volume will not be shown need not be searched.
            batch = batch[: self._volume_share(batch.disk.count(scorer.radius))]
        features = self.encoder.encoder(self.encoder_images(batch)) if learns else None
        logits = None if features is None else head.logits(features)
        inside = batch.prefix(scorer.radius)
        if winners is None:
            winners = self._find_winners(features, logits, inside, scorer, step)
        if features is not None and logits is not None:
            losses["encoder"] = head.loss(features, logits, winners.rotation, winners.translation)
        if self.volume is not None:
            losses.update(self._volume_loss(inside, winners.rotation, winners.translation, scorer))
        return losses

    @torch.no_grad()
    def _find_winners(
        self,
        features: Tensor | None,
        logits: Tensor | None,
        batch: ParticleBatch,
        scorer: Scorer,
        step: int,
    ) -> Winners:
        """From the whole grid for some particles, from the encoder's best rotations for the others."""
        if step == 0 and self.volume is not None:
            return random_winners(len(batch), scorer.generator)
        head = self.encoder.head
        if features is None or logits is None or step < self.settings.own_proposals_start:
            return winners_on_grid(batch, scorer, head.grid)
        # The volume learns from the first of the batch: from winners of the whole grid as long as there are some.
        searched = len(batch) - int(self.settings.own_proposals_share * len(batch))
        parts = [winners_on_grid(batch[:searched], scorer, head.grid)] if searched else []
        if searched < len(batch):
            hypotheses = head.propose(features[searched:], self.encoder.settings.keep, logits[searched:])
            parts.append(winners_among(batch[searched:], scorer, _on_host(hypotheses)))
        return Winners(torch.cat([p.rotation for p in parts]), torch.cat([p.translation for p in parts]))

    def _hypotheses_step(self, batch: ParticleBatch, scorer: Scorer) -> dict[str, Tensor]:
        """The gradient flows through the winning hypothesis alone, into the volume and into the pose."""
        assert self.volume is not None
        images = self.encoder_images(batch)
        scored = batch.prefix(min(scorer.search_radius, scorer.radius))
        turned = torch.zeros(len(batch), dtype=torch.bool, device=images.device)
        if self.loss.symmetrized:
            turned = self._explained_better_turned(images, scored, scorer)
            images = torch.where(turned[:, None, None], turn_by_pi(images), images)
        hypotheses = _undo_some_turns(self.encoder(images), turned)
        winner, entropy = self._winning(hypotheses, scored, scorer)
        rows = torch.arange(len(batch), device=winner.device)
        rotation, translation = hypotheses.rotation[rows, winner], hypotheses.translation[rows, winner]
        losses = self._volume_loss(batch.prefix(scorer.radius), rotation, translation, scorer)
        if entropy is not None:
            losses["encoder"] = entropy
        return losses

    @torch.no_grad()
    def _explained_better_turned(
        self, images: Float[Tensor, "batch box box"], batch: ParticleBatch, scorer: Scorer
    ) -> Tensor:
        """Which particles the encoder poses better when shown turned by π: the minimum of the symmetrised loss.

        Without gradient, since only the better view is trained: that costs a third less than both with gradient.
        """
        hypotheses = _on_host(self._hypotheses_of(images))
        cost = -score_hypotheses(batch, scorer.volume, scorer.noise_power, hypotheses).log_weight
        as_is, turned = cost.chunk(2, dim=1)
        return (turned.amin(1) < as_is.amin(1)).to(images.device)

    def hypotheses(self, batch: ParticleBatch) -> PoseHypotheses:
        """The head's hypotheses, and with the symmetrised loss those of the images turned by π."""
        return self._hypotheses_of(self.encoder_images(batch))

    def _hypotheses_of(self, images: Float[Tensor, "batch box box"]) -> PoseHypotheses:
        if not self.loss.symmetrized:
            return self.encoder(images)
        return pose_both_ways(self.encoder, images)

    def _winning(
        self, hypotheses: PoseHypotheses, batch: ParticleBatch, scorer: Scorer
    ) -> tuple[Tensor, Tensor | None]:
        """Which hypothesis is trained, and the cross-entropy of the head's own weights with that choice."""
        if hypotheses.log_weight.shape[1] == 1:
            return hypotheses.log_weight.new_zeros(len(batch), dtype=torch.long), None
        cost = -score_hypotheses(batch, scorer.volume, scorer.noise_power, _on_host(hypotheses)).log_weight
        # Costs are sums over coefficients: their spread, not one nat, is what a first guess is uncertain by.
        temperature = _FIRST_GUESS_TEMPERATURE * float(cost.std(1).mean()) if scorer.sample else 0.0
        winner = pick_winner(cost, temperature, scorer.generator).to(hypotheses.rotation.device)
        return winner, torch.nn.functional.cross_entropy(hypotheses.log_weight, winner)

    def _volume_loss(
        self, batch: ParticleBatch, rotation: Tensor, translation: Tensor, scorer: Scorer
    ) -> dict[str, Tensor]:
        """How well the volume explains the images at given poses; differentiable in all three."""
        assert self.volume is not None
        few = self._volume_share(len(batch.disk))
        batch, rotation, translation = batch[:few], rotation[:few], translation[:few]
        device = batch.images.device
        rotation, translation = rotation.to(device), translation.to(device)
        slices = self.volume.slice(rotation, batch.disk)
        model = image_slices(slices, translation, batch.ctf, batch.disk, batch.pixel_size)
        with torch.no_grad():
            power = residual_power(batch, model)
        cost = self.loss.cost(model, batch.images, batch.disk, scorer.noise_power)
        return {"volume": cost.mean(), "residual": power}

    def _volume_share(self, coefficients: int) -> int:
        """Particles of a batch that the volume learns from."""
        return max(8, self.settings.points_per_step // coefficients)


def _undo_some_turns(hypotheses: PoseHypotheses, turned: Tensor) -> PoseHypotheses:
    """Poses of the original images, where some were shown turned by π."""
    undone = undo_turn(hypotheses)
    rotation = torch.where(turned[:, None, None, None], undone.rotation, hypotheses.rotation)
    translation = torch.where(turned[:, None, None], undone.translation, hypotheses.translation)
    return PoseHypotheses(rotation, translation, hypotheses.log_weight)


def _on_host(hypotheses: PoseHypotheses) -> PoseHypotheses:
    """Cut off from the graph, in the host's memory, where the kernels score."""
    return PoseHypotheses(
        hypotheses.rotation.detach().cpu(),
        hypotheses.translation.detach().cpu(),
        hypotheses.log_weight.detach().cpu(),
    )
