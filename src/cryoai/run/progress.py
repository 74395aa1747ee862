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


class PartProgress(Progress):
    """Another progress, told of a part of the run.

    Parameters
    ----------
    whole
        Who listens.
    part
        What everything that is said is of.
    """

    def __init__(self, whole: Progress, part: str) -> None:
        self._whole, self._part = whole, part

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Advance]:
        """As `Progress.step`."""
        with self._whole.step(f"{self._part}: {name}", total) as advance:
            yield advance

    def say(self, message: str) -> None:
        """As `Progress.say`."""
        self._whole.say(f"{self._part}: {message}")

    def warn(self, message: str) -> None:
        """As `Progress.warn`."""
        self._whole.warn(f"{self._part}: {message}")
