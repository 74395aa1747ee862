"""What the lines of the hard sets say: each criterion beside what was measured, and the figures behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from hard_sets_plan import JUNK, ONLY_PREFERRED, SETS, HardSet, junk_name
from ladder_rungs import RIGHT_PX_RATIO, is_right
from result_tables import VERDICTS, name_of, print_origin, print_table

Line = dict[str, Any]

LARGEST_ANGSTROM, RIGHT_SHARE = 18.0, 0.8
DIAMETER, DIAMETER_TOLERANCE = 120.0, 8.0
HOLLOW, WIDEST_CONE_DEG = 0.5, 20.0
JUNK_TIME, JUNK_PX = 1.3, 1.05
FOUND, _, NOT_FOUND = VERDICTS


@dataclass(frozen=True)
class Outcome:
    """A criterion and what was measured; ``passed`` is None where not all that it takes has been measured."""

    what: str
    must: str
    measured: str
    passed: bool | None

    @property
    def word(self) -> str:
        return {True: "pass", False: "falls short", None: "–"}[self.passed]


def choose_lines(lines: list[Line], name: str | None = None) -> list[Line]:
    """The last line of each run, of the version ``name`` (default: that of the last line).

    Limits that were not measured with that version are the newest ones.
    """
    if not lines:
        raise SystemExit("nothing has been measured yet")
    name = name_of(lines[-1]) if name is None else name
    chosen = [line for line in lines if name in (line["version"], name_of(line))]
    if not chosen:
        known = ", ".join(dict.fromkeys(name_of(line) for line in lines))
        raise SystemExit(f"no line is of {name!r}; there are {known}")
    limits = [line for line in lines if line["kind"] == "limit" and "failed" not in line]
    measured = {line["set"] for line in chosen}
    limits = [line for line in limits if line["set"] in measured]
    return list({(line["set"], line["kind"], line["seed"]): line for line in [*limits, *chosen]}.values())


def runs_of(lines: Iterable[Line], name: str) -> list[Line]:
    """The runs on one set, by seed."""
    runs = [line for line in lines if line["set"] == name and line["kind"] == "run"]
    return sorted(runs, key=lambda line: line["seed"])


def limit_of(lines: Iterable[Line], name: str) -> Line | None:
    return next((line for line in lines if line["set"] == name and line["kind"] == "limit"), None)


# What is right


def is_apoferritin(run: Line) -> bool:
    """Whether a map is the hollow sphere that it should be, seen from everywhere and well enough resolved."""
    if "failed" in run or "fsc_0.5_angstrom" not in run:
        return False
    round_map = run["roundness"]
    diameter, centre = round_map["outer_diameter"], round_map["centre"]
    return (
        run["fsc_0.5_angstrom"] <= LARGEST_ANGSTROM
        and diameter is not None and abs(diameter - DIAMETER) <= DIAMETER_TOLERANCE
        and centre is not None and centre < HOLLOW
        and round_map["positive"]
        and run["views"]["emptiest_cone_deg"] < WIDEST_CONE_DEG
    )  # fmt: skip


def is_right_map(run: Line, limit: Line | None) -> bool | None:
    """Whether a map comes near the limit's, whatever the poses; None where that has not been measured."""
    if "failed" in run or "fsc_0.5_px" not in run:
        return False
    if limit is None or "fsc_0.5_px" not in limit:
        return None
    return run["fsc_0.5_px"] <= RIGHT_PX_RATIO * limit["fsc_0.5_px"]


def names_missing_views(run: Line) -> bool:
    """Whether one of its reasons or warnings says that views are missing, and how wide the gap is."""
    said = [*run.get("reasons", []), *run.get("warnings", [])]
    return any("views" in sentence and "missing" in sentence and "°" in sentence for sentence in said)


def verdict_of(run: Line) -> str | None:
    """What the program said; input that it refuses is not found."""
    return NOT_FOUND if "refused" in run else run.get("verdict")


# Criteria


def judge(lines: list[Line]) -> list[Outcome]:
    """Every criterion of which something has been measured."""
    outcomes = []
    for part, judge_part in _JUDGES.items():
        if any(line["part"] == part for line in lines):
            outcomes += judge_part(lines, [hard_set for hard_set in SETS if hard_set.part == part])
    return outcomes


def _judge_apoferritin(lines: list[Line], sets: list[HardSet]) -> list[Outcome]:
    (hard_set,) = sets
    runs = runs_of(lines, hard_set.name)
    right, needed = [is_apoferritin(run) for run in runs], len(hard_set.seeds)
    wrong = [run for run, is_fine in zip(runs, right, strict=True) if not is_fine]
    must = (
        f"in ≥ {math.ceil(RIGHT_SHARE * needed)} of {needed}: FSC 0.5 with the Cα model at {LARGEST_ANGSTROM:g} Å "
        f"or better, hollow (centre < {HOLLOW:g} of the shell), {DIAMETER:g} ± {DIAMETER_TOLERANCE:g} Å, protein "
        f"positive, emptiest cone < {WIDEST_CONE_DEG:g}°"
    )
    passed = sum(right) >= RIGHT_SHARE * len(runs) if len(runs) >= needed else None
    return [
        Outcome("real apoferritin", must, f"{sum(right)} of {len(runs)}", passed),
        _not_called_found("real apoferritin, runs that are not right", wrong),
    ]


def _judge_real(lines: list[Line], sets: list[HardSet]) -> list[Outcome]:
    return [
        _not_called_found(hard_set.name, runs) for hard_set in sets if (runs := runs_of(lines, hard_set.name))
    ]  # fmt: skip


def _judge_views(lines: list[Line], sets: list[HardSet]) -> list[Outcome]:
    outcomes = []
    for hard_set in sets:
        runs, needed = runs_of(lines, hard_set.name), len(hard_set.seeds)
        if hard_set.name == ONLY_PREFERRED:
            judged = [run for run in runs if verdict_of(run) is not None or "failed" in run]
            told = [verdict_of(run) == NOT_FOUND and names_missing_views(run) for run in judged]
            must = f"in {needed} of {needed}: {NOT_FOUND}, the missing views named with the emptiest cone"
        else:
            limit = limit_of(lines, hard_set.name)
            told = [fine for run in runs if (fine := is_right(run, limit)) is not None]
            must = f"in {needed} of {needed}: {_near_the_limit()}, rotations right"
        passed = None if len(told) < needed else all(told)
        outcomes.append(Outcome(f"70S, {hard_set.name}", must, f"{sum(told)} of {len(told)}", passed))
    return outcomes


def _judge_shapes(lines: list[Line], sets: list[HardSet]) -> list[Outcome]:
    outcomes = []
    for hard_set in sets:
        runs, limit = runs_of(lines, hard_set.name), limit_of(lines, hard_set.name)
        if not hard_set.told_apart:
            outcomes.append(_not_called_found(hard_set.name, runs))
            continue
        right = [fine for run in runs if (fine := is_right_map(run, limit)) is not None]
        passed = all(right) if right else None
        outcomes.append(Outcome(hard_set.name, _near_the_limit(), f"{sum(right)} of {len(right)}", passed))
    return outcomes


def _judge_junk(lines: list[Line], sets: list[HardSet]) -> list[Outcome]:
    outcomes = []
    for share in JUNK[1:]:
        pairs = pairs_with_clean(lines, share)
        for what, must, key, largest in (
            ("time", f"≤ {JUNK_TIME:g} × the clean set's", "seconds", JUNK_TIME),
            ("FSC 0.5", f"≤ {JUNK_PX:g} × the clean set's", "fsc_0.5_px", JUNK_PX),
        ):
            ratios = ratios_of(pairs, key)
            measured = f"{median(ratios):.2f} ×" if ratios else "–"
            passed = None if not pairs else bool(ratios) and len(ratios) == len(pairs) and median(ratios) <= largest
            outcomes.append(Outcome(f"{junk_name(share)}, {what}", must, measured, passed))
    return outcomes


def pairs_with_clean(lines: list[Line], share: float) -> list[tuple[Line, Line]]:
    """Runs on the set with a share of junk, each with the run on the clean set of its seed, on the same machine."""
    clean = {_machine(run): run for run in runs_of(lines, junk_name(JUNK[0]))}
    return [
        (run, clean[_machine(run)]) for run in runs_of(lines, junk_name(share)) if _machine(run) in clean
    ]  # fmt: skip


def _machine(line: Line) -> tuple[Any, ...]:
    return line["seed"], line["processor"], line["threads"]


def ratios_of(pairs: Iterable[tuple[Line, Line]], key: str) -> list[float]:
    """Of a figure with junk to that without, where neither run failed."""
    return [
        run[key] / clean[key] for run, clean in pairs
        if "failed" not in run and "failed" not in clean and key in run and key in clean
    ]  # fmt: skip


def _near_the_limit() -> str:
    return f"FSC 0.5 ≤ {RIGHT_PX_RATIO:g} × that of refinement from the true poses"


def _not_called_found(what: str, runs: list[Line]) -> Outcome:
    """That none of some runs is called found; a run that failed says nothing and falls short."""
    verdicts = [verdict_of(run) for run in runs]
    measured = ", ".join(
        "refused" if "refused" in run else "failed" if "failed" in run else verdict or "no verdict"
        for run, verdict in zip(runs, verdicts, strict=True)
    )
    passed: bool | None = FOUND not in verdicts and not any("failed" in run for run in runs)
    if passed and (not runs or None in verdicts):
        passed = None
    return Outcome(what, f"not called {FOUND}", measured or "none", passed)


_JUDGES: dict[str, Callable[[list[Line], list[HardSet]], list[Outcome]]] = {
    "apoferritin": _judge_apoferritin, "real": _judge_real, "views": _judge_views, "shapes": _judge_shapes,
    "junk": _judge_junk,
}  # fmt: skip


# Tables


def print_tables(lines: list[Line], before: list[Line] | None = None) -> None:
    """Everything in Markdown; ``before`` are the lines of another version."""
    print_origin(lines)
    outcomes, head = judge(lines), "what | must reach | measured | "
    rows = [[o.what, o.must, o.measured, o.word] for o in outcomes]
    if before is not None:
        head += " | before | "
        old = {outcome.what: outcome for outcome in judge(before)}
        for row in rows:
            row += [old[row[0]].measured, old[row[0]].word] if row[0] in old else ["–", "–"]
    print_table(head, rows)
    for part, print_part in _DETAILS.items():
        chosen = [line for line in lines if line["part"] == part]
        if chosen:
            print_part(sorted(chosen, key=_in_order))


def _in_order(line: Line) -> tuple[int, str, int]:
    return [hard_set.name for hard_set in SETS].index(line["set"]), line["kind"], line["seed"]


def _print_apoferritin(lines: list[Line]) -> None:
    head = (
        "seed | FSC 0.5 | FSC 0.143 | outer diameter | centre | protein | emptiest cone | SCF* | evenness | "
        "half-maps | confident | verdict | seconds | peak"
    )
    print_table(
        head,
        (
            (
                str(line["seed"]), _figure(line, "fsc_0.5_angstrom", ".1f", " Å"),
                _figure(line, "fsc_0.143_angstrom", ".1f", " Å"), *_round_figures(line), *_views_figures(line),
                *_own_figures(line),
            )
            for line in lines
        ),
    )  # fmt: skip
    model = next((line["true_outer_diameter"] for line in lines if line.get("true_outer_diameter")), None)
    if model is not None:
        print(f"The model's own outer diameter, measured alike: {model:.1f} Å.\n")


def _print_real(lines: list[Line]) -> None:
    rows = [
        (
            line["set"], _exit_code(line), verdict_of(line) or "–", _said(line),
            _figure(line, "half_map_angstrom", ".1f", " Å"), *_views_figures(line)[:2],
            _figure(line, "seconds", ".0f"),
        )
        for line in lines
    ]  # fmt: skip
    print_table("set | exit code | verdict | what it says | half-maps | emptiest cone | SCF* | seconds", rows)


def _print_simulated(lines: list[Line]) -> None:
    head = (
        "set | seed | kind | FSC 0.5 | correlation | rotation | wrong by over 10° | outer diameter | centre | "
        "protein | emptiest cone | SCF* | evenness | half-maps | confident | verdict | seconds | peak"
    )
    print_table(
        head,
        (
            (
                line["set"], str(line["seed"]), line["kind"], _figure(line, "fsc_0.5_px", ".2f", " px"),
                _figure(line, "correlation", ".3f"), _figure(line, "rotation_error_median", ".1e"),
                _figure(line, "fraction_rotation_above_10deg", ".1%"), *_round_figures(line),
                *_views_figures(line), *_own_figures(line),
            )
            for line in lines
        ),
    )  # fmt: skip


def _print_junk(lines: list[Line]) -> None:
    head = "set | seed | FSC 0.5 | rotation | confident particles | confident junk | verdict | seconds | peak"
    print_table(
        head,
        (
            (
                line["set"], str(line["seed"]), _figure(line, "fsc_0.5_px", ".2f", " px"),
                _figure(line, "rotation_error_median", ".1e"), _figure(line, "confident_particles", ".1%"),
                _figure(line, "confident_junk", ".1%"), *_own_figures(line)[2:],
            )
            for line in lines
        ),
    )  # fmt: skip


_DETAILS: dict[str, Callable[[list[Line]], None]] = {
    "apoferritin": _print_apoferritin, "real": _print_real, "views": _print_simulated, "shapes": _print_simulated,
    "junk": _print_junk,
}  # fmt: skip


def _figure(line: Line, key: str, spec: str, unit: str = "") -> str:
    value = line.get(key)
    return "–" if value is None else format(value, spec) + unit


def _round_figures(line: Line) -> tuple[str, str, str]:
    """Outer diameter, centre over shell, sign."""
    found = line.get("roundness", {})
    sign = {True: "white", False: "black", None: "–"}[found.get("positive")]
    return _figure(found, "outer_diameter", ".0f", " Å"), _figure(found, "centre", ".2f"), sign


def _views_figures(line: Line) -> tuple[str, str, str]:
    views = line.get("views", {})
    return (
        _figure(views, "emptiest_cone_deg", ".0f", "°"),
        _figure(views, "scf", ".2f"),
        _figure(views, "evenness", ".2f"),
    )


def _own_figures(line: Line) -> tuple[str, ...]:
    """Half-map resolution, confident share, verdict, seconds, peak memory."""
    verdict = "failed" if "failed" in line else verdict_of(line) or "–"
    return (
        _figure(line, "half_map_angstrom", ".1f", " Å"), _figure(line, "fraction_confident", ".0%"), verdict,
        _figure(line, "seconds", ".0f"), _figure(line, "peak_gib", ".1f", " GiB"),
    )  # fmt: skip


def _exit_code(line: Line) -> str:
    return str(line.get("status", "–"))


def _said(line: Line) -> str:
    """Why, in the program's own words; in one cell of a table."""
    words = (
        line.get("refused") or line.get("failed") or "; ".join(line.get("reasons") or line.get("warnings") or [])
    )
    return " ".join(words.split()).replace("|", "\\|") or "–"
