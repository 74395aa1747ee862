"""The encoder of the hybrid method: how long it trains, how often it is right about particles it has never seen.

    python benchmarks/hybrid_training.py --work /tmp/hybrid --seen SIMULATED --unseen SIMULATED_WITH_ANOTHER_SEED

SIMULATED is a folder of ``cryoai simulate``. Per seed, one bootstrap start finds a map and the encoder is trained
on it, as ``cryoai reconstruct --encoder always`` does; nothing is refined. One line of JSON each goes to
``hybrid_training.jsonl``: seconds of training, median seconds of its two kinds of steps, and the share of particles
with the true rotation (within 15 degrees) among the encoder's best. ``--set hybrid.simulated_steps=1150`` and the
like change options.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from harness import Results, TestSet, add_options, load, measure_map, parse, parse_overrides, show
from hybrid import recall

from cryoai import read_particles
from cryoai.ab_initio.images import choose_images
from cryoai.ab_initio.starts import run_start
from cryoai.amortized.on_a_map import train_on_map
from cryoai.physics.slicing import map_from_volume
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig, load_config
from cryoai.run.progress import Advance, Progress
from cryoai.run.streams import stream_seed


class _EndsOfSteps(Progress):
    """When each step of training was done, in seconds from its beginning."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Advance]:
        start = time.perf_counter()
        yield lambda done, note="": self.seconds.append(time.perf_counter() - start)


def run(test: TestSet, config: ReconstructConfig, args: argparse.Namespace) -> dict[str, Any]:
    """One bootstrap and one training."""
    data = test.data
    images = choose_images(data, config.bootstrap, config.seed)
    seed = stream_seed(config.seed, "bootstrap", 1)
    start = run_start(images, seed, lambda done: None)
    ends = _EndsOfSteps()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        trained, _ = train_on_map(data, start, config, Checkpoint(Path(folder), "benchmark"), ends)
    simulated = config.hybrid.simulated_steps
    steps = np.diff(ends.seconds, prepend=0.0)
    figures: dict[str, Any] = {"seconds": ends.seconds[-1], "simulated_step": float(np.median(steps[:simulated]))}
    if len(steps) > simulated:
        figures["real_step"] = float(np.median(steps[simulated:]))
    compared = measure_map(map_from_volume(start.volume), test.true_map)
    figures["map"] = compared.figures
    for name, folder in (("seen", args.seen), ("unseen", args.unseen)):
        particles = read_particles(folder / "particles.star")
        rows = np.arange(min(len(particles), args.judged))
        alignment = compared.alignment
        figures[name] = recall(particles.select(rows), trained, alignment.rotation, alignment.mirrored, args.work)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seen", type=Path, required=True, help="what the bootstrap and the training see")
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--judged", type=int, default=5000, help="particles of each set at most")
    parser.add_argument("--set", nargs="*", default=[], help="options such as hybrid.real_steps=0")
    args = parse(parser)
    test, results = load(args.seen, args.device), Results(args.work / "hybrid_training.jsonl")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        config = load_config(None, {"seed": seed, **parse_overrides(args.set)})
        key = {
            "set": args.seen.name, "seed": seed, "device": args.device, "threads": args.threads,
            "simulated_steps": config.hybrid.simulated_steps, "real_steps": config.hybrid.real_steps,
            "options": args.set,
        }  # fmt: skip
        if not results.read(**key):
            results.append({**key, **run(test, config, args)})
            show(f"seed {seed}:", results.read(**key)[-1])


if __name__ == "__main__":
    main()
