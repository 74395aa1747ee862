"""The page that shows all classes of a run side by side; each has a report of its own."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from cryoai.report.html import make_environment, picture_uri, sentence, starts_sentence, version_of_cryoai

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ClassesResult, ReconstructionResult


def make_classes_html(result: ClassesResult) -> str:
    """The page as text.

    Parameters
    ----------
    result
        The finished run.
    """
    particles, label = result.classes[0].particles, result.label
    last = len(result.classes) + len(result.too_small)
    # What was said before there were classes is in the warnings of each.
    warnings = [set(one.warnings) for one in result.classes]
    common = [text for text in result.classes[0].warnings if all(text in others for others in warnings)]
    return (
        make_environment()
        .get_template("classes.html.j2")
        .render(
            title=result.folder.resolve().name or "result",
            source=str(particles.source.path),
            warnings=[sentence(text) for text in common],
            classes=[_describe(one, number, label) for number, one in enumerate(result.classes, 1)],
            too_small=[_tell_of_small(number, label) for number in range(len(result.classes) + 1, last + 1)],
            in_none=f"{np.sum(label == 0):,}",
            version=version_of_cryoai(),
            written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        )
    )


def _tell_of_small(number: int, label: Int[np.ndarray, " n"]) -> str:
    count = np.sum(label == number)
    return f"Class {number} has {count:,} particles, too few to be refined: its map is the bootstrap's."


def _tell_of_starts(result: ReconstructionResult) -> str:
    if result.ab_initio is None:
        return ""
    loss = result.ab_initio.loss
    need = f" Without it its images would lose {loss:.1f} nats each." if np.isfinite(loss) else ""
    return starts_sentence(result.ab_initio) + need


def _describe(result: ReconstructionResult, number: int, label: Int[np.ndarray, " n"]) -> dict[str, Any]:
    verdict, count = result.verdict, int(np.sum(label == number))
    return {
        "number": number,
        "verdict": verdict.call,
        "kind": verdict.call.replace(" ", "-"),
        "reason": sentence(verdict.reasons[0]) if verdict.reasons else "",
        "particles": f"{count:,}",
        "share": f"{100 * count / len(label):.1f} %",
        "resolution": f"{result.resolution:.2f} Å",
        "confident": f"{100 * result.fraction_confident:.0f} %",
        "scf": f"{result.views.scf_star:.2f}",
        "starts": _tell_of_starts(result),
        "picture": picture_uri(result),
    }
