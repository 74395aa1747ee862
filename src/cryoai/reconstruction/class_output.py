"""What a run of several classes leaves beside the folders of its classes."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from cryoai.io import write_map, write_text_atomic
from cryoai.reconstruction.output import metrics, write_particles

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ClassesResult, ReconstructionResult


def _of_starts(one: ReconstructionResult) -> dict[str, float | None]:
    """How stable a class is: which share of the starts found it, and what its images would lose without it."""
    found = one.ab_initio
    if found is None:
        return {}
    loss = found.loss if math.isfinite(found.loss) else None
    return {"stability": found.agreeing / len(found.agreements), "loss_without_nats": loss}


def write_class_outputs(result: ClassesResult) -> None:
    """Write all particles with their classes, a line of metrics for each class, and maps of those not refined."""
    assert result.classification is not None
    write_particles(
        result.classes[0].particles, result.state, result.label, result.folder / "particles.star",
        more={"cryoaiClassProbability": result.classification.confidence.double().numpy()},
    )  # fmt: skip
    lines = []
    for number, one in enumerate(result.classes, 1):
        (last,) = (line for line in metrics(one) if line["step"] == "result")
        lines.append(
            {"step": "class", "class": number, **_of_starts(one), **{k: v for k, v in last.items() if k != "step"}}
        )
    for number, density_map in enumerate(result.too_small, len(result.classes) + 1):
        write_map(density_map, result.folder / f"class{number}" / "map.mrc")
        count = int(result.classification.counts[number])
        lines.append({"step": "class", "class": number, "particles_used": count, "too_small": True})
    write_text_atomic(result.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
