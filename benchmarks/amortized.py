"""``--method amortized`` from scratch: time, map and poses on simulated particles of three molecules.

    python benchmarks/amortized.py --work /tmp/amortized [--sets 4ake_ideal …] [--seeds 5] [--curve 100]
    python benchmarks/amortized.py --work /tmp/amortized --figures

10,000 images of 32 px with CTFs and shifts of 2 px (in another ``--box``: of 1/16 of it), noise-free, at 0 dB
and at -10 dB. Each seed trains as ``cryoai reconstruct`` does (`train_from_scratch`); the seconds are those of
training alone. Poses are then the encoder's first hypothesis, the best of its 32 as scored against the neural
volume, and that after local refinement. One line of JSON per run goes to ``amortized.jsonl``, one per
evaluation on the way to ``amortized_curves.jsonl``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import (
    CONVERGED_PX,
    CONVERGED_ROTATION,
    MOLECULES,
    NOISE,
    Clock,
    Results,
    add_options,
    describe_encoder,
    has_converged,
    load,
    measure,
    parse,
    parse_overrides,
    show,
    simulate,
)

from cryoai.amortized.from_scratch import train_from_scratch
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig, load_config
from cryoai.run.progress import Progress
from cryoai.training.trainer import TrainingDivergedError

SETS = [f"{molecule}_{noise}" for molecule in ("4ake", "4v5a", "5nrl") for noise in NOISE]
WAYS = ("first", "scored", "refined")
_CHUNK = 1000


class Watcher(Checkpoint):
    """A checkpoint that shows each state of the training to an observer."""

    def __init__(self, folder: Path, look: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(folder, "benchmark")
        self._look = look
        self.state: dict[str, Any] = {}

    def save(self, step: str, values: dict[str, Any]) -> None:
        super().save(step, values)
        self.state = values
        self._look(values)


def density_of(state: dict[str, Any], config: ReconstructConfig, box: int) -> torch.Tensor:
    volume = config.amortize.make_volume(box, scale=1.0, seed=0)
    volume.load_state_dict(_part(state, "volume."))
    return volume.to_map()


def _part(state: dict[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): t for name, t in state["model"].items() if name.startswith(prefix)}


def run(name: str, seed: int, config: ReconstructConfig, args: argparse.Namespace, curves: Results) -> dict:
    """One training and what came of it."""
    test = load(simulate(name, args.work, args.data, args.particles, box=args.box))
    key = {"set": name, "seed": seed, "label": args.label, "box": args.box}
    some = np.sort(np.random.default_rng(0).permutation(len(test.particles))[:_CHUNK])
    clock, radius = Clock(), config.amortize.last_radius

    def look(state: dict[str, Any]) -> None:
        if not args.curve:
            return
        with clock.paused(), torch.no_grad():
            density = density_of(state, config, test.data.disk.box_size)
            rendered = FourierVolume(state["rendered"], test.data.disk.box_size, 2)
            encoder = make_pose_encoder(config.encoder, test.data.disk.box_size * test.data.pixel_size, config.seed)
            encoder.load_state_dict(_part(state, "encoder."))
            trained = describe_encoder(encoder, config, test.data, state["noise_power"])
            figures = measure(test, trained, rendered, density, some, radius=radius)
            losses = np.array(state["history"], float)[-50:, 2:4]
            entry = {"step": state["step"], "volume_loss": float(np.mean(losses[:, 0])), **figures}
        entry["seconds"] = clock.seconds
        curves.append({**key, **entry})
        show(f"  {name} seed {seed}", {n: v for n, v in entry.items() if n != "first"})

    with tempfile.TemporaryDirectory() as folder:
        watcher = Watcher(Path(folder), look)
        try:
            result = train_from_scratch(test.data, config, watcher, Progress())
        except TrainingDivergedError as error:
            return {**key, "diverged": str(error), "seconds": clock.seconds, "converged": False}
        seconds = clock.seconds
    density = density_of(watcher.state, config, test.data.disk.box_size)
    rows = np.arange(len(test.particles))
    figures = measure(test, result.trained, result.volume, density, rows, WAYS, radius)
    return {
        **key, "seconds": seconds, "step_seconds": result.history[-1].seconds, "steps": len(result.history),
        "skipped": result.skipped, "converged": has_converged(figures), "threads": args.threads, **figures,
    }  # fmt: skip


def draw(args: argparse.Namespace) -> None:
    """Resolution and rotation errors over time: noise in columns, one line per run, dashed in other boxes."""
    import matplotlib.pyplot as plt

    curves = Results(args.work / "amortized_curves.jsonl").read()
    curves = [e for e in curves if e["label"] == args.label or e.get("box", 32) != 32]
    figure, axes = plt.subplots(2, len(NOISE), figsize=(11, 6), sharex=True, sharey="row", squeeze=False)
    colours = dict(zip(MOLECULES, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    labelled = set()
    for name, seed, box in sorted({(e["set"], e["seed"], e.get("box", 32)) for e in curves}):
        molecule, noise = name.split("_")
        lines = [e for e in curves if (e["set"], e["seed"], e.get("box", 32)) == (name, seed, box)]
        minutes = [entry["seconds"] / 60 for entry in lines]
        column, label = list(NOISE).index(noise), molecule if box == 32 else f"{molecule}, {box} px"
        values = [e["fsc_px"] for e in lines], [e["first"]["rotation_median"] for e in lines]
        for row, y in enumerate(values):
            shown = None if row or (column, label) in labelled else label
            style = "-" if box == 32 else "--"
            axes[row, column].plot(minutes, y, style, color=colours[molecule], label=shown, linewidth=1)
        labelled.add((column, label))
    for column, noise in enumerate(NOISE):
        axes[0, column].set_title(noise if NOISE[noise] is None else f"{noise} dB")
        axes[0, column].axhline(CONVERGED_PX, color="0.7", linestyle=":")
        axes[1, column].axhline(CONVERGED_ROTATION, color="0.7", linestyle=":")
        axes[1, column].set(yscale="log", xlabel="minutes of training")
        axes[0, column].legend(fontsize=8)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set_yticks((2, 3, 4, 8, 16), ("2", "3", "4", "8", "16"))
    axes[0, 0].minorticks_off()
    axes[0, 0].set_ylabel("map against truth, FSC 0.5 (px)")
    axes[1, 0].set_ylabel("median rotation error\n(encoder alone)")
    args.images.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(args.images / "amortized.png", dpi=110)


def summarise(results: list[dict]) -> None:
    for name in dict.fromkeys(entry["set"] for entry in results):
        runs = [entry for entry in results if entry["set"] == name]
        good = [entry for entry in runs if has_converged(entry)]
        line = f"{name:12} {len(good)} of {len(runs)} converged"
        if good:
            median = {n: float(np.median([e[n] for e in good])) for n in ("seconds", "fsc_px")}
            medians = " / ".join(f"{np.median([e[way]['rotation_median'] for e in good]):.4f}" for way in WAYS)
            line += f"; {median['seconds']:.0f} s, {median['fsc_px']:.2f} px, rotations {medians}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=[*SETS, *(f"phantom_{n}" for n in NOISE)])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--box", type=int, default=32, help="px; give another one a --label of its own")
    parser.add_argument("--curve", type=int, default=0, help="evaluate every so many steps")
    parser.add_argument("--config", type=Path, help="YAML file of cryoai reconstruct")
    parser.add_argument("--set", nargs="*", default=[], help="options such as amortize.steps=600")
    parser.add_argument("--label", default="default", help="names runs with other options")
    args = parse(parser)
    results = Results(args.work / "amortized.jsonl")
    if args.figures:
        draw(args)
    overrides = parse_overrides(args.set)
    if args.curve:
        overrides["amortize.save_every"] = args.curve
    for seed in range(args.first_seed, args.first_seed + args.seeds) if not args.figures else ():
        for name in args.sets:
            if results.read(set=name, seed=seed, label=args.label):
                continue
            config = load_config(args.config, {**overrides, "method": "amortized", "seed": seed})
            results.append(run(name, seed, config, args, Results(args.work / "amortized_curves.jsonl")))
            show(f"{name} seed {seed}", results.read()[-1])
    summarise(results.read(label=args.label))


if __name__ == "__main__":
    main()
