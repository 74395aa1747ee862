"""From a result to the text of one self-contained HTML page."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import yaml
from jaxtyping import Float
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from cryoai.ab_initio.agreement import AGREEMENT_THRESHOLD, AbInitioResult
from cryoai.geometry.point_groups import point_group
from cryoai.refinement.confidence import CONFIDENT
from cryoai.report.figures import (
    make_fsc_figure,
    make_histogram,
    make_orientation_figure,
    make_surface_figure,
    make_training_figure,
    make_translation_figure,
)
from cryoai.report.picture import render_map
from cryoai.report.projections import make_projections, make_slices, png_uri
from cryoai.report.surface import choose_level

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ReconstructionResult

_HAND_UNKNOWN = (
    "The hand is not known: images of untilted specimens cannot tell a map from its mirror image. "
    "If helices turn left, run again with --invert-hand --resume, or mirror the map."
)


@dataclass(frozen=True)
class _Fact:
    """A label, a value, and what to know about it."""

    label: str
    value: str
    note: str = ""


def make_html(result: ReconstructionResult) -> str:
    """The report as text.

    Parameters
    ----------
    result
        The finished run.
    """
    return (
        make_environment()
        .get_template("template.html.j2")
        .render(
            **_headline(result),
            **_map_section(result),
            **_particle_section(result),
            **_history_section(result),
            plotly_js=Markup(get_plotlyjs()),
        )
    )


def make_environment() -> jinja2.Environment:
    """Where templates are, and how they are filled."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _headline(result: ReconstructionResult) -> dict[str, Any]:
    used, total = len(result.state.used), len(result.particles)
    box = result.fsc.corrected.box_size
    cropped = (result.particles.box_size or box) > box
    note = "at Nyquist: the voxel size limits it" if result.is_at_nyquist else ""
    note += "; a larger --box-size may show more" if result.is_at_nyquist and cropped else ""
    facts = [
        _Fact("Particles used", f"{used:,}", f"of {total:,}"),
        _Fact("Box", f"{box} px", f"{box * result.voxel_size:.0f} Å"),
        _Fact("Voxel size", f"{result.voxel_size:.4g} Å", f"Nyquist {2 * result.voxel_size:.3g} Å"),
    ]
    if not result.config.known_poses and used:
        sure = f"{100 * result.fraction_confident:.0f} %"
        facts.append(_Fact("Confident poses", sure, f"probability above {CONFIDENT}"))
    facts.append(_Fact("Symmetry", result.symmetry.name, "as asked for" if result.symmetry.is_imposed else "found"))
    facts.append(_Fact("Time", duration(sum(result.seconds.values())), f"cryoai {version_of_cryoai()}"))
    warnings = [sentence(text) for text in result.warnings]
    notes = [sentence(text) for text in result.particles.notes]
    if not result.symmetry.is_imposed:
        notes.append(f"Symmetry: {result.symmetry.sentence()}.")
    if not result.config.known_poses:
        notes.insert(0, _HAND_UNKNOWN)
    verdict = result.verdict
    return {
        "verdict": verdict.call,
        "verdict_kind": verdict.call.replace(" ", "-"),
        "reasons": [sentence(text) for text in verdict.reasons],
        "advice": [sentence(text) for text in verdict.advice],
        "title": result.folder.resolve().name or "result",
        "source": str(result.particles.source.path),
        "written": datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        "version": version_of_cryoai(),
        "resolution": f"{result.resolution:.2f}",
        "resolution_note": note,
        "facts": facts,
        "warnings": warnings,
        "notes": notes,
    }


def _map_section(result: ReconstructionResult) -> dict[str, Any]:
    level = choose_level(result.density)
    return {
        "level": f"{level:.3g}",
        "picture": picture_uri(result),
        "surface": _figure("surface", make_surface_figure(result.density)),
        "slices": make_slices(result.density) + make_projections(result.density),
        "fsc": _figure("fsc", make_fsc_figure(result.fsc)),
        "fsc_rows": _fsc_rows(result),
        "randomised_from": f"{_shell_angstrom(result, result.fsc.randomisation_shell):.2f}",
    }


def _particle_section(result: ReconstructionResult) -> dict[str, Any]:
    state, known = result.state, result.config.known_poses
    used = state.used
    rotation_std = np.degrees(state.rotation_std.double().cpu().numpy()[used])
    translation_std = state.translation_std.double().cpu().numpy()[used]
    confidence = state.confidence.double().cpu().numpy()[used]
    figures: list[tuple[str, str, Markup]] = []
    if len(used):
        translation = make_translation_figure(state.translation.cpu().numpy()[used])
        figures.append(
            ("Translations", "Where particles lie in their images.", _figure("translation", translation))
        )
    if len(used) and not known:
        histogram = make_histogram(confidence, "probability of the right pose", (0.0, 1.0))
        figures.append(
            ("Confidence", "Probability that a pose is in the right basin.", _figure("confidence", histogram))
        )
    for name, values, label in (("Rotation", rotation_std, "degrees"), ("Translation", translation_std, "Å")):
        if np.isfinite(values).any():
            caption = f"Median {_median(values):.3g} {label}; the highest 1 % are in the last bar."
            histogram = make_histogram(values, f"standard deviation, {label}")
            figures.append((f"{name} precision", caption, _figure(f"{name.lower()}-std", histogram)))
    directions = make_orientation_figure(_rotations_to_show(result)) if len(used) else None
    return {
        "known_poses": known,
        "directions": _figure("directions", directions),
        "views": sentence(result.views.sentence()),
        "evenness": f"{result.views.evenness:.2f}",
        "expected_cone": f"{result.views.expected_cone_deg:.0f}",
        "particle_figures": figures,
    }


def _rotations_to_show(result: ReconstructionResult) -> Float[np.ndarray, "n 3 3"]:
    """Of the particles that take part; under a symmetry each at any of its mates, which are views as well."""
    rotation = result.state.rotation.cpu().numpy()[result.state.used]
    group = point_group(result.config.imposed_symmetry)
    return group[np.random.default_rng(0).integers(len(group), size=len(rotation))] @ rotation


def _history_section(result: ReconstructionResult) -> dict[str, Any]:
    length = result.fsc.corrected.box_size * result.voxel_size
    rounds = [
        {
            "round": str(s.round),
            "resolution": f"{length / s.fsc_radius:.2f}" if s.fsc_radius > 0 else "–",
            "limit": f"{length / s.pose_radius:.2f}" if s.pose_radius > 0 else "–",
            "change": f"{s.rotation_change_deg:.3g}",
            "searched": f"{s.search.searched:,}" if s.search.searched else "–",
            "moved": f"{s.search.moved:,}" if s.search.searched else "–",
            "mates": str(s.mates) if s.mates else "–",
            "mates_moved": f"{s.mates_moved:,}" if s.mates else "–",
        }
        for s in result.rounds
    ]
    total = max(sum(result.seconds.values()), 1e-9)
    stack_box = result.particles.box_size
    return {
        "starts": _starts(result.ab_initio),
        "starts_sentence": None if result.ab_initio is None else starts_sentence(result.ab_initio),
        "from_scratch": result.ab_initio is None and bool(result.training),
        "training": _figure("training", make_training_figure(result.training)),
        "rounds": rounds,
        "timings": [(name, duration(s), f"{100 * s / total:.0f}") for name, s in result.seconds.items()],
        "configuration": yaml.safe_dump(result.config.model_dump(), sort_keys=False, allow_unicode=True),
        "folder": str(result.folder),
        "cropped": stack_box is not None and stack_box != result.fsc.corrected.box_size,
        "stack_box": stack_box,
        "voxel_size": f"{result.voxel_size:.6g}",
        "lowpass": f"{max(15.0, 2 * result.resolution):.0f}",
    }


def _starts(ab_initio: AbInitioResult | None) -> list[dict[str, str]]:
    if ab_initio is None:
        return []
    best = int(np.argmax(ab_initio.likelihoods))
    pairs = zip(ab_initio.likelihoods, ab_initio.agreements, strict=True)
    return [
        {
            "number": str(number + 1),
            "likelihood": f"{likelihood:.2f}",
            "agreement": "the best" if number == best else f"{agreement:.2f}",
            "verdict": "kept"
            if number == best
            else ("same map" if agreement >= AGREEMENT_THRESHOLD else "different map"),
        }
        for number, (likelihood, agreement) in enumerate(pairs)
    ]


def starts_sentence(ab_initio: AbInitioResult) -> str:
    """One sentence on whether the independent starts found the same map."""
    count, agreeing = len(ab_initio.agreements), ab_initio.agreeing
    if count == 1:
        return "There was a single start: whether another one would find the same map is not known."
    if agreeing == count:
        return f"All {count} independent starts found the same map."
    if agreeing > 1:
        return f"{agreeing} of {count} independent starts found the same map, and the likeliest one is among them."
    return f"No other of the {count} independent starts found the likeliest map: do not trust it yet."


def duration(seconds: float) -> str:
    """Wall time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _fsc_rows(result: ReconstructionResult) -> list[tuple[str, str, str]]:
    fsc = result.fsc
    curves = (("corrected", fsc.corrected), ("masked", fsc.masked), ("unmasked", fsc.unmasked))
    return [
        (name, f"{curve.resolution_angstrom(0.143):.2f}", f"{curve.resolution_angstrom(0.5):.2f}")
        for name, curve in curves
    ]


def _shell_angstrom(result: ReconstructionResult, shell: int) -> float:
    return result.fsc.corrected.box_size * result.voxel_size / max(shell, 1)


def picture_uri(result: ReconstructionResult) -> str:
    """A picture of the map: what print, and browsers without WebGL, show in place of the interactive surface."""
    level = choose_level(result.density)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.png"
        render_map(result.density, result.voxel_size, path, (1050, 378), level=level)
        return png_uri(path.read_bytes())


def _figure(name: str, figure: go.Figure | None) -> Markup:
    """A figure's place in the page and its data; a script at the end of the page draws it."""
    if figure is None:
        return Markup("")
    # "</" would end the script element early; JSON allows the slash to be escaped.
    data = (figure.to_json() or "{}").replace("</", "<\\/")
    height = int(figure.layout.height or 300)  # type: ignore[union-attr]
    return Markup(  # numbers and names of our own only
        f'<div class="figure" id="figure-{name}" style="height:{height}px"></div>'
        f'<script type="application/json" data-figure="figure-{name}">{data}</script>'
    )


def _median(values: Float[np.ndarray, " n"]) -> float:
    return float(np.median(values[np.isfinite(values)]))


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def version_of_cryoai() -> str:
    """As it is installed."""
    try:
        return version("cryoai")
    except PackageNotFoundError:
        return "(not installed)"
