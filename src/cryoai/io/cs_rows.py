"""Some rows of a cryoSPARC ``.cs`` file, with all its columns as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool

from cryoai.errors import InputError
from cryoai.io._cs_table import load_rows
from cryoai.io.atomic import atomic_path


def copy_cs_rows(source: Path, kept: Bool[np.ndarray, " n"], output: Path) -> None:
    """Write the chosen rows of a file into another one; atomically.

    Parameters
    ----------
    source
        The ``.cs`` file.
    kept
        Which of its rows.
    output
        The ``.cs`` file to write or replace.

    Raises
    ------
    InputError
        The file cannot be read, or has another number of particles.
    """
    rows = load_rows(source)
    if len(rows) != len(kept):
        raise InputError(
            f"has {len(rows)} particles, the run {len(kept)}",
            file=source,
            advice="give the file that was reconstructed",
        )
    with atomic_path(output) as temporary, open(temporary, "wb") as stream:
        np.save(stream, rows[kept])
