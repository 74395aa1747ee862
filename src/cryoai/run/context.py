"""What every stage of a run is given, and what it tells the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import PartProgress, Progress


@dataclass(eq=False)
class Run:
    """Options, checkpoints and a listener, and what has been said and how long it took.

    Attributes
    ----------
    config
        The options.
    checkpoint
        Where finished steps are kept.
    progress
        Told what is going on.
    warnings
        What the user should know before trusting the result.
    seconds
        Wall time of each part.
    """

    config: ReconstructConfig
    checkpoint: Checkpoint
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def of_class(self, number: int, after: str) -> Run:
        """The same run for one of several classes, whose steps go on from ``after``."""
        name = f"class{number}"
        progress = PartProgress(self.progress, f"Class {number}")
        return Run(self.config, self.checkpoint.child(name, after), progress, list(self.warnings), self.seconds)

    def warn(self, message: str) -> None:
        """Tell the user now, and again at the end."""
        self.warnings.append(message)
        self.progress.warn(message)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time that a part takes to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
