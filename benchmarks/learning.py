"""Training on simulated particles, watched from the truth: learning curves of any head and volume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Clock, TestSet, describe_encoder, make_trainer, measure

from cryoai import Map, write_map
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.physics.slicing import FourierVolume
from cryoai.run.config import ReconstructConfig
from cryoai.training.trainer import StepRecord, Trainer, TrainingDivergedError

_RECENT = 50


@dataclass(frozen=True)
class Watch:
    """When to look, and when to stop.

    Attributes
    ----------
    minutes
        Of training; looking is not counted.
    every_seconds, every_steps
        Between two looks; the first that is due counts.
    first_step
        No look before it.
    enough
        Stop once a look's figures fulfil this.
    particles
        Whose poses are measured.
    """

    minutes: float
    every_seconds: float = np.inf
    every_steps: float = np.inf
    first_step: int = 0
    enough: Callable[[dict[str, Any]], bool] = lambda figures: False
    particles: int = 1000


def resolves(target_px: float) -> Callable[[dict[str, Any]], bool]:
    """`Watch.enough` for a map whose FSC is 0.5 at ``target_px`` or better."""
    return lambda figures: figures["fsc_px"] <= target_px


class _Enough(Exception):
    """The end of a training."""


class Learner:
    """One training, watched.

    Parameters
    ----------
    test, config
        What is trained on, and how.
    watch
        When to look and to stop.
    tell
        Called with each look's figures.
    state
        File in which each look leaves the training, and from which it goes on.
    """

    def __init__(
        self,
        test: TestSet,
        config: ReconstructConfig,
        watch: Watch,
        tell: Callable[[dict[str, Any]], None],
        state: Path | None = None,
    ) -> None:
        self._test, self._config, self._watch, self._tell, self._state = test, config, watch, tell, state
        self.trainer: Trainer = make_trainer(test.data, config)
        self._rows = np.sort(np.random.default_rng(0).permutation(len(test.particles))[: watch.particles])
        self._clock = Clock()
        self._looked_at = (0.0, 0)
        self.last: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Train; the figures of the last look, and whether the target was reached."""
        self._clock = Clock(self.go_on())
        try:
            self.trainer.train(on_step=self._after_step)
            self._look()
        except _Enough:
            pass
        except TrainingDivergedError as error:
            self.last = {**self.last, "diverged": str(error)}
        reached = "diverged" not in self.last and self._watch.enough(self.last)
        return {**self.last, "reached": reached, "skipped": self.trainer.skipped}

    def density(self) -> torch.Tensor:
        volume = self.trainer.model.volume
        assert volume is not None
        return volume.to_map()

    def render(self) -> FourierVolume:
        """The volume as hypotheses are scored against it."""
        volume = self.trainer.model.volume
        assert volume is not None
        with self.trainer.fabric.autocast():
            return volume.to_fourier_volume(self.trainer.settings.last_radius, 2)

    def trained(self) -> TrainedEncoder:
        trainer = self.trainer
        return describe_encoder(trainer.model.encoder, self._config, self._test.data, trainer.noise_power)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_map(Map(self.density().numpy(), self._test.data.pixel_size), path)

    def go_on(self) -> float:
        """Load what an earlier sitting left, if there is any; its seconds."""
        if self._state is None or not self._state.exists():
            return 0.0
        saved = torch.load(self._state, weights_only=True)
        self.trainer.load_state(saved["trainer"])
        self._looked_at = saved["seconds"], self.trainer.step
        return saved["seconds"]

    def _save(self) -> None:
        if self._state is None:
            return
        self._state.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._state.with_suffix(".tmp")
        torch.save({"trainer": self.trainer.state(), "seconds": self._looked_at[0]}, unfinished)
        unfinished.replace(self._state)

    def _after_step(self, record: StepRecord) -> None:
        seconds, step = self._clock.seconds, record.step + 1
        over = seconds > 60 * self._watch.minutes
        due = seconds - self._looked_at[0] >= self._watch.every_seconds
        due |= step - self._looked_at[1] >= self._watch.every_steps
        if over or (due and step >= self._watch.first_step):
            self._look()
            if over or self._watch.enough(self.last):
                raise _Enough

    @torch.no_grad()
    def _look(self) -> None:
        trainer = self.trainer
        seconds, step = self._clock.seconds, trainer.step
        self._looked_at = seconds, step
        with self._clock.paused():
            figures = measure(self._test, self.trained(), self.render(), self.density(), self._rows)
            losses = [r.volume_loss for r in trainer.history[-_RECENT:] if not r.skipped]
            self.last = {
                "seconds": seconds, "step": step, "volume_loss": float(np.mean(losses or [np.nan])), **figures
            }  # fmt: skip
            self._tell(self.last)
            self._save()
