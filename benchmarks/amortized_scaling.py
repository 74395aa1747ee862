"""How time and memory of ``--method amortized`` grow with the number of particles (figure 3 of Levy et al. 2022).

    python benchmarks/amortized_scaling.py --work /tmp/scaling [--counts 10000 100000] [--seeds 3] [--subset]
    python benchmarks/amortized_scaling.py --work /tmp/scaling --figures

Each count is simulated once (70S ribosome, 0 dB, 32 px: 4 GB and some minutes for a million). Each run is a process
of its own that reads the metadata, reads and judges the images, and trains until the map's FSC of 0.5 reaches
``--target`` px, as ``cryoai reconstruct`` does it; wall seconds and resident memory of each part go to
``scaling.jsonl``. Looking at the map is not counted. ``--subset`` reads the images of the random subset alone that
training uses; ``--no-training`` stops after reading; ``--posing`` goes on and poses all particles.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Results, TestSet, add_options, parse, parse_overrides, show, simulate
from learning import Learner, Watch, resolves

from cryoai import read_map, read_particles
from cryoai.amortized.posing import EncoderInference, best_of_encoder
from cryoai.particles.dataset import ParticleData
from cryoai.run.config import ReconstructConfig, load_config
from cryoai.types import ParticleSet

_CHUNK = 1000


class Stages:
    """Seconds and memory of consecutive parts of a process."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self._start = time.perf_counter()
        self.end("imports")

    def end(self, name: str, seconds: float | None = None) -> None:
        now = time.perf_counter()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.figures[f"{name}_seconds"] = now - self._start if seconds is None else seconds
        self.figures[f"{name}_mib"] = pages * resource.getpagesize() / 2**20
        self.figures[f"{name}_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        self._start = time.perf_counter()


def read(folder: Path, config: ReconstructConfig, args: argparse.Namespace, stages: Stages) -> TestSet:
    """Metadata, then images, as `cryoai.reconstruct` reads them; coefficients beyond its cache go to a file."""
    particles = read_particles(folder / "particles.star")
    stages.end("metadata")
    if args.subset:
        rows = np.random.default_rng(config.seed).permutation(len(particles))[: config.amortize.images]
        particles = particles.select(np.sort(rows))
    assert particles.pixel_size is not None and particles.box_size is not None and particles.pose is not None
    data = ParticleData(
        particles, particles.pixel_size, particles.box_size,
        memory_limit=int(config.cache_gib * 2**30), scratch=Path(tempfile.gettempdir()),
    )  # fmt: skip
    stages.end("images")
    true_map = torch.from_numpy(np.array(read_map(folder / "true_map.mrc").density, dtype=np.float32))
    return TestSet(particles, data, true_map, particles.pose)


def pose_all(learner: Learner, test: TestSet, config: ReconstructConfig, particles: ParticleSet) -> None:
    """Every particle through the encoder, scored and refined."""
    inference, rendered, noise = EncoderInference(learner.trained()), learner.render(), learner.trainer.noise_power
    data = test.data
    if len(data) < len(particles):
        assert particles.pixel_size is not None
        data = ParticleData(
            particles, particles.pixel_size, data.disk.box_size,
            memory_limit=int(config.cache_gib * 2**30), scratch=Path(tempfile.gettempdir()),
        )  # fmt: skip
    for _, batch in data.batches(np.arange(len(data)), _CHUNK):
        best_of_encoder(batch, inference, rendered, noise, config.amortize.search_radius)


def run_child(args: argparse.Namespace) -> None:
    """One count and seed, in this process."""
    count, seed = args.child
    key = _key(count, seed, args)
    options = parse_overrides(args.set)
    config = load_config(None, {"method": "amortized", "seed": seed, **options})
    folder = simulate(args.name, args.work, args.data, count)
    stages = Stages()
    test = read(folder, config, args, stages)
    figures: dict[str, Any] = {"trained_on": min(len(test.data.usable_rows), config.amortize.images)}
    if not args.no_training:
        watch = Watch(
            args.minutes, every_steps=args.every_steps, first_step=args.first_step, enough=resolves(args.target),
            particles=500,
        )  # fmt: skip
        learner = Learner(test, config, watch, lambda looked: show(f"  {count}:", looked))
        figures |= learner.run()
        figures["rotation_median"] = figures.pop("scored")["rotation_median"]
        stages.end("training", figures["seconds"])
        if args.posing:
            particles = read_particles(folder / "particles.star") if args.subset else test.particles
            stages.end("metadata_again")
            pose_all(learner, test, config, particles)
            stages.end("posing")
    Results(args.work / "scaling.jsonl").append({**key, **figures, **stages.figures})


def _key(count: int, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    what = "reading" if args.no_training else "posing" if args.posing else "training"
    return {"set": args.name, "particles": count, "seed": seed, "subset": args.subset, "what": what}


def run(count: int, seed: int, args: argparse.Namespace) -> None:
    results, key = Results(args.work / "scaling.jsonl"), _key(count, seed, args)
    if results.read(**key):
        return
    simulate(args.name, args.work, args.data, count)
    subprocess.run([sys.executable, *sys.argv, "--child", str(count), str(seed)], check=True)
    entry = results.read(**key)[-1]
    show(f"{count:>9} seed {seed}:", {n: v for n, v in entry.items() if n not in key and not isinstance(v, dict)})


def draw(args: argparse.Namespace) -> None:
    """Seconds of each part and peak memory over the number of particles."""
    import matplotlib.pyplot as plt

    entries = Results(args.work / "scaling.jsonl").read(set=args.name)
    entries = [entry for entry in entries if "training_seconds" in entry]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for subset, style in ((False, "-"), (True, "--")):
        chosen = [entry for entry in entries if entry["subset"] is subset]
        counts = sorted({entry["particles"] for entry in chosen})
        which = ", random subset read" if subset else ""

        def median(name: str, chosen=chosen, counts=counts) -> list[float]:
            return [float(np.median([e[name] for e in chosen if e["particles"] == n])) for n in counts]

        if counts:
            for place, name in enumerate(("metadata", "images", "training")):
                axes[0].plot(counts, median(f"{name}_seconds"), f"C{place}o{style}", label=name + which)
            axes[1].plot(counts, median("training_peak_mib"), f"C3o{style}", label=f"peak{which}")
    axes[0].set(xscale="log", yscale="log", xlabel="particles", ylabel="seconds")
    axes[1].set(
        xscale="log", ylim=(0, 1.2 * axes[1].get_ylim()[1]), xlabel="particles", ylabel="resident memory, MiB"
    )
    for axis in axes:
        axis.legend(fontsize=8)
    args.images.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(args.images / "scaling.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--name", default="4v5a_0", help="the set")
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=2.6, help="px at FSC 0.5")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, at most")
    parser.add_argument("--every-steps", type=int, default=25, help="between two looks at the map")
    parser.add_argument("--first-step", type=int, default=150)
    parser.add_argument("--subset", action="store_true")
    parser.add_argument("--posing", action="store_true")
    parser.add_argument("--no-training", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], help="options such as amortize.images=20000")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.child:
        run_child(args)
    elif args.figures:
        draw(args)
    else:
        for seed in range(args.seeds):
            for count in args.counts:
                run(count, seed, args)


if __name__ == "__main__":
    main()
