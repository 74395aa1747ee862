"""The tables of a STAR file, of any length, in memory not much larger than the tables themselves."""

from __future__ import annotations

import linecache
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import starfile

from cryoai.errors import CryoAIError, InputError
from cryoai.types import SourceTable

_BLOCK_NAMES = ("particles", "images", "")
_ROWS = 50_000
"""Rows parsed at once: the parser needs ten times the memory of what it returns."""


def read_star_table(path: Path) -> SourceTable:
    """The particles and optics tables of a RELION STAR file, of any version since 3.0.

    Raises
    ------
    InputError
        Not a STAR file, or one without a table of particle images.
    """
    blocks = _read_blocks(path)
    name = _particles_block_name(blocks, path)
    particles = blocks[name]
    if not len(particles):
        raise InputError("holds no particles", file=path)
    optics = blocks.get("optics")
    if optics is not None and not len(optics):
        optics = None
    return SourceTable("relion", path, particles, optics, name)


def _read_blocks(path: Path) -> dict[str, pd.DataFrame]:
    texts: set[str] = set()
    while True:
        parts: dict[str, list[pd.DataFrame]] = {}
        for piece in _pieces(path):
            known = parts.setdefault(piece.name, [])
            if piece.first_row == 0:
                # Of two blocks of one name the later one counts.
                known.clear()
            known.append(_parse(piece, path, texts))
        mixed = {column for block in parts.values() for column in _mixed_columns(block)} - texts
        if not mixed:
            break
        # A column is numbers only if all of its rows are: 001 must stay 001 when a later row says A1.
        texts |= mixed
    if not parts:
        raise InputError("is not a STAR file: it has no data block", file=path)
    return {name: _join(block) for name, block in parts.items()}


@dataclass
class _Piece:
    """A block up to its rows, and some of them: a STAR file of its own."""

    name: str
    first_row: int = 0
    header: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        return re.findall(r"^[ \t]*_(\w+)", "".join(self.header), re.MULTILINE)

    def add(self, line: str) -> None:
        words = line.split(maxsplit=1)
        # Rows are what follows the labels of a loop.
        begun = bool(self.rows) or self.first_row > 0
        if begun or (words and words[0][0] != "_" and self._in_loop() and not line.lstrip().startswith("#")):
            self.rows.append(line)
        else:
            self.header.append(line)

    def _in_loop(self) -> bool:
        return any(line.lstrip().startswith("loop_") for line in self.header) and bool(self.labels)

    def rest(self) -> _Piece:
        """What goes on where this one ends."""
        return _Piece(self.name, self.first_row + len(self.rows), self.header)


def _pieces(path: Path) -> Iterator[_Piece]:
    """The file's blocks, long ones in several pieces."""
    piece: _Piece | None = None
    try:
        with open(path, "rb") as raw:
            if b"\0" in raw.read(1 << 16):
                raise InputError("is not a STAR file but a binary one", file=path)
        with open(path, encoding="utf-8-sig") as stream:
            for line in stream:
                if line.lstrip().startswith("data_"):
                    if piece is not None:
                        yield piece
                    piece = _Piece(line.strip()[len("data_") :])
                if piece is None:
                    continue
                piece.add(line)
                if len(piece.rows) == _ROWS:
                    yield piece
                    piece = piece.rest()
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except UnicodeDecodeError as error:
        raise InputError("is not a STAR file: it is not text in UTF-8", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    if piece is not None and (piece.rows or piece.first_row == 0):
        yield piece


def _parse(piece: _Piece, path: Path, texts: set[str]) -> pd.DataFrame:
    # A micrograph called 0012 must not come back as 12, so names stay text.
    as_text = [label for label in piece.labels if label.endswith("Name") or label in texts]
    with tempfile.TemporaryDirectory(prefix="cryoai-") as folder:
        file = Path(folder) / "piece.star"
        try:
            file.write_text("".join([*piece.header, *piece.rows]), encoding="utf-8")
            blocks: Any = starfile.read(file, always_dict=True, parse_as_string=as_text)
            block = blocks[piece.name]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            # pandas and shlex report broken rows in their own words, on one line or several.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            where = f", after row {piece.first_row:,}" if piece.first_row else ""
            raise InputError(f"is not a readable STAR file ({reason.strip()}{where})", file=path) from error
        except OSError as error:
            raise CryoAIError(f"cannot write to {folder} ({error.strerror}); set TMPDIR") from error
        finally:
            linecache.clearcache()
    # A block of one row may be written without a loop.
    return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])


def _mixed_columns(parts: list[pd.DataFrame]) -> set[str]:
    """Columns that are numbers in some parts of a block and text in others."""
    filled = [part for part in parts if len(part)]
    numeric = [{name for name in part if pd.api.types.is_numeric_dtype(part[name])} for part in filled]
    return set.union(*numeric) - set.intersection(*numeric) if numeric else set()


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


def _particles_block_name(blocks: dict[str, pd.DataFrame], path: Path) -> str:
    # Other programs name the block as they like, so any table with images will do.
    others = [name for name in blocks if name not in _BLOCK_NAMES and name != "optics"]
    for name in (*_BLOCK_NAMES, *others):
        if name in blocks and "rlnImageName" in blocks[name]:
            return name
    raise InputError(
        "has no column rlnImageName, so it does not describe particle images",
        file=path,
        advice="give the particles STAR file of an extraction, classification or refinement",
    )
