"""The table of a cryoSPARC ``.cs`` file, completed from the passthrough file beside it.

A job writes what it changed to its particles file and leaves what it was given (CTF, poses of an earlier job,
sometimes the images) in a passthrough file of the same folder; both name each particle by its ``uid``.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.io._other_tables import describe_other_cs

_LARGEST_INTEGER = 2**53
_LONGEST_HEADER = 1 << 17
"""Bytes: the columns of a hundred classes take 60,000."""
# A group of columns, the one that must be there for the group to be of use, and its name in a sentence.
_GROUPS = (
    ("blob", "blob/path", "Images"),
    ("ctf", "ctf/df1_A", "CTF"),
    ("alignments3D", "alignments3D/pose", "Poses"),
)
# A header is parsed as Python: what is nested too deeply ends in the last two.
_UNREADABLE = (
    ValueError, EOFError, TypeError, LookupError, OverflowError, SyntaxError, tokenize.TokenError, RecursionError,
    MemoryError,
)  # fmt: skip
_CLASS_POSE = re.compile(r"(alignments(?!3D/|2D/)\w+)/pose")


@dataclass
class CsTable:
    """The columns of a ``.cs`` file by name, on disk until they are asked for.

    Attributes
    ----------
    path
        The file.
    columns
        One entry per particle in each.
    notes
        Sentences for the user about what came from where.
    """

    path: Path
    columns: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def numbers(self, name: str, *shape: int) -> Float[np.ndarray, " n ..."]:
        """A column as float64.

        Raises
        ------
        InputError
            It doesn't hold numbers, or not ``shape`` of them per particle.
        """
        column = self.columns[name]
        if column.dtype.kind not in "iufb" or column.shape[1:] != shape:
            wanted = " x ".join(str(n) for n in shape) or "one"
            raise InputError(
                f"{name} does not hold {wanted} number{'s' * bool(shape)} per particle", file=self.path
            )
        return column.astype(np.float64)

    def integers(self, name: str, *, lowest: int = -_LARGEST_INTEGER) -> Int[np.ndarray, " n"]:
        """A column as int64.

        Raises
        ------
        InputError
            A value is not a whole number, or below ``lowest``, or beyond any that could be meant.
        """
        values = self.numbers(name)
        # NaN compares false with everything.
        good = (values == np.round(values)) & (values >= lowest) & (values < _LARGEST_INTEGER)
        if not good.all():
            row = int(np.flatnonzero(~good)[0])
            kind = "whole number" if lowest < 0 else f"whole number from {lowest}"
            raise InputError(f"{name} is not a {kind} ({self.columns[name][row]})", file=self.path, row=row + 1)
        return values.astype(np.int64)

    def texts(self, name: str) -> list[str]:
        """A column as text.

        Raises
        ------
        InputError
            It doesn't hold text in UTF-8.
        """
        column = self.columns[name]
        if column.dtype.kind not in "SU" or column.ndim != 1:
            raise InputError(f"{name} does not hold text", file=self.path)
        # Most particles share a stack: decoding each distinct name once is much quicker.
        distinct, inverse = np.unique(column, return_inverse=True)
        try:
            decoded = [text.decode() if isinstance(text, bytes) else str(text) for text in distinct.tolist()]
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not text in UTF-8", file=self.path) from error
        return [decoded[place] for place in inverse]


def read_cs_table(path: Path) -> CsTable:
    """A table of particles with the images' names, and with CTF and poses if this file or its passthrough has any.

    Raises
    ------
    InputError
        Not a ``.cs`` file, or one that names no images.
    """
    table = _load(path)
    if "blob/path" not in table or "blob/idx" not in table or not _has_all(table):
        _add_from_passthrough(table)
    if "blob/path" not in table or "blob/idx" not in table:
        beside = _file_beside(table, "blob/path")
        raise InputError(
            f"has no blob/path and blob/idx, so it names no images: {describe_other_cs(table.columns)}",
            file=path,
            advice=f"give {beside}, which lies beside it" if beside else "give the particles .cs file of the job",
        )
    if not len(table):
        raise InputError("holds no particles", file=path)
    if "alignments3D/pose" not in table:
        _tell_where_poses_are(table)
    return table


def _has_all(table: CsTable) -> bool:
    return all(column in table for _, column, _ in _GROUPS)


def _load(path: Path) -> CsTable:
    rows = load_rows(path)
    return CsTable(path, {name: rows[name] for name in rows.dtype.names or ()})


def load_rows(path: Path) -> np.ndarray:
    """The structured array of one file as it is; mapped, as most columns are never needed.

    Raises
    ------
    InputError
        Not a ``.cs`` file, or it cannot be read.
    """
    try:
        _check_header_length(path)
        # A damaged header may promise more than memory holds.
        rows = np.load(path, mmap_mode="r", allow_pickle=False, max_header_size=_LONGEST_HEADER)
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    except _UNREADABLE as error:
        raise InputError("is not a readable cryoSPARC .cs file", file=path) from error
    if not isinstance(rows, np.ndarray) or not rows.dtype.names:
        raise InputError("is not a cryoSPARC .cs file: it has no named columns", file=path)
    return rows.reshape(-1)


def _check_header_length(path: Path) -> None:
    """Refuse, by a ValueError, a header that NumPy would take gigabytes for before it finds it missing."""
    with open(path, "rb") as stream:
        begin = stream.read(12)
    # From format 2 on the length has four bytes; before, it is small.
    if begin[6:7] > b"\1" and int.from_bytes(begin[8:12], "little") > _LONGEST_HEADER:
        raise ValueError("header too long")


def _add_from_passthrough(table: CsTable) -> None:
    """Complete a table from the passthrough files of its job that know all of its particles."""
    if _is_passthrough(table.path):
        return
    for other in _tables_beside(table, "passthrough"):
        for group, column, what in _GROUPS:
            if column in table or column not in other:
                continue
            rows = _rows_of_same_particles(table, other)
            if rows is None:
                table.notes.append(f"{what}: {other.path.name} beside it has them, but not for all particles")
                continue
            for name in [name for name in other.columns if name.startswith(f"{group}/") and name not in table]:
                table.columns[name] = other.columns[name][rows]
            table.notes.append(f"{what}: from {other.path.name} beside it, joined by uid")


def _tell_where_poses_are(table: CsTable) -> None:
    for holder in (table, *_tables_beside(table, "passthrough")):
        classes = [match[1] for name in holder.columns if (match := _CLASS_POSE.fullmatch(name))]
        if classes and (holder is table or _shares_particles(table, holder)):
            named = classes[0] if len(classes) == 1 else f"{classes[0]} to {classes[-1]}"
            where = "" if holder is table else f" in {holder.path.name}"
            table.notes.append(
                f"Poses: none that belong to one map (alignments3D); those of each class ({named}{where}) are not "
                "read: refine one class in cryoSPARC, and give its particles"
            )
            return
    if beside := _file_beside(table, "alignments3D/pose"):
        table.notes.append(f"Poses: absent here, but {beside} beside it has them for particles that are in both")


def _file_beside(table: CsTable, column: str) -> str | None:
    """The last file of the same job and particles that has a column."""
    for other in reversed(list(_tables_beside(table))):
        if column in other and _shares_particles(table, other):
            return other.path.name
    return None


def _tables_beside(table: CsTable, word: str = "") -> Iterator[CsTable]:
    """The readable files with uids in its folder, of the same job as far as names say, with a word in theirs."""
    job = _job(table.path)
    for path in sorted(table.path.resolve().parent.glob("*.cs")):
        if (
            path.name == table.path.name
            or word not in path.name.lower()
            or (job and _job(path) and _job(path) != job)
        ):
            continue
        try:
            other = _load(path)
        except InputError:
            # It was not asked for, so what is wrong with it is of no interest.
            continue
        if _has_uids(table) and _has_uids(other):
            yield other


def _is_passthrough(path: Path) -> bool:
    return "passthrough" in path.name.lower()


def _job(path: Path) -> str | None:
    match = re.search(r"(?:^|_)J(\d+)_", path.name)
    return match[1] if match else None


def _has_uids(table: CsTable) -> bool:
    return "uid" in table and table.columns["uid"].dtype.kind in "iu" and table.columns["uid"].ndim == 1


def _rows_of_same_particles(table: CsTable, other: CsTable) -> Int[np.ndarray, " n"] | None:
    """For each particle its row in another table; None unless each is there exactly once."""
    wanted, known = table.columns["uid"], np.asarray(other.columns["uid"])
    order = np.argsort(known, kind="stable")
    left, right = (np.searchsorted(known, wanted, side=side, sorter=order) for side in ("left", "right"))
    return order[left] if (right - left == 1).all() else None


def _shares_particles(table: CsTable, other: CsTable) -> bool:
    return bool(np.isin(table.columns["uid"], other.columns["uid"]).any())
