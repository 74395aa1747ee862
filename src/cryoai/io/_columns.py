"""Columns of a particle table as checked NumPy arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from cryoai.errors import InputError
from cryoai.types import SourceTable


def numeric_column(table: pd.DataFrame, name: str, file: Path) -> Float[np.ndarray, " n"]:
    """A column as float64; not a copy where it is that already.

    Raises
    ------
    InputError
        A value is not a finite number; names the first such row.
    """
    column = table[name]
    if column.dtype != np.float64:
        column = pd.to_numeric(column, errors="coerce")
    values = np.asarray(column, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        shown = table[name].iloc[bad[0]]
        raise InputError(f"{name} is not a number ({shown})", file=file, row=int(bad[0]) + 1)
    return values


def optional_column(source: SourceTable, *names: str) -> Float[np.ndarray, " n"] | None:
    """The first of some columns that exists, per particle, from the particles or through their optics group.

    Where a column is in both tables the optics group's value counts, as in RELION.

    Raises
    ------
    InputError
        A value is not a finite number, or a particle's optics group is not described.
    """
    for name in names:
        if source.optics is not None and name in source.optics:
            values, rows = numeric_column(source.optics, name, source.path), optics_rows(source)
            return values[rows] if len(values) > 1 else np.broadcast_to(values[0], rows.shape)
        if name in source.particles:
            return numeric_column(source.particles, name, source.path)
    return None


def optics_rows(source: SourceTable) -> np.ndarray:
    """For each particle the row of its optics group in the optics table, from 0.

    Raises
    ------
    InputError
        A particle's group has no row.
    """
    particles, optics = source.particles, source.optics
    if optics is None or "rlnOpticsGroup" not in optics or "rlnOpticsGroup" not in particles:
        # A single group needs no number; with several, the particles must say which is theirs.
        if optics is not None and len(optics) > 1:
            raise InputError("has several optics groups but no rlnOpticsGroup for its particles", file=source.path)
        return np.zeros(len(particles), dtype=np.int64)
    known = pd.Index(numeric_column(optics, "rlnOpticsGroup", source.path))
    wanted = numeric_column(particles, "rlnOpticsGroup", source.path)
    rows = np.asarray(known.get_indexer(pd.Index(wanted)) if known.is_unique else [-1] * len(wanted))
    bad = np.flatnonzero(rows < 0)
    if len(bad):
        why = f"optics group {wanted[bad[0]]:g} is not described in the optics block, or more than once"
        raise InputError(why, file=source.path, row=int(bad[0]) + 1)
    return rows
