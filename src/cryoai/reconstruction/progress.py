"""How a run tells what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Silent; the command line has one that draws bars with the time that remains."""

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A piece of work of ``total`` units; yields what is to be called with the units done so far."""
        yield lambda done: None

    def say(self, message: str) -> None:
        """A finding worth a line."""

    def warn(self, message: str) -> None:
        """Something the user should know before trusting the result."""
        self.say(message)
