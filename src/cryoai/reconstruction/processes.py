"""Which of several processes this is, and what they can share."""

from __future__ import annotations

import os

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
