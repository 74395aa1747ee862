"""What looks wrong in an input: it stops a run, or becomes a note for the user."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something about the input that the user should know.

    Attributes
    ----------
    why
        What is wrong or was assumed, as one clause without a full stop.
    advice
        What the user can do.
    stops
        Whether particles cannot be reconstructed with it; a note otherwise.
    """

    why: str
    advice: str | None = None
    stops: bool = False

    def as_note(self) -> str:
        """The sentence for a note."""
        return self.why[0].upper() + self.why[1:]
