"""Throughput of training at the paper's own sizes, beside a plain implementation of it; and of posing.

    python benchmarks/throughput.py --work /tmp/throughput [train|infer|search|profile] [--boxes 128 64] [--batch 8]

``train``: OURS is a step of `cryoai.training.Trainer` with configs/paper.yaml (VGG 64-128-256-256-256, S2S2,
FourierNet 256, symmetrised loss, Adam with amsgrad, bf16): encoder on both copies of each image, both poses scored
without gradient, the winner trained on half a Fourier plane inside the last shell. BASELINE (baseline.py) is the
same networks and loss written plainly, in float32. They take turns in one process; one JSON line per turn goes to
``throughput.jsonl``. OURS renders the volume every `refresh` steps: that is timed apart and shared out over the
steps, for the batch that was run and for the paper's batch of 64.

``infer``: images/s of the default encoder alone on particles of 64 px, which it looks at in 32 px.

``search``: the exhaustive search that doubtful particles get, in each of the ways that ``searches.py`` lists, on
2,000 images of the 70S (-10 dB, 64 px) against the true map: seconds per 1000 images, and recall, the share of the
images with the true pose, within the grid's spacing, among the 32 best. Ways take turns (``--turns``).
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import torch
from baseline import Baseline
from harness import (
    NOISE,
    REPOSITORY,
    Results,
    TestSet,
    add_options,
    load,
    make_trainer,
    parse,
    parse_overrides,
    show,
    simulate,
)
from searches import SEARCHES, describe_problem, make_problem, time_searches

from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.posing import EncoderInference
from cryoai.geometry.fourier import full_radius
from cryoai.poses.encoder_input import make_encoder_images
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.run.config import ReconstructConfig, load_config

PAPER = REPOSITORY / "configs" / "paper.yaml"
PAPER_BATCH = 64
_IMAGES, _INFERRED = 256, 4096


class Ours:
    """Training steps as a run takes them."""

    def __init__(self, test: TestSet, config: ReconstructConfig) -> None:
        self.trainer = make_trainer(test.data, config)

    def step(self) -> None:
        """One step; one that would render the volume is jumped over once there is a rendering."""
        settings = self.trainer.settings
        if self.trainer.step and self.trainer.step % settings.refresh == 0:
            self.trainer.step += 1
        self.trainer.train(self.trainer.step + 1)

    def render_seconds(self) -> float:
        start = time.perf_counter()
        volume = self.trainer.model.volume
        with self.trainer.fabric.autocast():
            volume.to_fourier_volume(self.trainer.settings.last_radius, 2)
        return time.perf_counter() - start


def train(box: int, args: argparse.Namespace, results: Results) -> None:
    """Turns of OURS and of BASELINE, one after the other."""
    key = {"what": "train", "box": box, "batch": args.batch, "threads": args.threads, "label": args.label}
    missing = [turn for turn in range(args.turns) if not results.read(**key, turn=turn)]
    if missing:
        test, config = _paper(box, args)
        sides = {"ours": Ours(test, config), "baseline": Baseline(test, config)}
        sides = {name: side for name, side in sides.items() if args.only in (None, name)}
        for side in sides.values():
            side.step()
        render = sides["ours"].render_seconds() if "ours" in sides else 0.0
        for turn in missing:
            entry = {**key, "turn": turn, "only": args.only, "render_seconds": render}
            for name, side in sides.items():
                start = time.perf_counter()
                for _ in range(args.steps):
                    side.step()
                entry[name] = args.steps * args.batch / (time.perf_counter() - start)
            entry["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            results.append(entry)
            show(f"box {box} turn {turn}:", {n: v for n, v in entry.items() if n not in key})
    refresh = load_config(PAPER, _overrides(box, args)).amortize.refresh
    _report(box, [entry for entry in results.read(**key) if "ours" in entry and "baseline" in entry], refresh)


def _report(box: int, turns: list[dict], refresh: int) -> None:
    if not turns:
        return
    batch, render = turns[0]["batch"], turns[0]["render_seconds"]
    for name, images in (
        ("without rendering", None),
        (f"batch {batch}", batch),
        (f"batch {PAPER_BATCH}", PAPER_BATCH),
    ):
        shared = 0.0 if images is None else render / (refresh * images)
        ours = np.array([1 / (1 / turn["ours"] + shared) for turn in turns])
        ratio = ours / np.array([turn["baseline"] for turn in turns])
        print(
            f"box {box}, {name}: ours {np.median(ours):.2f} images/s, baseline "
            f"{np.median([turn['baseline'] for turn in turns]):.2f}, ratio {np.median(ratio):.2f} "
            f"({ratio.min():.2f} to {ratio.max():.2f}, {len(turns)} turns)"
        )


def _overrides(box: int, args: argparse.Namespace) -> dict:
    return {
        "box_size": box, "encoder.box_size": box, "amortize.batch_size": args.batch, **parse_overrides(args.set)
    }  # fmt: skip


def _paper(box: int, args: argparse.Namespace) -> tuple[TestSet, ReconstructConfig]:
    test = load(simulate("phantom_ideal", args.work, args.data, _IMAGES, box=box))
    return test, load_config(PAPER, _overrides(box, args))


def infer(args: argparse.Namespace, results: Results) -> None:
    """Posing by the encoder alone: 64 px particles, looked at in 32 px."""
    test = load(simulate("phantom_0", args.work, args.data, _INFERRED, box=64))
    config = load_config(None, {"encoder.box_size": 32, **parse_overrides(args.set)})
    data, noise = test.data, torch.ones(test.data.disk.shell_count)
    encoder = make_pose_encoder(config.encoder, data.disk.box_size * data.pixel_size, config.seed)
    trained = TrainedEncoder(encoder, False, 64, float(data.pixel_size), full_radius(32), noise, noise)
    fast, full = EncoderInference(trained), EncoderInference(trained, bf16=False)
    rows = np.arange(len(data))
    batches = [batch for _, batch in data.batches(rows, 512, trained.radius)]

    def plain(batch):
        with torch.no_grad():
            return encoder.eval()(make_encoder_images(batch, 32, ctf=config.encoder.ctf))

    ways = {"default": fast.hypotheses, "float32_folded": full.hypotheses, "float32_plain": plain}
    for turn in range(args.turns):
        entry = {"what": "infer", "turn": turn, "threads": args.threads, "label": args.label}
        for name, way in ways.items():
            way(batches[0])
            start = time.perf_counter()
            for batch in batches:
                way(batch)
            entry[name] = len(rows) / (time.perf_counter() - start)
        start = time.perf_counter()
        for _, batch in data.batches(rows, 512, trained.radius):
            fast.hypotheses(batch)
        entry["with_reading"] = len(rows) / (time.perf_counter() - start)
        results.append(entry)
        show("infer, images/s:", {n: v for n, v in entry.items() if isinstance(v, float)})


def search(args: argparse.Namespace, results: Results) -> None:
    """The exhaustive search, in several ways by turns."""
    box = args.boxes[0]
    test = load(simulate("4v5a_-10", args.work, args.data, args.search_images, box=box))
    problem = make_problem(test, NOISE["-10"] or 0.0, args.search_images)
    key = {"what": "search", "box": box, "threads": args.threads, "label": args.label, **describe_problem(problem)}
    for turn in range(args.turns):
        for name in args.searches:
            if not results.read(**key, search=name, turn=turn):
                figures = time_searches(problem, [name])[name]
                results.append({**key, "search": name, "turn": turn, **figures})
                show(f"search, {name}, turn {turn}:", figures)
    turns = {name: results.read(**key, search=name) for name in args.searches}
    seconds = {name: float(np.median([t["seconds_per_1000"] for t in found])) for name, found in turns.items()}
    for name, found in turns.items():
        print(
            f"{name}: {seconds[name]:.2f} s per 1000 images, {seconds[args.searches[0]] / seconds[name]:.2f} times "
            f"as fast as {args.searches[0]}, recall {found[-1]['recall']:.1%} ({len(found)} turns)"
        )


def profile(args: argparse.Namespace) -> None:
    """Where a step's time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    test, config = _paper(args.boxes[0], args)
    side = {"ours": Ours, "baseline": Baseline}[args.only or "ours"](test, config)
    side.step()
    with torch_profile(activities=[ProfilerActivity.CPU], record_shapes=args.shapes) as found:
        for _ in range(args.steps):
            side.step()
    averages = found.key_averages(group_by_input_shape=args.shapes)
    print(averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


def draw(args: argparse.Namespace) -> None:
    """Images per second of both, per box."""
    import matplotlib.pyplot as plt

    turns = Results(args.work / "throughput.jsonl").read(what="train", label=args.label)
    turns = [turn for turn in turns if "ours" in turn and "baseline" in turn]
    boxes = sorted({turn["box"] for turn in turns})
    figure, axes = plt.subplots(1, len(boxes), figsize=(3.5 * len(boxes), 3.2), squeeze=False)
    for axis, box in zip(axes[0], boxes, strict=True):
        for place, name in enumerate(("baseline", "ours")):
            rates = [turn[name] for turn in turns if turn["box"] == box]
            axis.bar(place, np.median(rates), color=("0.7", "C0")[place])
            axis.plot([place] * len(rates), rates, "k_")
        axis.set_xticks((0, 1), ("plain float32", "cryoai"))
        axis.set(title=f"{box} px", ylabel="images/s")
    figure.tight_layout()
    figure.savefig(args.images / "throughput.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("what", nargs="?", choices=("train", "infer", "search", "profile"), default="train")
    parser.add_argument("--boxes", type=int, nargs="+", help="default: 128 and 64; of search, 64")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="steps of each turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=("ours", "baseline"), help="one side alone, for its memory or profile")
    parser.add_argument("--set", nargs="*", default=[], help="options such as amortize.search_radius=16")
    parser.add_argument(
        "--searches", nargs="+", default=list(SEARCHES), choices=list(SEARCHES), help="which ways of search"
    )
    parser.add_argument("--search-images", type=int, default=2000, help="how many are searched")
    parser.add_argument("--label", default="default", help="names runs with other options")
    parser.add_argument("--shapes", action="store_true", help="profile by the shapes of tensors")
    args = parse(parser)
    args.boxes = args.boxes or ([64] if args.what == "search" else [128, 64])
    results = Results(Path(args.work) / "throughput.jsonl")
    if args.figures:
        draw(args)
    elif args.what == "infer":
        infer(args, results)
    elif args.what == "search":
        search(args, results)
    elif args.what == "profile":
        profile(args)
    else:
        for box in args.boxes:
            train(box, args, results)


if __name__ == "__main__":
    main()
