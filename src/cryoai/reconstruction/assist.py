"""The processes of a run beyond the first: they share the training, and leave reading folders and writing to it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cryoai.amortized.from_scratch import train_from_scratch
from cryoai.reconstruction.processes import cores_shared
from cryoai.reconstruction.reading import read_training_data, understand
from cryoai.reconstruction.run_folder import fingerprint
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.types import ParticleSet


def assist(
    particles: str | Path | ParticleSet,
    output: str | Path,
    config: ReconstructConfig,
    *,
    datadir: str | Path | None = None,
) -> None:
    """Train with the first process, on this process's share of the particles.

    Parameters are those of `cryoai.reconstruction.pipeline.reconstruct`, which the first process calls.

    Raises
    ------
    InputError
        The input or an option is wrong.
    """
    particles = understand(particles, config, datadir)
    with tempfile.TemporaryDirectory() as scratch:
        data = read_training_data(particles, config, Path(scratch), Progress())
        try:
            checkpoint = Checkpoint(Path(output) / "checkpoint", fingerprint(particles, config))
            with cores_shared():
                train_from_scratch(data, config, checkpoint, Progress())
        finally:
            data.close()
