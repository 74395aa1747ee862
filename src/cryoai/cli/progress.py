"""Bars with the time that remains on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from cryoai.run.progress import Advance, Progress

# Without a terminal, a step that takes longer than this says how far it is, this often.
_SECONDS_BETWEEN_LINES = 30.0


class ConsoleProgress(Progress):
    """Draws on standard error, so that standard output stays clean for results."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Advance]:
        """Show a piece of work while it lasts, and a line with its time when it is done."""
        start = time.perf_counter()
        if self._console.is_terminal:
            columns = (
                TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
                TextColumn("[dim]{task.fields[note]}"),
            )  # fmt: skip
            with Bars(*columns, console=self._console, transient=True) as bars:
                task = bars.add_task(name, total=total, note="")

                def update(done: int, note: str = "") -> None:
                    bars.update(task, completed=done, note=note)

                yield update
        else:
            yield self._plain_lines(name, total, start)
        self._console.print(f"  {name}  [dim]{time.perf_counter() - start:.1f} s[/dim]", highlight=False)

    def _plain_lines(self, name: str, total: int, start: float) -> Advance:
        last = start
        # Speed is measured from the first call on: what a resumed run had done before says nothing about it.
        first: tuple[int, float] | None = None

        def update(done: int, note: str = "") -> None:
            nonlocal last, first
            now = time.perf_counter()
            first = first or (done, now)
            if now - last > _SECONDS_BETWEEN_LINES and first[0] < done < total:
                last = now
                left = (now - first[1]) * (total - done) / (done - first[0])
                note = f", {note}" if note else ""
                self._console.print(f"  {name}: {done:,} of {total:,}, {left:.0f} s left{note}", highlight=False)

        return update

    def say(self, message: str) -> None:
        """Print a finding."""
        self._console.print(f"  {message}", style="cyan", highlight=False, markup=False)

    def warn(self, message: str) -> None:
        """Print a warning."""
        self._console.print(f"  Warning: {message}", style="yellow", highlight=False, markup=False)


def make_progress(quiet: bool) -> Progress:
    """The console's progress, or silence."""
    return Progress() if quiet else ConsoleProgress()
