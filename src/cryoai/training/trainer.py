"""The training loop: on any device and in any precision, with checkpoints, and safe against bad batches."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.errors import CryoAIError
from cryoai.physics.slicing import FourierVolume
from cryoai.precision import Precision, product_dtype
from cryoai.training.model import AmortizedModel, StepInput
from cryoai.training.settings import TrainingSettings
from cryoai.training.sources import BatchSource
from cryoai.training.winners import Scorer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# So many batches in a row without a finite loss are not bad luck.
_MOST_SKIPPED_IN_A_ROW = 20
# A volume whose residuals are so many times the images' own power has run away.
_DIVERGED = 30.0
_NOISE_DECAY = 0.9
# No shell is believed to have less noise than this share of its images' power.
_LEAST_NOISE = 1e-3
_RENDER_PADDING = 2
_DECAYED_SHARE = 0.05


class TrainingDivergedError(CryoAIError):
    """The losses have become infinite or meaningless."""


@dataclass(frozen=True)
class StepRecord:
    """What one step of training did.

    Attributes
    ----------
    step
        From 0.
    radius
        Shells of the loss.
    volume_loss
        Power of the volume's residuals over that of the images, within the radius.
    encoder_loss
        Of the head. Both losses are NaN where nothing was trained, or the batch was skipped.
    skipped
        Whether the losses were not finite, so that the batch was left out.
    seconds
        Wall time since training began, earlier sittings included.
    """

    step: int
    radius: float
    volume_loss: float
    encoder_loss: float
    skipped: bool
    seconds: float


def make_fabric(device: Literal["cpu", "cuda"] = "cpu", precision: Precision = "auto") -> Fabric:
    """Device, precision and processes; ``torchrun`` and Slurm decide how many processes there are."""
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    nodes = max(1, int(os.environ.get("WORLD_SIZE", 1)) // processes)
    strategy = "ddp_find_unused_parameters_true" if processes * nodes > 1 else "auto"
    accelerator = "gpu" if device == "cuda" else "cpu"
    if precision == "auto":
        precision = "bf16-mixed" if product_dtype(device) == torch.bfloat16 else "32-true"
    fabric = Fabric(
        accelerator=accelerator, devices=processes, num_nodes=nodes, strategy=strategy, precision=precision
    )
    fabric.launch()
    return fabric


class Trainer:
    """Trains an encoder and, unless it is given a map, a volume.

    Everything random in a step follows from the seed and the step's number: a run resumed from `state` goes on as
    if it had never stopped.

    Parameters
    ----------
    model
        Encoder and volume.
    source
        Particles by step.
    settings
        Schedule.
    seed
        Of everything random.
    image_power
        Mean ``|coefficient|²`` per shell of the images.
    map_volume
        What hypotheses are scored against where the model has no volume of its own.
    noise_power
        ``E|noise|²`` per shell; by default it is measured along the way, beginning with ``image_power``.
    fabric
        Device, precision and processes.
    """

    def __init__(
        self,
        model: AmortizedModel,
        source: BatchSource,
        settings: TrainingSettings,
        *,
        seed: int,
        image_power: Float[Tensor, " shells"],
        map_volume: FourierVolume | None = None,
        noise_power: Float[Tensor, " shells"] | None = None,
        fabric: Fabric | None = None,
    ) -> None:
        self.fabric = fabric or make_fabric("cpu")
        self._source, self.settings, self._seed = source, settings, seed
        self.image_power, self._image_power = image_power, image_power.clamp(min=1e-12)
        self._measures_noise = noise_power is None
        self._noise_power = self._image_power.clone() if noise_power is None else noise_power
        self._map_volume = map_volume
        self.model = model
        self.step, self.skipped, self._skipped_in_a_row = 0, 0, 0
        self.history: list[StepRecord] = []
        self._seconds = 0.0
        self._rendered: FourierVolume | None = map_volume
        self._rates = _learning_rates(model, settings)
        self._optimizers = _make_optimizers(model, self._rates, settings.amsgrad)
        # What a user would change.
        self._rate_options = (
            "hybrid.learning_rate"
            if model.volume is None
            else ("amortize.encoder_learning_rate and amortize.volume_learning_rate")
        )
        self._wrapped, *wrapped = self.fabric.setup(model, *self._optimizers.values())
        self._wrapped_optimizers = dict(zip(self._optimizers, wrapped, strict=True))

    @property
    def noise_power(self) -> Float[Tensor, " shells"]:
        """``E|noise|²`` per shell as measured so far, the volume's errors included."""
        return self._noise_power

    def train(
        self,
        until: int | None = None,
        on_step: Callable[[StepRecord], None] = lambda record: None,
    ) -> None:
        """Go on to a step (default: the last).

        Raises
        ------
        TrainingDivergedError
            Too many batches in a row had no finite loss, or the volume ran away.
        """
        start = time.perf_counter() - self._seconds
        self.model.train()
        for step in range(self.step, self.settings.steps if until is None else until):
            losses, skipped = self._take_step(step)
            self.step, self._seconds = step + 1, time.perf_counter() - start
            record = StepRecord(
                step, self.settings.radius_at(step), losses["volume"], losses["encoder"], skipped, self._seconds
            )
            self.history.append(record)
            on_step(record)

    def _take_step(self, step: int) -> tuple[dict[str, float], bool]:
        batch, winners = self._source(step)
        batch = batch.to(self.fabric.device)
        scorer = self._make_scorer(step)
        self._set_learning_rates(step)
        # A bad batch must not stay in the running means of the normalisation layers.
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers() if "running" in name}
        for optimizer in self._wrapped_optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        losses = self._wrapped(StepInput(batch, scorer, step, winners))
        total = sum((losses[name] for name in ("volume", "encoder") if name in losses), start=torch.tensor(0.0))
        bad = not math.isfinite(float(_reduced(self.fabric, total, "sum")))
        if not bad and total.requires_grad:
            self.fabric.backward(total)
            bad = not self._apply_gradients()
        if bad:
            for name, buffer in self.model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        self._count_skipped(bad)
        if not bad and "residual" in losses:
            self._look_at_residual(losses["residual"])
        values = {"volume": math.nan, "encoder": math.nan}
        if not bad and "encoder" in losses:
            values["encoder"] = float(losses["encoder"].detach())
        if not bad and "residual" in losses:
            values["volume"] = self._unexplained(losses["residual"])
        return values, bad

    def _apply_gradients(self) -> bool:
        """Clip and step; False, and nothing changed, if a gradient is not finite."""
        gradients = {name: _gradients_of(optimizer) for name, optimizer in self._optimizers.items()}
        active = {name: o for name, o in self._wrapped_optimizers.items() if gradients[name]}
        norms = {name: torch.nn.utils.get_total_norm(gradients[name]) for name in active}
        finite = torch.stack(list(norms.values())).isfinite().all().float()
        if float(_reduced(self.fabric, finite, "mean")) < 1:
            return False
        if "encoder" in active:
            parameters = [p for group in self._optimizers["encoder"].param_groups for p in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.gradient_clip, norms["encoder"])
        for optimizer in active.values():
            optimizer.step()
        return True

    def _count_skipped(self, bad: bool) -> None:
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if bad else 0
        self.skipped += bad
        if self._skipped_in_a_row >= _MOST_SKIPPED_IN_A_ROW:
            raise TrainingDivergedError(
                f"training diverged at step {self.step}: {self._skipped_in_a_row} batches in a row had no finite "
                f"loss; lower {self._rate_options} and start again"
            )

    def _look_at_residual(self, residual: Float[Tensor, " shells"]) -> None:
        """Update the noise spectrum, and notice a volume that has run away."""
        residual = _reduced(self.fabric, residual, "mean").cpu()
        shells = slice(1, len(residual))
        if float(residual[shells].sum()) > _DIVERGED * float(self._image_power[shells].sum()):
            raise TrainingDivergedError(
                f"training diverged at step {self.step}: the volume's images are over {_DIVERGED:.0f} times "
                f"stronger than the particles; lower {self._rate_options} and start again"
            )
        if self._measures_noise:
            noise = self._noise_power.clone()
            noise[shells] = _NOISE_DECAY * noise[shells] + (1 - _NOISE_DECAY) * residual[shells]
            self._noise_power = torch.maximum(noise, _LEAST_NOISE * self._image_power)

    def _unexplained(self, residual: Float[Tensor, " shells"]) -> float:
        """Share of the images' power, within the radius, that the volume does not explain.

        The whitened loss itself says nothing: it is divided by a noise spectrum that follows the residuals.
        """
        shells = slice(1, len(residual))
        return float(residual[shells].sum()) / float(self._image_power[shells].sum())

    def _make_scorer(self, step: int) -> Scorer:
        settings = self.settings
        volume = self.model.volume
        if volume is not None and (self._rendered is None or step % settings.refresh == 0):
            with self.fabric.autocast():
                self._rendered = volume.to_fourier_volume(self._rendered_radius(step), _RENDER_PADDING)
        assert self._rendered is not None
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) * 1_009 + self.fabric.global_rank)
        noise = self.model.loss.scoring_noise(self._noise_power)
        max_shift = settings.max_shift_box_lengths * self.model.encoder.box_length
        return Scorer(
            self._rendered, noise, settings.radius_at(step), settings.search_radius, max_shift,
            step < settings.sampling_steps, generator,
        )  # fmt: skip

    def _rendered_radius(self, step: int) -> float:
        """Shells that hypotheses are scored in; winners of a search are also refined, at all shells of the loss."""
        # As far as the radius marches until the next rendering.
        radius = self.settings.radius_at(step + self.settings.refresh)
        if self.model.encoder.head.needs_search:
            return radius
        return min(self.settings.search_radius, radius)

    def _set_learning_rates(self, step: int) -> None:
        settings = self.settings
        share = 1.0
        if settings.decay:
            cosine = 0.5 * (1 + math.cos(math.pi * step / max(1, settings.steps)))
            share = _DECAYED_SHARE + (1 - _DECAYED_SHARE) * cosine
        for name, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * share

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs: tensors, numbers and strings."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "seconds": self._seconds,
            "noise_power": self._noise_power,
            "rendered": None if self._rendered is None else self._rendered.values.cpu(),
            "model": {name: tensor.cpu() for name, tensor in self.model.state_dict().items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()},
            "history": [list(vars(record).values()) for record in self.history],
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.step, self.skipped, self._seconds = saved["step"], saved["skipped"], saved["seconds"]
        self._noise_power = saved["noise_power"]
        self.model.load_state_dict(saved["model"])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        self.history = [StepRecord(*values) for values in saved["history"]]
        if saved["rendered"] is not None and self.model.volume is not None:
            values = saved["rendered"].to(self.fabric.device)
            self._rendered = FourierVolume(values, self.model.volume.box_size, _RENDER_PADDING)


def _learning_rates(model: AmortizedModel, settings: TrainingSettings) -> dict[str, float]:
    """Of each part that is trained."""
    rates = {"encoder": settings.encoder_learning_rate}
    if model.volume is not None:
        rates["volume"] = settings.volume_learning_rate or model.volume.learning_rate
    return rates


def _make_optimizers(
    model: AmortizedModel, rates: dict[str, float], amsgrad: bool
) -> dict[str, torch.optim.Optimizer]:
    # Fused, Adam takes a sixth of the time on a CPU.
    return {
        name: torch.optim.Adam(model.get_submodule(name).parameters(), rate, amsgrad=amsgrad, fused=True)
        for name, rate in rates.items()
    }


def _reduced(fabric: Fabric, value: Tensor, operation: str) -> Tensor:
    """A value over all processes."""
    reduced = fabric.all_reduce(value.detach().float(), reduce_op=operation)
    assert isinstance(reduced, Tensor)
    return reduced


def _gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
