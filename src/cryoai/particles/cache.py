"""A store for the Fourier coefficients of all particles: in memory while small, in a scratch file beyond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Complex, Int


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
        File to create when needed; removed by `close`.
    """

    def __init__(self, count: int, length: int, memory_limit: int, scratch: Path) -> None:
        self._length = length
        self._row_bytes = 8 * length
        self._memory: np.ndarray | None = None
        self._path = scratch
        if count * self._row_bytes <= memory_limit:
            self._memory = np.empty((count, length), np.complex64)
        else:
            scratch.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(scratch, "w+b", buffering=0)
        self._written = 0

    def append(self, rows: Complex[np.ndarray, "m n"]) -> None:
        """Write the next rows."""
        rows = np.ascontiguousarray(rows, np.complex64)
        if self._memory is not None:
            self._memory[self._written : self._written + len(rows)] = rows
        else:
            self._file.seek(self._written * self._row_bytes)
            self._file.write(rows.tobytes())
        self._written += len(rows)

    def read(self, rows: Int[np.ndarray, " m"]) -> Complex[np.ndarray, "m n"]:
        """Rows in any order; runs of consecutive ascending rows are read at once."""
        if self._memory is not None:
            return self._memory[rows]
        out = np.empty((len(rows), self._length), np.complex64)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(np.arange(len(rows)), breaks):
            self._file.seek(int(rows[run[0]]) * self._row_bytes)
            block = self._file.read(len(run) * self._row_bytes)
            out[run] = np.frombuffer(block, np.complex64).reshape(len(run), -1)
        return out

    def close(self) -> None:
        """Forget the rows and remove the scratch file."""
        if self._memory is None and not self._file.closed:
            self._file.close()
            self._path.unlink(missing_ok=True)
        self._memory = None
