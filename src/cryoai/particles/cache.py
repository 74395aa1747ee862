"""A store for the Fourier coefficients of all particles: in memory while small, in a scratch file beyond."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Complex, Int

from cryoai.errors import CryoAIError

_ROWS_AT_ONCE = 1024


class CoefficientCache:
    """Fixed-length complex rows, written once in order and read in any order.

    The scratch file is read with plain reads, not mapped, so that its pages never count as the process's own
    memory.

    Parameters
    ----------
    count, length
        Rows, and coefficients in each.
    memory_limit
        Bytes to keep in memory; a larger store goes to ``scratch``.
    scratch
        Folder for the file, which has no name there.
    """

    def __init__(self, count: int, length: int, memory_limit: int, scratch: Path) -> None:
        self._length = length
        self._row_bytes = 8 * length
        self._memory: np.ndarray | None = None
        if count * self._row_bytes <= memory_limit:
            self._memory = np.empty((count, length), np.complex64)
        else:
            # Unlinked at once: however the process ends, the file's space is given back.
            self._file = tempfile.TemporaryFile(dir=scratch)
        self._written = 0

    def append(self, rows: Complex[np.ndarray, "m n"]) -> None:
        """Write the next rows.

        Raises
        ------
        CryoAIError
            The disk is full.
        """
        rows = np.ascontiguousarray(rows, np.complex64)
        if self._memory is not None:
            self._memory[self._written : self._written + len(rows)] = rows
        else:
            try:
                self._file.seek(self._written * self._row_bytes)
                self._file.write(rows.tobytes())
                self._file.flush()
            except OSError as error:
                raise CryoAIError(
                    f"cannot write the scratch file ({error.strerror}); free some space, raise cache_gib, or "
                    "give another -o"
                ) from error
        self._written += len(rows)

    def read(self, rows: Int[np.ndarray, " m"], length: int | None = None) -> Complex[np.ndarray, "m k"]:
        """A copy of rows in any order, cut to ``length`` coefficients; runs of consecutive rows are read at once.

        Threads may read at the same time: no place in the file is remembered between reads.

        Raises
        ------
        CryoAIError
            The scratch file has become shorter, or cannot be read.
        """
        length = self._length if length is None else length
        if self._memory is not None:
            whole = length == self._length
            return self._memory.take(rows, axis=0) if whole else self._memory[rows, :length]
        out = np.empty((len(rows), length), np.complex64)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(np.arange(len(rows)), breaks):
            for start in range(0, len(run), _ROWS_AT_ONCE):
                part = run[start : start + _ROWS_AT_ONCE]
                block = self._read_at(int(rows[part[0]]) * self._row_bytes, len(part) * self._row_bytes)
                out[part] = np.frombuffer(block, np.complex64).reshape(len(part), -1)[:, :length]
        return out

    def _read_at(self, place: int, wanted: int) -> bytes:
        """Bytes of the scratch file, all of them or an error."""
        parts = []
        while wanted:
            try:
                part = os.pread(self._file.fileno(), wanted, place)
            except OSError as error:
                raise CryoAIError(f"cannot read the scratch file ({error.strerror})") from error
            if not part:
                raise CryoAIError("the scratch file has become shorter; start again with --resume")
            parts.append(part)
            place, wanted = place + len(part), wanted - len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Forget the rows and remove the scratch file."""
        if self._memory is None and not self._file.closed:
            self._file.close()
        self._memory = None
