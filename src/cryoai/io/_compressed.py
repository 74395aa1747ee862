"""Files compressed with gzip or bzip2, read as if they were not."""

from __future__ import annotations

import bz2
import gzip
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import IO, ClassVar

from cryoai.errors import CryoAIError, InputError

_SUFFIXES = (".gz", ".bz2")
_MAGIC = {b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw), b"BZ": bz2.BZ2File}
_LARGEST_RATIO = 1100
"""No file is smaller than its contents by more: deflate cannot, and bzip2 does for no image."""
_BLOCK = 1 << 20
_MOST_UNPACKED = 4


def plain_suffix(path: Path) -> str:
    """The suffix of a file, in small letters, without that of the compression."""
    name = path.name.lower()
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def is_compressed(stream: BufferedIOBase) -> bool:
    """Whether what `open_plain` gave is decompressed on the way."""
    return isinstance(stream, gzip.GzipFile | bz2.BZ2File)


@contextmanager
def open_plain(path: str | Path) -> Iterator[BufferedIOBase]:
    """A file's contents for reading, decompressed on the way if need be.

    Raises
    ------
    InputError
        The file is missing, a folder, may not be read, or is damaged (also from within the block).
    """
    with open_file(path) as raw:
        opener = _MAGIC.get(raw.read(2))
        raw.seek(0)
        if opener is None:
            yield raw
            return
        try:
            with opener(raw) as stream:
                yield stream
        except (EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputError("is a damaged compressed file", file=path, advice="copy it again") from error


def open_file(path: str | Path) -> BufferedReader:
    """Open a file for reading, with a sentence for the user when that fails.

    Raises
    ------
    InputError
        The file is missing, a folder, or may not be read.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error


def bytes_at_most(stream: BufferedIOBase) -> int:
    """Bytes of a file's contents: exactly of a plain file, the most there can be of a compressed one."""
    return os.fstat(stream.fileno()).st_size * (_LARGEST_RATIO if is_compressed(stream) else 1)


class UnpackedFile:
    """Random access to a compressed file: unpacked once, to an unnamed temporary file.

    Only the few used last stay unpacked, and their room is free again when nobody holds them. May be shared
    between threads, which take turns.

    Parameters
    ----------
    path
        The compressed file.
    length
        Bytes of its contents that are needed.
    """

    _lock: ClassVar = threading.Lock()
    _recent: ClassVar[list[weakref.ref[UnpackedFile]]] = []

    def __init__(self, path: Path, length: int) -> None:
        self.path, self.length = path, length
        self._file: IO[bytes] | None = None
        self._close: weakref.finalize | None = None

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The contents, for reading at any place.

        Raises
        ------
        InputError
            The file is damaged, or holds less than it should.
        CryoAIError
            There is no room for the contents.
        """
        with self._lock:
            if self._file is None:
                self._file = self._unpack()
                self._close = weakref.finalize(self, self._file.close)
            self._keep_recent()
            yield self._file

    def _unpack(self) -> IO[bytes]:
        with ExitStack() as stack:
            with self._name_lack_of_room():
                file = stack.enter_context(tempfile.TemporaryFile())
            self._copy_to(file)
            with self._name_lack_of_room():
                file.flush()
            stack.pop_all()
        return file

    @contextmanager
    def _name_lack_of_room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CryoAIError(
                f"{self.path}: cannot be unpacked ({error.strerror}): it needs {self.length / 2**30:.2g} GiB of "
                "temporary files; set TMPDIR to a larger folder, or decompress it before use"
            ) from error

    def _copy_to(self, file: IO[bytes]) -> None:
        done = 0
        with open_plain(self.path) as stream:
            # To the end, whose checksum shows whether what was read is right.
            while block := stream.read(_BLOCK):
                with self._name_lack_of_room():
                    file.write(block[: max(0, self.length - done)])
                done += len(block)
                if done > 2 * self.length + _BLOCK:
                    raise InputError("holds far more than its header says", file=self.path)
        if done < self.length:
            raise InputError(
                f"is truncated: its header promises {self.length} bytes, {done} are there",
                file=self.path,
                advice="copy it again",
            )

    def _keep_recent(self) -> None:
        others = [ref for ref in self._recent if ref() not in (None, self)]
        for ref in others[: len(others) + 1 - _MOST_UNPACKED]:
            other = ref()
            if other is not None and other._close is not None:
                other._close()
                other._file = other._close = None
        self._recent[:] = [*others[max(0, len(others) + 1 - _MOST_UNPACKED) :], weakref.ref(self)]
