"""Which of several processes this is, and what they can share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cryoai.errors import InputError
from cryoai.run.config import ReconstructConfig


def process_rank() -> int:
    """Which of the processes that ``torchrun`` or Slurm started this is; 0 for the first or only one."""
    return int(os.environ.get("RANK", 0))


def check_processes(config: ReconstructConfig) -> None:
    """Refuse several processes where there is nothing that they would share.

    Raises
    ------
    InputError
        Only training from scratch is shared.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    if config.method != "amortized":
        raise InputError(
            f"--method {config.method} runs in one process", advice="start it without torchrun, or use amortized"
        )
    if config.has_poses:
        raise InputError("nothing is trained at the input's poses", advice="start it without torchrun")


@contextmanager
def cores_shared() -> Iterator[None]:
    """While something is shared by the processes of this machine each has its part of the cores; then all of them.

    Without it each process computes on one thread to the end, since ``torchrun`` sets OMP_NUM_THREADS=1 where the
    user has set nothing. A number that a user has set stays, and so does that of a single process.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    if here == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        yield
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // here))
    try:
        yield
    finally:
        torch.set_num_threads(cores)
