"""Training in several processes, started as `torchrun` starts them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryoai import InputError, ReconstructConfig, read_particles, reconstruct

OPTIONS = """
amortize: {steps: 8, batch_size: 16, last_radius: 8, march_steps: 4, sampling_steps: 2, encoder_start: 2,
           own_proposals_start: 5, max_shift_box_lengths: 0.08, volume_width: 16, points_per_step: 2048,
           save_every: 4}
encoder: {hypotheses: 200, widths: [4, 8, 8], box_size: 16}
refine: {max_rounds: 0, search_radius: 6}
"""


def start(star: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    options = out.with_suffix(".yaml")
    options.write_text(OPTIONS)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cryoai",
        "reconstruct", str(star), "-o", str(out), "--config", str(options), "--quiet", *words,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_two_processes_train_together_and_the_first_writes_the_result(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = start(tiny / "particles.star", out, "--method", "amortized")
    assert finished.returncode == 0, finished.stderr
    assert len(read_particles(out / "particles.star")) == 200
    with open(out / "training.csv") as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == list(range(8))
    assert (out / "encoder.pt").exists() and (out / "map.mrc").exists()


@pytest.mark.parametrize("options", [{"method": "search"}, {"method": "amortized", "known_poses": True}])
def test_nothing_but_training_from_scratch_takes_several_processes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(InputError, match="start it without torchrun"):
            reconstruct(tiny / "particles.star", tmp_path / "out", ReconstructConfig(**options))
    assert not (tmp_path / "out").exists()
