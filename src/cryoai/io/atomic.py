"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cryoai.errors import CryoAIError, InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def atomic_path(final: str | Path) -> Iterator[Path]:
    """A temporary path that becomes ``final`` when the block ends without an exception.

    The temporary file lies in the same folder (a rename across file systems is not atomic), is hidden, and
    ends in the same name, so that writers which look at the suffix behave. The folder is made if need be.

    Parameters
    ----------
    final
        The file to write; an existing one is replaced in one step.

    Yields
    ------
    Path
        Where to write.

    Raises
    ------
    CryoAIError
        The disk or the quota is full.
    InputError
        The folder cannot be written to.
    """
    final = Path(final)
    temporary = final.with_name(f".{uuid4().hex[:12]}-{final.name}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise _as_own_error(error, final) or InputError(
            f"cannot be written ({error.strerror})", file=final, advice="choose another output folder"
        ) from error
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, final)
    except OSError as error:
        if (own_error := _as_own_error(error, final)) is None:
            raise
        raise own_error from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file that is never seen half-written.

    Parameters
    ----------
    path
        The file to write or replace.
    text
        Its whole content.

    Raises
    ------
    CryoAIError
        The disk or the quota is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _flush_to_disk(path: Path) -> None:
    # Without fsync a crash after the rename can leave the final name with an empty file.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _as_own_error(error: OSError, final: Path) -> CryoAIError | None:
    if error.errno in _DISK_FULL:
        return CryoAIError(f"{final}: disk full, nothing was written under this name; free some space")
    return None
