"""``cryoai demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

_BOX, _PIXEL_SIZE, _PARTICLES, _SNR_DB, _SHIFT_SIGMA = 48, 5.0, 3000, -8.0, 12.0


def demo(*, output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo")) -> None:
    """Simulate noisy particles of a test molecule, reconstruct it from nothing, and compare with the truth.

    Parameters
    ----------
    output
        Folder for the simulation and the reconstruction; an earlier demo there is replaced.
    """
    from rich.console import Console

    from cryoai.cli.evaluate import evaluate
    from cryoai.cli.options import ReconstructOptions
    from cryoai.cli.reconstruct import reconstruct
    from cryoai.cli.simulate import simulate

    console = Console()
    simulated, found = output / "simulated", output / "reconstruction"
    console.rule("1. Simulate")
    simulate(
        phantom=True, box_size=_BOX, pixel_size=_PIXEL_SIZE, n_particles=_PARTICLES, snr_db=_SNR_DB,
        shift_sigma=_SHIFT_SIGMA, output=simulated, overwrite=True,
    )  # fmt: skip
    console.rule("2. Reconstruct, with nothing known but the images and their CTFs")
    reconstruct(simulated / "particles.star", output=found, options=ReconstructOptions(seeds=2), overwrite=True)
    console.rule("3. Compare with the truth")
    evaluate(
        map_=[found / "map.mrc"], true_map=[simulated / "true_map.mrc"],
        poses=found / "particles.star", true_poses=simulated / "particles.star",
    )  # fmt: skip
    console.print(f"\nOpen {found / 'report.html'} in a browser and {found / 'map.mrc'} in ChimeraX.")
