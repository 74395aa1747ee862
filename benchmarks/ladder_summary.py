"""What the lines of the ladder say: tables in Markdown, and the figure of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ladder_rungs import MOLECULES, TRIALS, find_limit, is_attainable, is_right, step_of
from result_tables import VERDICTS, name_of, print_origin, print_table

NEWEST = "newest"
_ORDER = [*MOLECULES, *TRIALS]


@dataclass(frozen=True)
class Step:
    """Runs of several seeds on one molecule, number of images, box and SNR, and the limit there."""

    molecule: str
    images: int
    box: int
    snr_db: float
    runs: list[dict[str, Any]]
    limit: dict[str, Any] | None

    @property
    def right(self) -> list[bool]:
        """Of each run that can be judged."""
        judged = [is_right(run, self.limit) for run in self.runs]
        return [right for right in judged if right is not None]

    @property
    def share(self) -> float | None:
        """Of the runs that are right."""
        return sum(self.right) / len(self.right) if self.right else None


@dataclass(frozen=True)
class Threshold:
    """The SNR at which half of the runs succeed, or what is known of it.

    ``bound`` is ``"="``, ``"<"`` where half or more succeed even at the lowest SNR tried (``snr_db``), and ``">"``
    where fewer do at the highest one.
    """

    snr_db: float
    bound: str = "="

    def __str__(self) -> str:
        return f"{self.bound.replace('=', '')} {self.snr_db:.1f}".strip()


def choose_lines(lines: list[dict[str, Any]], name: str | None = None) -> list[dict[str, Any]]:
    """One line of each rung: of the version ``name``, by default that of the last line.

    ``newest`` mixes the commits, of each rung the last one; what was run under another name is not among them.
    Limits that were not measured with that version are taken from the newest one that has them.
    """
    if not lines:
        raise SystemExit("nothing has been measured yet")
    name = name_of(lines[-1]) if name is None else name
    chosen = [
        line for line in lines if (_is_plain(line) if name == NEWEST else name in (line["version"], name_of(line)))
    ]
    if not chosen:
        known = ", ".join(dict.fromkeys(name_of(line) for line in lines))
        raise SystemExit(f"no line is of {name!r}; there are {known}")
    runs = {(step_of(line), line["seed"]): line for line in chosen if line["kind"] == "run"}
    steps = {step_of(line): line for line in chosen}
    limits = [find_limit(line, lines) for line in steps.values()]
    return [*runs.values(), *(limit for limit in limits if limit is not None)]


def _is_plain(line: dict[str, Any]) -> bool:
    """Whether it is of a commit by its own name and with the default options."""
    return line["version"] == line["commit"] and not line["extra"]


def make_steps(lines: Iterable[dict[str, Any]]) -> list[Step]:
    """The lines by step: molecules in the ladder's order, then by number of images, then down the SNRs."""
    lines = list(lines)
    keys = sorted({step_of(line) for line in lines}, key=lambda key: (_ORDER.index(key[0]), *key[1:3], -key[3]))
    return [
        Step(
            *key, [line for line in lines if line["kind"] == "run" and step_of(line) == key],
            next((line for line in lines if line["kind"] == "limit" and step_of(line) == key), None),
        )
        for key in keys
    ]  # fmt: skip


def find_threshold(shares: Mapping[float, float]) -> Threshold | None:
    """Where the share of successes, linear between the SNRs tried, first falls below a half on the way down.

    Parameters
    ----------
    shares
        SNR (dB) to share of successes, 0 to 1.
    """
    points = sorted(shares.items(), reverse=True)
    if not points:
        return None
    for i, (snr, share) in enumerate(points):
        if share >= 0.5:
            continue
        if i == 0:
            return Threshold(snr, ">")
        above, more = points[i - 1]
        return Threshold(above + (snr - above) * (more - 0.5) / (more - share))
    return Threshold(points[-1][0], "<")


def describe_difference(of: Threshold | None, minus: Threshold | None) -> str:
    """How many dB one threshold lies above another, or what is known of it."""
    if of is None or minus is None:
        return "–"
    # A threshold below a bound, less one that is known, is below the difference; and so on.
    bounds = {of.bound, {"<": ">", ">": "<"}.get(minus.bound, "=")} - {"="}
    return "–" if len(bounds) == 2 else f"{''.join(bounds)} {of.snr_db - minus.snr_db:+.1f}".strip()


@dataclass(frozen=True)
class Ascent:
    """How far down one molecule is found with one number of images: by the runs, and by the limit."""

    molecule: str
    images: int
    box: int
    steps: list[Step]

    @property
    def shares(self) -> dict[float, float]:
        return {step.snr_db: step.share for step in self.steps if step.share is not None}

    @property
    def attainable(self) -> dict[float, float]:
        return {step.snr_db: float(is_attainable(step.limit)) for step in self.steps if step.limit is not None}


def make_ascents(lines: Iterable[dict[str, Any]]) -> list[Ascent]:
    steps = make_steps(lines)
    keys = dict.fromkeys((step.molecule, step.images, step.box) for step in steps)
    return [Ascent(*key, [s for s in steps if (s.molecule, s.images, s.box) == key]) for key in keys]


def pool_calibration(runs: Iterable[dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Particles, right ones and mean confidence in each bin, over several runs."""
    tables = [run["confidence"] for run in runs]
    pooled = []
    for rows in zip(*tables, strict=True):
        count = sum(row[0] for row in rows)
        mean = sum(row[0] * row[2] for row in rows) / max(1, count)
        pooled.append((count, sum(row[1] for row in rows), mean))
    return pooled


def calibration_error(table: Iterable[tuple[int, int, float]]) -> float:
    """Expected calibration error: |share right - mean confidence| of the bins, weighed by their particles."""
    table = list(table)
    return sum(abs(right - count * mean) for count, right, mean in table) / max(1, sum(row[0] for row in table))


def print_tables(lines: list[dict[str, Any]], before: list[dict[str, Any]] | None = None) -> None:
    """Everything in Markdown; ``before`` are the lines of another version."""
    print_origin(lines)
    _print_steps(make_steps(lines))
    _print_thresholds(make_ascents(lines), None if before is None else make_ascents(before))
    judged = [
        (run, right) for step in make_steps(lines) for run in step.runs
        if (right := is_right(run, step.limit)) is not None and "failed" not in run
    ]  # fmt: skip
    if judged:
        _print_confidence(judged)
        _print_verdicts(judged)


def _middle(runs: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], float], spec: str) -> str:
    values = [value(run) for run in runs if "failed" not in run]
    return format(median(values), spec) if values else "–"


def gap_of_starts(run: dict[str, Any]) -> float:
    """How much better the true map explains held-out images than the best start did, nats per image."""
    return run["likelihood"]["truth"] - max(run["starts"], default=float("nan"))


def gap_of_map(run: dict[str, Any]) -> float:
    """The same of the final map."""
    return run["likelihood"]["truth"] - run["likelihood"]["map"]


def _print_steps(steps: list[Step]) -> None:
    head = (
        "molecule | SNR | images | limit | its rotations | found | FSC 0.5 | rotation | wrong by over 10° | "
        "gap, starts | gap, map | above 0.5 | verdicts | seconds | peak"
    )
    rows = []
    for step in steps:
        limit, runs = [] if step.limit is None else [step.limit], step.runs
        verdicts = [run.get("verdict") for run in runs if run.get("verdict")]
        rows.append((
            step.molecule, f"{step.snr_db:g} dB", f"{step.images:,}",
            _middle(limit, lambda r: r["fsc_0.5_px"], ".2f"),
            _middle(limit, lambda r: r["rotation_error_median"], ".1e"),
            f"{sum(step.right)} of {len(step.right)}" if step.right else "–",
            _middle(runs, lambda r: r["fsc_0.5_px"], ".2f"),
            _middle(runs, lambda r: r["rotation_error_median"], ".1e"),
            _middle(runs, lambda r: r["fraction_rotation_above_10deg"], ".1%"),
            _middle(runs, gap_of_starts, ".2f"), _middle(runs, gap_of_map, ".2f"),
            _middle(runs, lambda r: r["fraction_above_0.5"], ".0%"),
            ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS if v in verdicts) or "–",
            _middle(runs, lambda r: r["seconds"], ".0f"), _middle(runs, lambda r: r["peak_gib"], ".1f"),
        ))  # fmt: skip
    print_table(head, rows)


def _print_thresholds(ascents: list[Ascent], before: list[Ascent] | None) -> None:
    head = "molecule | images | half succeed at (dB) | limit | above the limit"
    if before is not None:
        head += " | before | against before | seconds | before"
    rows = []
    for ascent in ascents:
        runs, limit = find_threshold(ascent.shares), find_threshold(ascent.attainable)
        row = [
            ascent.molecule, f"{ascent.images:,}", "–" if runs is None else str(runs),
            "–" if limit is None else str(limit), describe_difference(runs, limit),
        ]  # fmt: skip
        if before is not None:
            key = (ascent.molecule, ascent.images, ascent.box)
            other = next((b for b in before if (b.molecule, b.images, b.box) == key), Ascent(*key, []))
            old = find_threshold(other.shares)
            row += ["–" if old is None else str(old), describe_difference(runs, old)]
            row += _seconds_at_the_top(ascent, other)
        rows.append(row)
    print_table(head, rows)


def _seconds_at_the_top(*ascents: Ascent) -> list[str]:
    """Seconds of each at the highest SNR that all of them have runs at."""
    shared = set.intersection(*({step.snr_db for step in ascent.steps if step.runs} for ascent in ascents))
    return [
        "–" if not shared else _middle(
            next(step.runs for step in ascent.steps if step.snr_db == max(shared)), lambda r: r["seconds"], ".0f"
        )
        for ascent in ascents
    ]  # fmt: skip


def _print_confidence(judged: list[tuple[dict[str, Any], bool]]) -> None:
    """Calibration over all runs; the standard deviations of right poses in those that are right."""
    groups = {
        "all": [run for run, _ in judged],
        "right": [run for run, right in judged if right],
        "wrong": [run for run, right in judged if not right],
    }
    head, rows = "runs | number | calibration error | above 0.5 | rotation σ holds | translation σ holds", []
    for name, runs in groups.items():
        if not runs:
            continue
        table = pool_calibration(runs)
        particles = sum(row[0] for row in table)
        confident = sum(run["fraction_above_0.5"] * sum(row[0] for row in run["confidence"]) for run in runs)
        inside = [
            f"{sum(run[key][0] for run in runs) / max(1, sum(run[key][1] for run in runs)):.1%}"
            for key in ("rotation_inside", "translation_inside")
        ]
        error = f"{calibration_error(table):.3f}"
        rows.append((name, str(len(runs)), error, f"{confident / particles:.1%}", *inside))
    print_table(head, rows)
    print_table(
        "confidence | particles | right | mean confidence",
        (
            (f"{i / 10:.1f} to {(i + 1) / 10:.1f}", f"{count:,}", f"{right / count:.3f}", f"{mean:.3f}")
            for i, (count, right, mean) in enumerate(pool_calibration(groups["all"])) if count
        ),
    )  # fmt: skip


def _print_verdicts(judged: list[tuple[dict[str, Any], bool]]) -> None:
    said = [(run.get("verdict"), right) for run, right in judged if run.get("verdict")]
    if said:
        kinds = (("right", True), ("wrong", False))
        rows = ((name, *(str(said.count((v, right))) for v in VERDICTS)) for name, right in kinds)
        print_table("runs | " + " | ".join(VERDICTS), rows)


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """Success against SNR, one panel per molecule, one colour per number of images; the limit dashed beside."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ascents = make_ascents(lines)
    molecules = list(dict.fromkeys(ascent.molecule for ascent in ascents))
    sizes = sorted({ascent.images for ascent in ascents})
    columns = min(3, len(molecules))
    rows = -(-len(molecules) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.8 * rows), sharex=True, sharey=True, squeeze=False
    )
    for panel in axes.flat[len(molecules) :]:
        panel.set_visible(False)
    for panel, molecule in zip(axes.flat, molecules, strict=False):
        for ascent in (a for a in ascents if a.molecule == molecule):
            colour = f"C{sizes.index(ascent.images)}"
            # Limits of several sizes are mostly the same: moved a little apart.
            runs, apart = ascent.shares, 0.02 * sizes.index(ascent.images)
            limit = {snr: value + apart for snr, value in ascent.attainable.items()}
            panel.plot(list(runs), list(runs.values()), "o-", color=colour, label=f"{ascent.images:,} images")
            panel.plot(list(limit), list(limit.values()), "--", color=colour, alpha=0.6, label="limit")
        panel.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
        panel.set_title(molecule)
        panel.legend(fontsize=7)
    for panel in axes[-1]:
        panel.set_xlabel("SNR (dB)")
    for panel in axes[:, 0]:
        panel.set_ylabel("share of runs that are right")
    # Harder to the right.
    axes[0, 0].invert_xaxis()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
