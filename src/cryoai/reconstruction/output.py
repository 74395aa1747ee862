"""The files a reconstruction leaves behind; each is written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Num

from cryoai.amortized.encoder_file import ENCODER_FILE, write_encoder
from cryoai.io import write_map, write_particles_star, write_text_atomic
from cryoai.types import Map, ParticleSet, Pose

if TYPE_CHECKING:
    from cryoai.metrics.views import ViewCoverage
    from cryoai.reconstruction.result import ReconstructionResult
    from cryoai.refinement.state import RefinementState


OUTPUTS = (
    "map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "particles.star", "fsc.csv", "metrics.jsonl",
    "report.html", "config.yaml", "training.csv", ENCODER_FILE,
)  # fmt: skip
"""The files of a finished run."""


def write_outputs(result: ReconstructionResult, label: Int[np.ndarray, " n"], number: int | None = None) -> None:
    """Write maps, particles, FSC and metrics of one class into its folder.

    Parameters
    ----------
    result
        Of the class.
    label
        Class of every row of the input, 0 for what shows none.
    number
        Of the class, where there are others: ``particles.star`` has the rows of its own particles then.
    """
    folder = result.folder
    for name, density in (
        ("half1", result.halves.unfiltered[0].cpu().numpy()),
        ("half2", result.halves.unfiltered[1].cpu().numpy()),
        ("mask", result.halves.mask.cpu().numpy()),
        ("map", result.density),
    ):
        write_map(Map(np.ascontiguousarray(density, np.float32), result.voxel_size), folder / f"{name}.mrc")
    rows = None if number is None else np.flatnonzero(label == number)
    write_particles(result.particles, result.state, label, folder / "particles.star", rows)
    write_text_atomic(folder / "fsc.csv", fsc_table(result).to_csv(index=False, float_format="%.6g"))
    if result.training:
        history = pd.DataFrame([asdict(record) for record in result.training])
        write_text_atomic(folder / "training.csv", history.to_csv(index=False, float_format="%.6g"))
    if result.encoder is not None:
        write_encoder(result.encoder, folder / ENCODER_FILE)
    write_text_atomic(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics(result)))


def write_particles(
    particles: ParticleSet,
    state: RefinementState,
    label: Int[np.ndarray, " n"],
    path: Path,
    rows: Int[np.ndarray, " m"] | None = None,
    more: Mapping[str, Num[np.ndarray, " n"]] | None = None,
) -> None:
    """The input's rows with class, poses, half-sets, confidence and standard deviations.

    Particles that were left out have the input's pose and half-set (0 and 1 where there are none), confidence 0.

    Parameters
    ----------
    particles
        The input.
    state
        Poses, one entry per row of the input.
    label
        Class of each, 0 for what shows none.
    path
        The STAR file.
    rows
        Those to write; all by default.
    more
        Further columns.
    """
    left_out = state.half < 0
    rotation, translation = state.rotation.double().numpy(), state.translation.double().numpy()
    given = particles.pose
    if given is not None:
        rotation = np.where(left_out[:, None, None], given.rotation, rotation)
        translation = np.where(left_out[:, None], given.translation, translation)
    columns: dict[str, Num[np.ndarray, " n"]] = {
        "rlnClassNumber": label,
        **(more or {}),
        "cryoaiConfidence": np.where(left_out, 0.0, state.confidence.double().numpy().clip(0, 1)),
        "cryoaiRotationStdDeg": finite_for_star(np.degrees(state.rotation_std.double().numpy())),
        "cryoaiTranslationStdAngst": finite_for_star(state.translation_std.double().numpy()),
    }
    unknown = np.ones(len(left_out), int)
    subset = unknown if particles.random_subset is None else particles.random_subset
    subset = np.where(left_out, subset, state.half + 1)
    rows = np.arange(len(left_out)) if rows is None else rows
    chosen = {name: values[rows] for name, values in columns.items()}
    pose = Pose(rotation[rows], translation[rows])
    write_particles_star(path, particles.select(rows), pose, chosen, random_subset=subset[rows])


def finite_for_star(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """STAR has no word for an unknown number; 999 stands for a pose that was not found."""
    return np.where(np.isfinite(values), np.minimum(values, 999.0), 999.0)


def fsc_table(result: ReconstructionResult) -> pd.DataFrame:
    """Half-map FSC per shell: corrected for the mask, masked, unmasked, and with random phases."""
    fsc = result.fsc
    length = fsc.corrected.box_size * result.voxel_size
    return pd.DataFrame(
        {
            "shell": fsc.corrected.shell,
            "resolution_angstrom": length / fsc.corrected.shell,
            "fsc_corrected": fsc.corrected.correlation,
            "fsc_masked": fsc.masked.correlation,
            "fsc_unmasked": fsc.unmasked.correlation,
            "fsc_phase_randomised": fsc.randomised.correlation,
        }
    )


def _views_record(views: ViewCoverage) -> dict[str, float | None]:
    """How evenly the molecule is seen; JSON has no NaN, which stands for no particles."""
    measured = {
        "views_evenness": views.evenness,
        "views_emptiest_cone_deg": views.emptiest_cone_deg,
        "views_filled_share": views.filled_share,
        "views_scf": views.scf_star,
    }
    return {name: value if math.isfinite(value) else None for name, value in measured.items()}


def metrics(result: ReconstructionResult) -> list[dict]:
    """One record per bootstrap start, per refinement round, and for the result."""
    lines: list[dict] = []
    if result.ab_initio is not None:
        pairs = zip(result.ab_initio.likelihoods, result.ab_initio.agreements, strict=True)
        lines += [
            {"step": "bootstrap", "start": i + 1, "held_out_likelihood": likelihood, "agreement": agreement}
            for i, (likelihood, agreement) in enumerate(pairs)
        ]
    if result.training:
        last = result.training[-1]
        skipped = sum(record.skipped for record in result.training)
        # JSON has no NaN, which stands for what was not trained.
        trained = {name: value for name, value in asdict(last).items() if math.isfinite(value)}
        lines.append({**trained, "step": "training", "steps": last.step + 1, "skipped": skipped})
    lines += [{"step": "round", **summary.record()} for summary in result.rounds]
    used, verdict = result.state.used, result.verdict
    lines.append(
        {
            "step": "result",
            "verdict": verdict.call,
            "verdict_reasons": list(verdict.reasons),
            "verdict_advice": list(verdict.advice),
            "particles": len(result.particles),
            "particles_used": len(used),
            "box_size": result.fsc.corrected.box_size,
            "voxel_size": result.voxel_size,
            "resolution_angstrom": result.resolution,
            "resolution_masked_angstrom": result.fsc.masked.resolution_angstrom(0.143),
            "resolution_unmasked_angstrom": result.fsc.unmasked.resolution_angstrom(0.143),
            "shared_shells": result.shared_shells,
            "symmetry": result.symmetry.name,
            "symmetry_imposed": result.symmetry.is_imposed,
            "symmetry_pseudo": result.symmetry.pseudo,
            "symmetry_tests": [asdict(test) for test in result.symmetry.tests],
            "median_confidence": float(result.state.confidence[used].median()),
            "fraction_confident": result.fraction_confident,
            "median_rotation_std_deg": float(result.state.rotation_std[used].median().rad2deg()),
            **_views_record(result.views),
            **{f"evidence_{name}": value for name, value in result.evidence.record().items()},
            "seconds": result.seconds,
            "warnings": list(result.warnings),
        }
    )
    return lines
