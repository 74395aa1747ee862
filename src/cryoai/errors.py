"""The package's own errors: what a user did, where, and what to do about it."""

from __future__ import annotations

from pathlib import Path


class CryoAIError(Exception):
    """Any failure that cryoai reports in its own words; the command line exits with 1."""

    exit_code = 1


class InputError(CryoAIError):
    """The input or the options are wrong; the command line exits with 2.

    Parameters
    ----------
    why
        What is wrong, as one clause without a full stop.
    file
        The file it was found in.
    row
        The particle's row in that file, counted from 1.
    advice
        What the user can do, as one clause without a full stop.
    """

    exit_code = 2

    def __init__(
        self, why: str, *, file: str | Path | None = None, row: int | None = None, advice: str | None = None
    ) -> None:
        self.why, self.file, self.row, self.advice = why, file, row, advice
        place = "" if file is None else f"{file}: " if row is None else f"{file}, particle {row}: "
        super().__init__(place + why + ("" if advice is None else f"; {advice}"))
