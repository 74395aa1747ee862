"""Where the image stacks that a metadata file names lie on this disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryoai.errors import InputError

_LONGEST_END = 20
"""Parts of a name that are tried at most, so that a damaged name doesn't take minutes."""
# cryoSPARC puts a 15 to 21 digit identifier before the names of files it links to.
_UID_PREFIX = re.compile(r"^\d{9,}_")


@dataclass(frozen=True)
class FoundStack:
    """A stack's file.

    Attributes
    ----------
    path
        The existing file.
    by_tail
        Whether only the end of the name led to it, so that it may be another stack of that name.
    in_datadir
        Whether it lies in the user's folder of stacks.
    """

    path: Path
    by_tail: bool
    in_datadir: bool


@dataclass
class StackFinder:
    """Finds stacks by name.

    The whole name is tried in ``datadir``, the metadata file's folder, each folder above it (so the project's
    root is found wherever the job lies), and the current one. Then the ends of the name, the longest first
    (of ``a/b/c.mrcs``: ``b/c.mrcs``, ``c.mrcs``): all of them in ``datadir``, then all in the other folders. In
    each of these two steps ``c.mrcs.gz`` will do where there is no ``c.mrcs``, and the other way round.

    Parameters
    ----------
    table_path
        The metadata file.
    datadir
        The user's folder of stacks.

    Raises
    ------
    InputError
        ``datadir`` is not a folder.
    """

    table_path: Path
    datadir: Path | None = None
    _data_roots: list[Path] = field(init=False)
    _roots: list[Path] = field(init=False)
    _is_folder: dict[str, bool] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.datadir is not None and not self.datadir.is_dir():
            raise InputError("is not a folder", file=self.datadir, advice="check --datadir")
        self._data_roots = [] if self.datadir is None else [self.datadir.resolve()]
        folder = self.table_path.resolve().parent
        self._roots = list(dict.fromkeys([folder, *folder.parents, Path.cwd()]))

    def find(self, name: str) -> FoundStack | None:
        """The file of a name; None where there is none."""
        for places in (self._whole_names(name), self._tails(name)):
            # Every place is asked for the name as it is before any is asked for its other spelling.
            kept = list(places)
            for change in (str, _with_or_without_gz):
                for root, end, by_tail in kept:
                    path = os.path.join(root, change(end))
                    if self._folder_exists(path) and os.path.isfile(path):
                        return FoundStack(Path(path), by_tail, root in self._data_roots)
        return None

    def places(self) -> str:
        """The folders looked in, for a sentence."""
        named = [*([self.datadir] if self.datadir else []), self.table_path.resolve().parent]
        return ", ".join(str(place) for place in named) + ", the folders above it and the current folder"

    def _whole_names(self, name: str) -> Iterator[tuple[Path, str, bool]]:
        for spelling in _spellings(name):
            for root in self._data_roots + self._roots:
                yield root, spelling, False

    def _tails(self, name: str) -> Iterator[tuple[Path, str, bool]]:
        for roots in (self._data_roots, self._roots):
            for spelling in _spellings(name):
                parts = Path(spelling).parts
                for cut in range(max(1, len(parts) - _LONGEST_END), len(parts)):
                    for root in roots:
                        yield root, os.path.join(*parts[cut:]), True

    def _folder_exists(self, path: str) -> bool:
        # Ten thousand stacks lie in few folders: most places are ruled out without asking the disk.
        folder = os.path.dirname(path)
        if folder not in self._is_folder:
            self._is_folder[folder] = os.path.isdir(folder)
        return self._is_folder[folder]


def _spellings(name: str) -> list[str]:
    # cryoSPARC marks paths inside its project with a leading '>'.
    plain = name.lstrip(">")
    folder, last = os.path.split(plain)
    without_uid = _UID_PREFIX.sub("", last)
    return [plain] if without_uid in (last, "") else [plain, os.path.join(folder, without_uid)]


def _with_or_without_gz(name: str) -> str:
    return name[: -len(".gz")] if name.endswith(".gz") else f"{name}.gz"


def resolve_stacks(
    names: list[str], table_path: Path, datadir: Path | None, *, must_exist: bool, notes: list[str] | None = None
) -> tuple[Path, ...]:
    """The files of stack names, absolute where found and as written where not.

    Parameters
    ----------
    names
        As in the metadata file, each once.
    table_path
        The metadata file.
    datadir
        The user's folder of stacks.
    must_exist
        Whether a missing stack is an error.
    notes
        Gets a sentence where stacks were found by the end of their name only, outside ``datadir``.

    Raises
    ------
    InputError
        A stack is missing, or two stacks of different folders would be the same file.
    """
    finder = StackFinder(table_path, datadir)
    found = [finder.find(name) for name in names]
    missing = [name for name, stack in zip(names, found, strict=True) if stack is None]
    if missing and must_exist:
        count = f"{len(missing)} of its {len(names)} image stacks are" if len(missing) > 1 else "it is"
        raise InputError(
            f"the image stack {missing[0]} is missing ({count} in none of: {finder.places()})",
            file=table_path,
            advice=_where_to_put(missing[0], datadir),
        )
    _refuse_confusion(names, found, table_path)
    guessed = [(name, s.path) for name, s in zip(names, found, strict=True) if s and s.by_tail and not s.in_datadir]
    if guessed and notes is not None:
        name, path = guessed[0]
        others = f", and {len(guessed) - 1} more likewise" if len(guessed) > 1 else ""
        notes.append(f"Stacks: {name} is not where the file says, {path} was taken for it{others}")
    return tuple(Path(name) if s is None else s.path for name, s in zip(names, found, strict=True))


def _where_to_put(name: str, datadir: Path | None) -> str:
    last = os.path.basename(name)
    if datadir is None:
        return f"say where the stacks are with --datadir (the folder that holds {last})"
    return f"give as --datadir the folder that holds {last}, or one above it that the name leads on from"


def _refuse_confusion(names: list[str], found: list[FoundStack | None], table_path: Path) -> None:
    """Two names may lead to one file only if one of them is the end of the other."""
    first: dict[Path, tuple[str, bool]] = {}
    for name, stack in zip(names, found, strict=True):
        if stack is None:
            continue
        other, by_tail = first.setdefault(stack.path, (name, stack.by_tail))
        if (by_tail or stack.by_tail) and not _are_one_name(other, name):
            raise InputError(
                f"{other} and {name} would both be {stack.path}",
                file=table_path,
                advice="keep the stacks in folders of these names, and give the folder above those as --datadir",
            )


def _are_one_name(one: str, other: str) -> bool:
    shorter, longer = sorted((Path(_spellings(name)[-1]).parts for name in (one, other)), key=len)
    return longer[len(longer) - len(shorter) :] == shorter
