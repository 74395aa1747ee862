"""Columns of a particle table as checked NumPy arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.types import SourceTable

_LARGEST_INTEGER = 2**53
"""Beyond it float64 has gaps, and no count or number in a particle table is meant."""


def numeric_column(table: pd.DataFrame, name: str, file: Path) -> Float[np.ndarray, " n"]:
    """A column as float64; not a copy where it is that already.

    Raises
    ------
    InputError
        A value is not a finite number; names the first such row.
    """
    values = _to_numbers(table, name)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        shown = table[name].iloc[bad[0]]
        raise InputError(f"{name} is not a number ({shown})", file=file, row=int(bad[0]) + 1)
    return values


def integer_column(table: pd.DataFrame, name: str, file: Path) -> Int[np.ndarray, " n"]:
    """A column as int64.

    Raises
    ------
    InputError
        A value is not a whole number, or beyond any that could be meant; names the first such row.
    """
    values = numeric_column(table, name, file)
    bad = np.flatnonzero((values != np.round(values)) | (np.abs(values) > _LARGEST_INTEGER))
    if len(bad):
        shown = table[name].iloc[bad[0]]
        raise InputError(f"{name} is not a whole number ({shown})", file=file, row=int(bad[0]) + 1)
    return values.astype(np.int64)


def holds_no_numbers(table: pd.DataFrame, name: str) -> bool:
    """Whether no value of a column is a finite number, as where a program fills in ``None`` or ``nan``."""
    return not np.isfinite(_to_numbers(table, name)).any()


def optional_column(source: SourceTable, *names: str) -> Float[np.ndarray, " n"] | None:
    """The first of some columns that exists, per particle, from the particles or through their optics group.

    Where a column is in both tables the optics group's value counts, as in RELION; groups that no particle
    belongs to may hold anything.

    Raises
    ------
    InputError
        A value is not a finite number, or a particle's optics group is not described; names the first
        particle that needs it.
    """
    for name in names:
        if source.optics is not None and name in source.optics:
            values, rows = _to_numbers(source.optics, name), optics_rows(source)
            bad = np.flatnonzero(~np.isfinite(values)[rows])
            if len(bad):
                shown = source.optics[name].iloc[rows[bad[0]]]
                why = f"{name} of its optics group is not a number ({shown})"
                raise InputError(why, file=source.path, row=int(bad[0]) + 1)
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
    # A group described twice is as bad as one that is not: either may be meant.
    described = pd.Series(_to_numbers(optics, "rlnOpticsGroup")).drop_duplicates(keep=False)
    wanted = integer_column(particles, "rlnOpticsGroup", source.path)
    place = pd.Index(described).get_indexer(pd.Index(wanted.astype(np.float64)))
    bad = np.flatnonzero(place < 0)
    if len(bad):
        why = f"optics group {wanted[bad[0]]} is not described in the optics block, or more than once"
        raise InputError(why, file=source.path, row=int(bad[0]) + 1)
    return described.index.to_numpy()[place]


def _to_numbers(table: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    """A column as float64, NaN where it is text."""
    column: Any = table[name]
    if column.dtype == np.float64:
        return np.asarray(column)
    if column.dtype == "category":
        column = column.astype(object)
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
