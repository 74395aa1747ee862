"""``cryoai infer``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

_Flag = Parameter(negative=())


def infer(
    particles: Path,
    *,
    run: Path,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    refine: bool = True,
    datadir: Path | None = None,
    pixel_size: float | None = None,
    no_ctf: Annotated[bool, _Flag] = False,
    invert_contrast: Literal["auto", "yes", "no"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    overwrite: Annotated[bool, _Flag] = False,
    quiet: Annotated[bool, _Flag] = False,
) -> None:
    """Pose new particles with the encoder of a finished run, for instance while data are still being collected.

    Parameters
    ----------
    particles
        RELION .star, cryoSPARC .cs, or a bare .mrcs stack.
    run
        Folder of a run that trained an encoder (--method amortized, or hybrid with --encoder always).
    output
        STAR file to write.
    refine
        Refine each pose to the full resolution of the run's map, and search all poses where it fits badly;
        --no-refine keeps the encoder's best rotation.
    datadir
        Folder of the image stacks, where the file's own paths do not lead to them.
    pixel_size
        Å, of the images, in place of what the file says.
    no_ctf
        Take the images as not modulated by a CTF.
    invert_contrast
        Whether protein is black in the images; auto takes what the file says, or what the run's images had.
    device
        Where to compute.
    overwrite
        Replace the output file.
    quiet
        Say nothing but errors.
    """
    from rich.console import Console
    from rich.markup import escape

    from cryoai.cli.progress import make_progress
    from cryoai.errors import InputError
    from cryoai.reconstruction.infer import infer as run_infer
    from cryoai.refinement.confidence import CONFIDENT

    if output.exists() and not overwrite:
        raise InputError("already exists", file=output, advice="replace it with --overwrite, or give another -o")
    if output.suffix != ".star":
        raise InputError("is not named .star", file=output, advice="give -o NAME.star")
    poses = run_infer(
        particles, run, output, refine=refine, datadir=datadir, pixel_size=pixel_size, no_ctf=no_ctf,
        invert_contrast=invert_contrast, device=device, progress=make_progress(quiet),
    )  # fmt: skip
    if quiet:
        return
    console = Console()
    for warning in poses.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    used = poses.confidence[poses.usable]
    rate = len(used) / max(poses.seconds, 1e-9)
    sure = float((used > CONFIDENT).float().mean())
    console.print(
        f"{len(used):,} particles posed, {rate:,.0f} images/s; {100 * sure:.1f} % "
        f"with confidence above {CONFIDENT}. Written to {escape(str(output))}",
        highlight=False,
    )
