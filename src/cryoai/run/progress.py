"""How a run tells what it is doing, without knowing who listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Advance(Protocol):
    """What a piece of work calls as it goes on."""

    def __call__(self, done: int, note: str = "") -> None:
        """Units done so far, and a few words such as a loss."""
        ...


class Progress:
    """Silent; the command line has one that draws bars with the time that remains."""

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Advance]:
        """A piece of work of ``total`` units; yields what is to be called with the units done so far."""

        def ignore(done: int, note: str = "") -> None:
            pass

        yield ignore

    def say(self, message: str) -> None:
        """A finding worth a line."""

    def warn(self, message: str) -> None:
        """Something the user should know before trusting the result."""
        self.say(message)
