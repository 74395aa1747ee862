"""The HTML report of a reconstruction, and pictures of maps.

Plotting libraries load when a report is written, not when this package is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ClassesResult, ReconstructionResult

__all__ = ["write_classes_report", "write_picture", "write_report"]


def write_report(result: ReconstructionResult, path: Path) -> None:
    """Write one self-contained HTML file that shows what a run found and how far to trust it.

    Parameters
    ----------
    result
        The finished run.
    path
        The HTML file; it needs no network and no other file.
    """
    from cryoai.io import write_text_atomic
    from cryoai.report.html import make_html

    write_text_atomic(path, make_html(result))


def write_classes_report(result: ClassesResult, path: Path) -> None:
    """Write one self-contained HTML file that shows all classes of a run side by side.

    Parameters
    ----------
    result
        The finished run.
    path
        The HTML file; it links to the classes' own reports, in folders beside it.
    """
    from cryoai.io import write_text_atomic
    from cryoai.report.classes import make_classes_html

    write_text_atomic(path, make_classes_html(result))


def write_picture(result: ReconstructionResult, path: Path, size: tuple[int, int] = (1500, 540)) -> None:
    """Write a PNG of the run's map, three views side by side.

    Parameters
    ----------
    result
        The finished run.
    path
        The PNG.
    size
        Width and height, px.
    """
    from cryoai.report.picture import render_map

    render_map(result.density, result.voxel_size, path, size)
