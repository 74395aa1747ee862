"""The tables of a STAR file, of any length, in memory not much larger than the tables themselves."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cryoai.errors import InputError
from cryoai.io._other_tables import refuse_other_star
from cryoai.io._star_words import split_words
from cryoai.types import SourceTable

_BLOCK_NAMES = ("particles", "images", "")
_ROWS = 50_000
"""Rows parsed at once: the parser needs several times the memory of what it returns."""
_SEPARATOR = "\x1f"
"""Between the words of a row on their way to pandas, as they may hold white space; ASCII made it for this."""


def read_star_table(path: Path) -> SourceTable:
    """The particles and optics tables of a RELION STAR file, of any version since 3.0.

    A column is numbers if all of its words are finite numbers, else text, word for word as in the file.

    Raises
    ------
    InputError
        Not a STAR file, one without a table of particle images, or a row that does not have one word for each
        column.
    """
    blocks = _read_blocks(path)
    name = _particles_block_name(blocks, path)
    particles = blocks[name].table
    assert particles is not None
    if not len(particles):
        raise InputError("holds no particles", file=path)
    optics = blocks["optics"].table if "optics" in blocks else None
    if optics is not None and not len(optics):
        optics = None
    return SourceTable("relion", path, particles, optics, name)


@dataclass
class _Block:
    """A block's columns, and its rows where they are of use here."""

    name: str
    labels: list[str] = field(default_factory=list)
    table: pd.DataFrame | None = None

    @property
    def is_used(self) -> bool:
        return self.name == "optics" or "rlnImageName" in self.labels


@dataclass
class _Piece:
    """Some rows of a block, each a line of words between separators."""

    block: _Block
    first_row: int = 0
    rows: list[str] = field(default_factory=list)

    def rest(self) -> _Piece:
        """What goes on where this one ends."""
        return _Piece(self.block, self.first_row + len(self.rows))


def _read_blocks(path: Path) -> dict[str, _Block]:
    texts: set[str] = set()
    while True:
        blocks: dict[str, _Block] = {}
        parts: dict[str, list[pd.DataFrame]] = {}
        for piece in _pieces(path):
            block = piece.block
            if piece.first_row == 0:
                # Of two blocks of one name the later one counts.
                blocks[block.name], parts[block.name] = block, []
            if block.is_used:
                parts[block.name].append(_parse(piece, path, texts))
        as_text = {column for block in parts.values() for column in _text_columns(block)} - texts
        if not as_text:
            break
        # A column is numbers only if all of its rows are: 001 must stay 001 when a later row says A1.
        texts |= as_text
    if not blocks:
        raise InputError("is not a STAR file: it has no data block", file=path)
    for name, block in blocks.items():
        if block.is_used:
            block.table = _join(parts[name])
    return blocks


def _pieces(path: Path) -> Iterator[_Piece]:
    """The file's blocks, long ones in several pieces; rows only of those that are used."""
    piece: _Piece | None = None
    in_loop = in_rows = False
    for line in _lines(path):
        words = split_words(line)
        if not words:
            continue
        # Quotes are gone from the words; only what is bare in the line is a keyword or a label.
        bare = words[0] if line.lstrip(" \t\r\f\v").startswith(words[0]) else ""
        # Micrographs of a folder data_2024/ begin like a block, but other words follow.
        if len(words) == 1 and bare.startswith("data_"):
            if piece is not None:
                yield piece
            piece, in_loop, in_rows = _Piece(_Block(bare[len("data_") :])), False, False
        elif piece is None:
            continue
        elif len(words) == 1 and bare == "loop_" and not in_rows:
            in_loop = True
        elif bare.startswith("_") and not in_rows:
            if piece.rows or not in_loop:
                _add_single_value(piece, words, path)
            else:
                piece.block.labels.append(words[0][1:])
        elif in_loop and piece.block.labels:
            in_rows = True
            if piece.block.is_used:
                _add_row(piece, words, path)
                if len(piece.rows) == _ROWS:
                    yield piece
                    piece = piece.rest()
        elif piece.block.is_used:
            raise InputError(f"is not a readable STAR file ({line.strip()[:60]!r} belongs to no table)", file=path)
    if piece is not None and (piece.rows or piece.first_row == 0):
        yield piece


def _lines(path: Path) -> Iterator[str]:
    try:
        with open(path, "rb") as raw:
            if b"\0" in raw.read(1 << 16):
                raise InputError("is not a STAR file but a binary one", file=path)
        with open(path, encoding="utf-8-sig") as stream:
            yield from stream
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except UnicodeDecodeError as error:
        raise InputError("is not a STAR file: it is not text in UTF-8", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error


def _add_single_value(piece: _Piece, words: list[str], path: Path) -> None:
    """A label and its value, of a block of one row that is written without a loop."""
    piece.block.labels.append(words[0][1:])
    if len(words) != 2:
        if piece.block.is_used:
            label = f"_{piece.block.labels[-1]} of data_{piece.block.name}"
            raise InputError(f"is not a readable STAR file ({label} needs one value)", file=path)
        words = [words[0], ""]
    piece.rows = [_SEPARATOR.join([*piece.rows, words[1]])]


def _add_row(piece: _Piece, words: list[str], path: Path) -> None:
    columns = len(piece.block.labels)
    row = _SEPARATOR.join(words)
    if len(words) == columns and row.count(_SEPARATOR) == columns - 1 and "\0" not in row:
        piece.rows.append(row)
        return
    number = piece.first_row + len(piece.rows) + 1
    reason = f"has {len(words)} words for {columns} columns"
    if len(words) == columns:
        reason = "holds control characters"
    in_optics = piece.block.name == "optics"
    raise InputError(
        f"is not a readable STAR file: {f'row {number} of data_optics' if in_optics else 'its row'} {reason}",
        file=path,
        row=None if in_optics else number,
        advice="quote words that hold spaces; copy the file again if it is cut off",
    )


def _parse(piece: _Piece, path: Path, texts: set[str]) -> pd.DataFrame:
    labels = piece.block.labels
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(f"has the column {twice} twice in data_{piece.block.name}", file=path)
    if not labels:
        return pd.DataFrame()
    # A micrograph called 0012 must not come back as 12, so names stay text.
    as_text: Any = {label: str for label in labels if label.endswith("Name") or label in texts}
    return pd.read_csv(
        StringIO("\n".join(piece.rows) + "\n" if piece.rows else ""),
        sep=_SEPARATOR, header=None, names=labels, index_col=False, dtype=as_text, quoting=csv.QUOTE_NONE,
        keep_default_na=False, na_filter=False, skip_blank_lines=False, low_memory=False,
    )  # fmt: skip


def _text_columns(parts: list[pd.DataFrame]) -> set[str]:
    """Columns of which pandas took some parts for something else than text, and not all for finite numbers."""
    filled = [part for part in parts if len(part)]
    return {
        name
        for name in (filled[0] if filled else ())
        if any(part[name].dtype.kind in "iufb" for part in filled)
        and not all(_is_numbers(part, name) for part in filled)
    }


def _is_numbers(part: pd.DataFrame, name: str) -> bool:
    column = part[name]
    # pandas also takes True for a truth value and inf for a number; both would come back in other words.
    return column.dtype.kind in "iuf" and bool(np.isfinite(column.to_numpy()).all())


def _join(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table of all rows. Column by column, so that never all of them are in memory twice."""
    parts = [part for part in parts if len(part)] or parts[:1]
    names = list(parts[0])
    return pd.DataFrame(
        {name: _compact(pd.concat([p.pop(name) for p in parts], ignore_index=True)) for name in names}
    )


def _compact(column: pd.Series) -> pd.Series:
    """Names that many particles share, such as their micrograph's, are kept once."""
    if pd.api.types.is_numeric_dtype(column) or column.nunique() > len(column) // 2:
        return column
    return column.astype("category")


def _particles_block_name(blocks: dict[str, _Block], path: Path) -> str:
    # Other programs name the block as they like, so any table with images will do.
    others = [name for name in blocks if name not in _BLOCK_NAMES and name != "optics"]
    for name in (*_BLOCK_NAMES, *others):
        if name in blocks and "rlnImageName" in blocks[name].labels:
            return name
    refuse_other_star({name: block.labels for name, block in blocks.items()}, path)
