"""The processes of a run beyond the first: they share the training, and leave reading folders and writing to it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from cryoai.amortized.from_scratch import train_from_scratch
from cryoai.errors import InputError
from cryoai.reconstruction.reading import read_training_data
from cryoai.reconstruction.run_folder import fingerprint
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.types import ParticleSet


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
    if config.known_poses or config.refine.start_from_input_poses:
        raise InputError("nothing is trained at the input's poses", advice="start it without torchrun")


def assist(particles: ParticleSet, output: Path, config: ReconstructConfig) -> None:
    """Train with the first process, on this process's share of the particles."""
    with tempfile.TemporaryDirectory() as scratch:
        data = read_training_data(particles, config, Path(scratch), Progress())
        try:
            checkpoint = Checkpoint(output / "checkpoint", fingerprint(particles, config))
            train_from_scratch(data, config, checkpoint, Progress())
        finally:
            data.close()
