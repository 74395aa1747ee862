"""Where the image stacks that a metadata file names lie on this disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from cryoai.errors import InputError

# cryoSPARC puts a 15 to 21 digit identifier before the names of files it links to.
_UID_PREFIX = re.compile(r"^\d{9,}_")


@dataclass
class StackFinder:
    """Finds stacks by name.

    A relative name is tried in ``datadir`` (as written, then its last part alone), the metadata file's
    folder, each folder above it (so the project's root is found wherever the job lies), and the current one.

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
    _roots: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        if self.datadir is not None and not self.datadir.is_dir():
            raise InputError("is not a folder", file=self.datadir, advice="check --datadir")
        folder = self.table_path.resolve().parent
        roots = [] if self.datadir is None else [self.datadir.resolve()]
        self._roots = list(dict.fromkeys([*roots, folder, *folder.parents, Path.cwd()]))

    def find(self, name: str) -> tuple[Path | None, bool]:
        """The existing file of a name, and whether only its last part was used to find it."""
        for candidate in _spellings(name):
            for root in self._roots:
                path = root / candidate
                if path.is_file():
                    # Stacks mostly lie together: trying this root first saves most look-ups of the next.
                    if self.datadir is None and root is not self._roots[0]:
                        self._roots.remove(root)
                        self._roots.insert(0, root)
                    return path, False
            if self.datadir is not None and (path := self.datadir.resolve() / candidate.name).is_file():
                return path, True
        return None, False

    def places(self) -> str:
        """The folders looked in, for a sentence."""
        folder = self.table_path.resolve().parent
        named = [*([self.datadir] if self.datadir else []), folder]
        return ", ".join(str(place) for place in named) + ", the folders above it and the current folder"


def _spellings(name: str) -> list[Path]:
    # cryoSPARC marks paths inside its project with a leading '>'.
    plain = Path(name.lstrip(">"))
    without_uid = _UID_PREFIX.sub("", plain.name)
    return [plain] if without_uid in (plain.name, "") else [plain, plain.with_name(without_uid)]


def resolve_stacks(
    names: list[str], table_path: Path, datadir: Path | None, *, must_exist: bool
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

    Raises
    ------
    InputError
        A stack is missing, or two stacks of one name in different folders would be the same file of
        ``datadir``.
    """
    finder = StackFinder(table_path, datadir)
    found = [finder.find(name) for name in names]
    missing = [name for name, (path, _) in zip(names, found, strict=True) if path is None]
    if missing and must_exist:
        count = f"{len(missing)} of its {len(names)} image stacks are" if len(missing) > 1 else "it is"
        raise InputError(
            f"the image stack {missing[0]} is missing ({count} in none of: {finder.places()})",
            file=table_path,
            advice="say where the stacks are with --datadir",
        )
    shortened: dict[Path, str] = {}
    for name, (path, by_last_part) in zip(names, found, strict=True):
        if path is not None and by_last_part and shortened.setdefault(path, name) != name:
            raise InputError(
                f"{shortened[path]} and {name} would both be {path}",
                file=table_path,
                advice="keep the stacks in their folders and give the folder above as --datadir",
            )
    return tuple(Path(name) if path is None else path for name, (path, _) in zip(names, found, strict=True))
