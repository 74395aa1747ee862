"""The scheme of Levy et al. (2022) itself on an easy problem: does it converge, and how fast?

    python benchmarks/paper_scheme.py --work /tmp/paper --seeds 5 [--head anchored --hypotheses 60]
    python benchmarks/paper_scheme.py --work /tmp/paper --figures

configs/paper-small.yaml (one pose per image through S²×S², FourierNet, the symmetrised loss) is trained on
noise-free, centred images of 16 px without CTF. Learning curves go to ``paper_curves.jsonl``, ends of runs to
``paper.jsonl``, final maps to ``maps/``; a run goes on from ``states/`` when it is given more ``--minutes``. The
encoder's own pose is the ``first``; ``scored`` is the better of those of the image and of its copy turned by 180°
(with several hypotheses, the best of all).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import (
    CONVERGED_ROTATION,
    MOLECULES,
    NOISE,
    REPOSITORY,
    Results,
    add_options,
    has_converged,
    load,
    parse,
    parse_overrides,
    show,
    simulate,
)
from learning import Learner, Watch

from cryoai.poses.heads import HEADS
from cryoai.run.config import ReconstructConfig, load_config
from cryoai.volumes import VOLUMES

SMALL = REPOSITORY / "configs" / "paper-small.yaml"
ROTATIONS_OF_GRID = 4608
# Five stages do not fit 16 px, and FourierNet needs no more neurons than the map has shells for.
SIZES: dict[int, dict[str, Any]] = {16: {"encoder.widths": [16, 32, 64, 64], "amortize.volume_width": 64}}
# Which poses count: the better of those of an image and of its copy turned by 180°.
WAY = "scored"
# Of the box, spanned by the molecule. At 16 px and 0.5 the truth itself cannot tell views apart.
FILL = 0.875


def make_config(args: argparse.Namespace, seed: int) -> ReconstructConfig:
    """configs/paper-small.yaml with what the command line changes."""
    box = args.box
    radii = {f"amortize.{name}_radius": box / 2 for name in ("first", "last", "search")}
    options: dict[str, Any] = {
        "seed": seed, "box_size": box, "encoder.box_size": args.encoder_box or box, **radii,
        "encoder.head": args.head, "amortize.symmetrized": args.loss == "symmetrized",
        "amortize.steps": 10_000_000, **SIZES.get(box, {}),
    }  # fmt: skip
    hypotheses = args.hypotheses or (ROTATIONS_OF_GRID if args.head == "so3_grid" else 8)
    named = {
        "encoder.hypotheses": hypotheses, "amortize.volume": args.volume, "amortize.batch_size": args.batch,
        "amortize.encoder_learning_rate": args.encoder_lr, "amortize.volume_learning_rate": args.volume_lr,
    }  # fmt: skip
    options.update({name: value for name, value in named.items() if value is not None})
    return load_config(args.config, {**options, **parse_overrides(args.set)})


def default_label(args: argparse.Namespace) -> str:
    """What tells runs apart."""
    parts = [args.molecule, f"{args.box}px", args.head, *([str(args.hypotheses)] if args.hypotheses else [])]
    parts += [args.loss, args.volume or "fourier_net"]
    for name in ("batch", "encoder_lr", "volume_lr"):
        if getattr(args, name) is not None:
            parts.append(f"{name}{getattr(args, name):g}")
    return "-".join(parts + args.set)


def particles(args: argparse.Namespace) -> Path:
    """The folder of the images that are trained on."""
    return simulate(
        args.molecule, args.work, args.data, args.particles, box=args.box, centred=not args.shifts, ctf=args.ctf,
        fill=args.fill,
    )  # fmt: skip


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One training; its end."""
    label = args.label or default_label(args)
    key = {"label": label, "head": args.head, "loss": args.loss, "molecule": args.molecule, "seed": seed}
    curves = Results(args.work / "paper_curves.jsonl")

    def tell(figures: dict[str, Any]) -> None:
        curves.append({**key, **figures})
        show(f"  {label} seed {seed}:", figures)

    watch = Watch(args.minutes, args.every)
    if args.until_converged:
        watch = replace(watch, enough=is_solved)
    state = args.work / "states" / f"{label}-seed{seed}.pt"
    learner = Learner(load(particles(args)), make_config(args, seed), watch, tell, state)
    end = learner.run()
    learner.write(args.work / "maps" / f"{label}-seed{seed}.mrc")
    return {**key, "minutes": args.minutes, "threads": args.threads, "converged": is_solved(end), **end}


def is_solved(figures: dict[str, Any]) -> bool:
    """Converged, and three in four particles are: half of them can stay stuck while median and map look right."""
    return has_converged(figures, WAY) and figures[WAY]["rotation_q75"] <= CONVERGED_ROTATION


def is_done(results: Results, args: argparse.Namespace, label: str, seed: int) -> bool:
    """Whether a run has had its minutes; a shorter one is gone on with."""
    ends = results.read(label=label, seed=seed)
    return any(end["minutes"] >= args.minutes or (args.until_converged and end["converged"]) for end in ends)


def count_converged(results: Results, label: str) -> str:
    """In words, by the last end of each seed."""
    ends = {entry["seed"]: entry for entry in results.read(label=label)}
    return f"{label}: {sum(is_solved(end) for end in ends.values())} of {len(ends)} converged"


def draw(args: argparse.Namespace, name: str = "paper_scheme.png") -> None:
    """Loss, wrong poses and likeness to the truth over time: a colour per label, a line per seed."""
    import matplotlib.pyplot as plt

    curves = Results(args.work / "paper_curves.jsonl").read()
    labels = args.labels or sorted({entry["label"] for entry in curves})
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    for place, label in enumerate(labels):
        lines = [entry for entry in curves if entry["label"] == label]
        for number, seed in enumerate(sorted({entry["seed"] for entry in lines})):
            line = [entry for entry in lines if entry["seed"] == seed]
            minutes = [entry["seconds"] / 60 for entry in line]
            values = (
                [e["volume_loss"] for e in line],
                [e[WAY]["above_10deg"] for e in line],
                [e["mean_fsc"] for e in line],
            )
            for axis, y in zip(axes, values, strict=True):
                axis.plot(minutes, y, color=f"C{place}", linewidth=1.2, label=None if number else label)
    axes[0].set(yscale="log", ylabel="power that the volume does not explain")
    axes[1].set(ylim=(0, 1), ylabel="poses wrong by over 10°")
    axes[2].set(ylabel="mean FSC with the truth")
    for axis in axes:
        axis.set_xlabel("minutes of training")
    axes[0].legend()
    args.images.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(args.images / name, dpi=110)


def add_scheme_options(parser: argparse.ArgumentParser) -> None:
    molecules = [f"{molecule}_{noise}" for molecule in MOLECULES for noise in NOISE]
    parser.add_argument("--molecule", default="5nrl_ideal", choices=molecules)
    parser.add_argument("--box", type=int, default=16)
    parser.add_argument("--fill", type=float, default=FILL, help="part of the box that the molecule spans")
    parser.add_argument("--encoder-box", type=int, help="px that the encoder looks at; default: all")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--shifts", action="store_true", help="images are off-centre by an eighth of the molecule")
    parser.add_argument("--ctf", action="store_true", help="images have a CTF")
    parser.add_argument("--config", type=Path, default=SMALL)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two looks")
    parser.add_argument("--until-converged", action="store_true", help="stop there instead of after --minutes")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--labels", nargs="+", help="of the runs that are drawn; default: all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    add_scheme_options(parser)
    parser.add_argument("--head", default="s2s2", choices=list(HEADS))
    parser.add_argument("--hypotheses", type=int, help="of the anchored head (default 8), rotations of the grid")
    parser.add_argument("--loss", default="symmetrized", choices=("symmetrized", "l2"))
    parser.add_argument("--volume", choices=list(VOLUMES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--encoder-lr", type=float)
    parser.add_argument("--volume-lr", type=float)
    parser.add_argument("--set", nargs="*", default=[], help="options such as encoder.widths=[16,32]")
    parser.add_argument("--label", help="names runs; default: from the options")
    args = parse(parser)
    if args.figures:
        draw(args)
        return
    results, label = Results(args.work / "paper.jsonl"), args.label or default_label(args)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        if not is_done(results, args, label, seed):
            results.append(run(args, seed))
            show(f"seed {seed}:", results.read()[-1])
    print(count_converged(results, label))


if __name__ == "__main__":
    main()
