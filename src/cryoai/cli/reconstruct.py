"""``cryoai reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cryoai.cli.options import ReconstructOptions, given_options

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ClassesResult, ReconstructionResult

_Flag = Parameter(negative=())


def reconstruct(
    particles: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    datadir: Path | None = None,
    options: Annotated[ReconstructOptions | None, Parameter(name="*")] = None,
    config: Path | None = None,
    resume: Annotated[bool, _Flag] = False,
    overwrite: Annotated[bool, _Flag] = False,
    quiet: Annotated[bool, _Flag] = False,
) -> None:
    """Reconstruct a map and a pose for every particle, with nothing known beforehand.

    Parameters
    ----------
    particles
        RELION .star, cryoSPARC .cs, or a bare .mrcs stack.
    output
        Folder for the map, half-maps, mask, particles.star, FSC and report.
    datadir
        Folder of the image stacks, where the file's own paths do not lead to them.
    options
        What can be told to a run.
    config
        YAML file with further options; those given here take precedence.
    resume
        Go on from the last finished step of a run that was stopped; with more --seeds, add starts to it.
    overwrite
        Replace an earlier run in the output folder.
    quiet
        Say nothing but errors.
    """
    from cryoai.cli.progress import make_progress
    from cryoai.reconstruction.assist import assist
    from cryoai.reconstruction.pipeline import reconstruct_classes as run
    from cryoai.reconstruction.processes import process_rank
    from cryoai.run.config import load_config

    settings = load_config(config, given_options(options))
    if process_rank() > 0:
        assist(particles, output, settings, datadir=datadir)
        return
    result = run(
        particles, output, settings,
        datadir=datadir, resume=resume, overwrite=overwrite, progress=make_progress(quiet),
    )  # fmt: skip
    write_reports_of(result)
    if quiet:
        return
    if result.classification is None:
        print_result(result.classes[0])
    else:
        print_classes(result)


def write_reports_of(result: ClassesResult) -> None:
    """Add the HTML reports to a finished run's folder."""
    from cryoai.report import write_classes_report, write_report

    for one in result.classes:
        write_report(one, one.folder / "report.html")
    if result.classification is not None:
        write_classes_report(result, result.folder / "report.html")


def print_classes(result: ClassesResult) -> None:
    """What a user wants to know first of several classes."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    label = result.label
    table = Table("class", "verdict", "particles", "resolution", "confident", "starts that found it", "map")
    for number, one in enumerate(result.classes, 1):
        call = one.verdict.call
        starts = "" if one.ab_initio is None else f"{one.ab_initio.agreeing} of {len(one.ab_initio.agreements)}"
        table.add_row(
            str(number), f"[bold {_COLOURS[call]}]{call}[/]", f"{(label == number).sum():,}",
            f"{one.resolution:.2f} Å",
            f"{100 * one.fraction_confident:.0f} %", starts, escape(str(one.folder / "map.mrc")),
        )  # fmt: skip
    for number in range(len(result.classes) + 1, len(result.classes) + len(result.too_small) + 1):
        path = result.folder / f"class{number}" / "map.mrc"
        table.add_row(str(number), "too small", f"{(label == number).sum():,}", "–", "–", "–", escape(str(path)))
    console = Console()
    console.print(table)
    for number, one in enumerate(result.classes, 1):
        console.print(f"Class {number}: {one.verdict.reasons[0]}", highlight=False, markup=False)
    console.print(f"{(label == 0).sum():,} of {len(label):,} images show none of them (class 0)")
    for name, path in (("particles", "particles.star"), ("report", "report.html")):
        console.print(f"{name}: {escape(str(result.folder / path))}", highlight=False)
    console.print(f"time: {max(sum(one.seconds.values()) for one in result.classes):.0f} s", highlight=False)


# One colour for each verdict; the word itself is always there.
_COLOURS = {"found": "green", "uncertain": "yellow", "not found": "red"}


def print_result(result: ReconstructionResult) -> None:
    """What a user wants to know first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    state = result.state
    used = state.used
    table = Table(show_header=False, box=None, padding=(0, 2))
    verdict = result.verdict
    table.add_row("verdict", f"[bold {_COLOURS[verdict.call]}]{verdict.call}[/]")
    masked = result.fsc.masked.resolution_angstrom(0.143)
    table.add_row("resolution", f"{result.resolution:.2f} Å" + (" (Nyquist)" if result.is_at_nyquist else ""))
    table.add_row("", f"half-map FSC 0.143, corrected for the mask; {masked:.2f} Å uncorrected")
    table.add_row("particles", f"{len(used):,} of {len(result.particles):,} used")
    if not result.config.known_poses:
        sure = result.fraction_confident
        table.add_row("confident poses", f"{100 * sure:.1f} %")
    table.add_row("views", result.views.numbers())
    unsure = "" if result.symmetry.is_imposed or verdict.call == "found" else f" (of a map that is {verdict.call})"
    table.add_row("symmetry", escape(result.symmetry.sentence() + unsure))
    table.add_row("map", escape(str(result.folder / "map.mrc")))
    table.add_row("poses", escape(str(result.folder / "particles.star")))
    table.add_row("report", escape(str(result.folder / "report.html")))
    table.add_row("time", f"{sum(result.seconds.values()):.0f} s")
    console = Console()
    console.print(table)
    console.print("Why:" if verdict.call == "found" else f"Why {verdict.call}:", style="bold")
    for reason in verdict.reasons:
        console.print(f"  - {reason}", highlight=False, markup=False)
    if verdict.advice:
        console.print("What would help:", style="bold")
        for advice in verdict.advice:
            console.print(f"  - {advice}", highlight=False, markup=False)
    if not result.config.known_poses:
        console.print("The hand is not known: untilted images cannot tell. --invert-hand mirrors it.", style="dim")
