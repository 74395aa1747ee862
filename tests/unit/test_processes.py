"""Cores among several processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from cryoai import CryoAIError, reconstruct
from cryoai.reconstruction.processes import cores_shared


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_processes_share_the_cores_and_the_first_has_all_of_them_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    torch.set_num_threads(1)
    with cores_shared():
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 8


@pytest.mark.parametrize(("processes", "asked"), [("1", "1"), ("4", "3")])
def test_one_process_and_a_number_that_was_asked_for_stay(
    monkeypatch: pytest.MonkeyPatch, processes: str, asked: str
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    torch.set_num_threads(3)
    with cores_shared():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


def test_another_process_than_the_first_is_told_what_to_call(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The public function never ends the process."""
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(CryoAIError, match=r"the others call .*assist"):
        reconstruct("particles.star", tmp_path)
