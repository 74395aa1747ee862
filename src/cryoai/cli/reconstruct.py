"""``cryoai reconstruct``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ReconstructionResult

_Flag = Parameter(negative=())


def reconstruct(
    particles: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    datadir: Path | None = None,
    method: Literal["search", "amortized", "hybrid"] | None = None,
    encoder: Literal["auto", "always", "never"] | None = None,
    known_poses: Annotated[bool | None, _Flag] = None,
    box_size: int | None = None,
    pixel_size: float | None = None,
    particle_diameter: float | None = None,
    max_particles: int | None = None,
    invert_contrast: Literal["auto", "yes", "no"] | None = None,
    invert_hand: Annotated[bool | None, _Flag] = None,
    no_ctf: Annotated[bool | None, _Flag] = None,
    seeds: int | None = None,
    seed: int | None = None,
    device: Literal["auto", "cpu", "cuda"] | None = None,
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
    method
        How poses are found: hybrid (the default; a bootstrap, then by encoder or by search, whichever is faster),
        search (no encoder), amortized (encoder and neural volume from scratch).
    encoder
        Whether hybrid trains an encoder, which cryoai infer can use later. Default: only for large sets.
    known_poses
        Insert at the input's poses instead of searching.
    box_size
        Fourier crop the images to this box, px. Default: the images' box, at most 128.
    pixel_size
        Å, of the images, in place of what the file says.
    particle_diameter
        Å; nothing outside this sphere is taken for particle.
    max_particles
        Use only so many particles, spread over the file.
    invert_contrast
        Whether protein is black in the images; auto finds out.
    invert_hand
        Mirror the result; the hand cannot be known from the images.
    no_ctf
        Take the images as not modulated by a CTF.
    seeds
        Independent starts; their agreement is reported.
    seed
        Everything random follows from it.
    device
        Where to compute.
    config
        YAML file with further options; those given here take precedence.
    resume
        Go on from the last finished step of a run that was stopped.
    overwrite
        Replace an earlier run in the output folder.
    quiet
        Say nothing but errors.
    """
    from cryoai.cli.progress import make_progress
    from cryoai.reconstruction.pipeline import reconstruct as run
    from cryoai.run.config import load_config

    given = {
        "method": method, "known_poses": known_poses, "box_size": box_size, "pixel_size": pixel_size,
        "particle_diameter": particle_diameter, "max_particles": max_particles,
        "invert_contrast": invert_contrast, "invert_hand": invert_hand, "no_ctf": no_ctf,
        "seeds": seeds, "seed": seed, "device": device,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    options = load_config(config, given if encoder is None else {**given, "hybrid.encoder": encoder})
    result = run(
        particles, output, options,
        datadir=datadir, resume=resume, overwrite=overwrite, progress=make_progress(quiet),
    )  # fmt: skip
    write_report_of(result)
    if not quiet:
        print_result(result)


def write_report_of(result: ReconstructionResult) -> None:
    """Add the HTML report to a finished run's folder."""
    from cryoai.report import write_report

    write_report(result, result.folder / "report.html")


def print_result(result: ReconstructionResult) -> None:
    """What a user wants to know first."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    state = result.state
    used = state.used
    table = Table(show_header=False, box=None, padding=(0, 2))
    masked = result.fsc.masked.resolution_angstrom(0.143)
    table.add_row("resolution", f"{result.resolution:.2f} Å" + (" (Nyquist)" if result.at_nyquist else ""))
    table.add_row("", f"half-map FSC 0.143, corrected for the mask; {masked:.2f} Å uncorrected")
    table.add_row("particles", f"{len(used):,} of {len(result.particles):,} used")
    if not result.config.known_poses:
        sure = float((state.confidence[used] > 0.5).float().mean())
        table.add_row("confident poses", f"{100 * sure:.1f} %")
    table.add_row("map", escape(str(result.folder / "map.mrc")))
    table.add_row("poses", escape(str(result.folder / "particles.star")))
    table.add_row("report", escape(str(result.folder / "report.html")))
    table.add_row("time", f"{sum(result.seconds.values()):.0f} s")
    console = Console()
    console.print(table)
    if not result.config.known_poses:
        console.print("The hand is not known: untilted images cannot tell. --invert-hand mirrors it.", style="dim")
