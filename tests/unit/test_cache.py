"""The scratch file for coefficients: read by several threads, and never silently short."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cryoai.errors import CryoAIError
from cryoai.particles.cache import CoefficientCache

ROWS = np.arange(400 * 9).reshape(400, 9).astype(np.complex64)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[CoefficientCache]:
    cache = CoefficientCache(*ROWS.shape, 0, tmp_path)
    cache.append(ROWS)
    yield cache
    cache.close()


def test_threads_read_at_once(cache: CoefficientCache) -> None:
    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        orders = [rng.integers(0, len(ROWS), 30) for _ in range(40)]
        return all(np.array_equal(cache.read(order, 5), ROWS[order, :5]) for order in orders)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_reads_that_the_system_cuts_short_go_on(cache: CoefficientCache, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda file, wanted, place: whole(file, min(wanted, 100), place))
    order = np.array([399, 7, 8, 9, 10, 11, 0])
    np.testing.assert_array_equal(cache.read(order), ROWS[order])


def test_a_row_beyond_the_file_s_end_is_an_error(tmp_path: Path) -> None:
    cache = CoefficientCache(*ROWS.shape, 0, tmp_path)
    cache.append(ROWS[:100])
    np.testing.assert_array_equal(cache.read(np.arange(100)), ROWS[:100])
    with pytest.raises(CryoAIError, match="has become shorter"):
        cache.read(np.arange(90, 110))
    cache.close()


def test_a_disk_that_fails_is_named(cache: CoefficientCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(CryoAIError, match=r"cannot read the scratch file \(Input/output error\)"):
        cache.read(np.arange(3))
