"""What the symmetrised loss and the neural volume are good for (figure 5 of Levy et al. 2022).

    python benchmarks/ablation.py --work /tmp/ablation loss --minutes 20 --seeds 5
    python benchmarks/ablation.py --work /tmp/ablation volume --set-name 4ake_ideal --seeds 5
    python benchmarks/ablation.py --work /tmp/ablation rates
    python benchmarks/ablation.py --work /tmp/ablation mirror
    python benchmarks/ablation.py --work /tmp/ablation --figures

``loss``: the symmetrised loss against plain L2, for FourierNet and for cryoPoseNet's real-space grid, in the
paper's own scheme (paper_scheme.py). ``mirror``: how much the maps that it left are their own mirror images,
and how many of the wrong poses are the mirror image's.
``volume``: five volumes of about equal size under the default head: steps and seconds until the map reaches
``--target`` px. ``rates``: how fast each learns from known poses, which is where the table of rates comes from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import paper_scheme
import torch
from harness import (
    Clock,
    Results,
    TestSet,
    add_options,
    find_poses,
    load,
    make_trainer,
    measure_map,
    parse,
    parse_overrides,
    show,
    simulate,
)
from learning import Learner, Watch, resolves
from mirror import MirrorPlane, explain_wrong_poses, find_mirror_plane, project_beside_plane

from cryoai import read_map
from cryoai.metrics.alignment import mirror_rotation
from cryoai.run.config import ReconstructConfig, load_config
from cryoai.tensors import ParticleBatch
from cryoai.training.winners import Winners
from cryoai.volumes import VolumeKind, count_parameters, width_for_budget

GRIDS = ("fourier_grid", "real_grid")
VOLUMES = ("fourier_net", "siren", "positional_mlp", *GRIDS)
# Of Adam, for the volume. The best of `rates` are the volumes' own.
TRIED_RATES = {True: (1e-2, 3e-2, 1e-1, 3e-1), False: (3e-4, 1e-3, 3e-3)}
# Of the volume; None is what configs/paper-small.yaml says.
SCHEME_RATES = {"fourier_net": None, "real_grid": 1e-2}
LOSSES = ("symmetrized", "l2")
# Particles whose wrong poses are explained.
JUDGED = 2000


def scheme(args: argparse.Namespace, volume: str, loss: str) -> argparse.Namespace:
    """What paper_scheme.py would be called with."""
    options = {
        "label": f"{volume}, {loss}", "volume": volume, "loss": loss, "head": "s2s2", "hypotheses": None,
        "batch": None, "encoder_lr": None, "volume_lr": SCHEME_RATES[volume],
    }  # fmt: skip
    return argparse.Namespace(**{**vars(args), **options})


def loss_arms(args: argparse.Namespace) -> None:
    """Both losses, for both volumes, in the paper's scheme."""
    results = Results(args.work / "paper.jsonl")
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for volume in SCHEME_RATES:
            for loss in LOSSES:
                label = f"{volume}, {loss}"
                if paper_scheme.is_done(results, args, label, seed):
                    continue
                results.append(paper_scheme.run(scheme(args, volume, loss), seed))
                show(f"{label}, seed {seed}:", results.read()[-1])
    for label in dict.fromkeys(entry["label"] for entry in results.read()):
        print(paper_scheme.count_converged(results, label))


def volume_config(volume: VolumeKind, args: argparse.Namespace, seed: int) -> ReconstructConfig:
    """The default training with another volume."""
    width = 8 if volume in GRIDS else width_for_budget(volume, args.budget)
    options = {
        "method": "amortized", "seed": seed, "amortize.volume": volume, "amortize.volume_width": width,
        **parse_overrides(args.set),
    }  # fmt: skip
    return load_config(None, options)


def volume_arms(args: argparse.Namespace) -> None:
    """Steps and seconds until each volume shows the molecule."""
    results, curves = Results(args.work / "ablation.jsonl"), Results(args.work / "ablation_curves.jsonl")
    test = load(simulate(args.set_name, args.work, args.data, args.particles))
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for volume in args.volumes:
            key = {"what": "volume", "volume": volume, "seed": seed, "set": args.set_name, "target": args.target}
            if results.read(**key):
                continue
            watch = Watch(
                args.minutes, every_steps=args.every_steps, first_step=args.first_step,
                enough=resolves(args.target), particles=500,
            )  # fmt: skip
            config = volume_config(volume, args, seed)

            def tell(figures: dict[str, Any], key: dict[str, Any] = key) -> None:
                curves.append({**key, **figures})
                show(f"  {key['volume']} seed {key['seed']}:", figures)

            learner = Learner(test, config, watch, tell)
            parameters = count_parameters(learner.trainer.model.volume)
            results.append({**key, "parameters": parameters, **learner.run()})
            learner.write(args.work / "maps" / f"{args.set_name}, {volume}-seed{seed}.mrc")
    for volume in args.volumes:
        runs = results.read(what="volume", volume=volume, set=args.set_name, target=args.target)
        good = [entry for entry in runs if entry["reached"]]
        line = f"{volume:15} {len(good)} of {len(runs)} reached {args.target} px"
        if good:
            median = {n: np.median([entry[n] for entry in good]) for n in ("step", "seconds")}
            line += f"; {median['step']:.0f} steps, {median['seconds']:.0f} s, {runs[0]['parameters']} parameters"
        print(line)


class KnownPoses:
    """A run's own particles with their true poses."""

    def __init__(self, test: TestSet, batch_size: int) -> None:
        self._test, self._size = test, batch_size

    def __call__(self, step: int) -> tuple[ParticleBatch, Winners]:
        rows = np.random.default_rng(step).permutation(len(self._test.particles))[: self._size]
        pose = self._test.pose(rows)
        rotation, translation = (
            torch.from_numpy(np.asarray(values, np.float32)) for values in (pose.rotation, pose.translation)
        )
        return self._test.data.batch(rows), Winners(rotation, translation)


def rates(args: argparse.Namespace) -> None:
    """How well each volume fits images of known poses in ``--rate-steps`` steps."""
    results = Results(args.work / "rates.jsonl")
    test = load(simulate(args.set_name, args.work, args.data, args.particles))
    for volume in args.volumes:
        for rate in TRIED_RATES[volume in GRIDS]:
            key = {"volume": volume, "rate": rate, "steps": args.rate_steps, "set": args.set_name}
            if results.read(**key):
                continue
            # Nearly no encoder: it is shown the poses as well.
            config = load_config(None, {
                **volume_config(volume, args, 0).model_dump(), "encoder": {"widths": (2,), "hypotheses": 100},
            })  # fmt: skip
            amortize = config.amortize.model_copy(update={
                "steps": args.rate_steps, "volume_learning_rate": rate, "march_steps": args.rate_steps // 3,
            })  # fmt: skip
            trainer = make_trainer(
                test.data, config.model_copy(update={"amortize": amortize}), KnownPoses(test, amortize.batch_size)
            )
            clock = Clock()
            trainer.train()
            seconds = clock.seconds
            loss = float(np.mean([record.volume_loss for record in trainer.history[-20:]]))
            figures = measure_map(trainer.model.volume.to_map(), test.true_map).figures
            results.append({**key, "seconds": seconds, "volume_loss": loss, **figures})
            show("rates:", results.read()[-1])


def mirror(args: argparse.Namespace) -> None:
    """The best mirror plane of the truth and of every map that the paper's scheme left, and what came of it."""
    results = Results(args.work / "mirror.jsonl")
    folder = paper_scheme.particles(args)
    test, true_map = load(folder), folder / "true_map.mrc"
    ends = Results(args.work / "paper.jsonl").read()
    maps = dict.fromkeys(args.work / "maps" / f"{end['label']}-seed{end['seed']}.mrc" for end in ends)
    for path in [true_map, *maps]:
        name = "truth" if path == true_map else path.stem
        if results.read(map=name):
            continue
        density = read_density(path)
        plane = find_mirror_plane(density)
        figures = {"mirror": plane.correlation, "normal": plane.normal.tolist(), "offset": plane.offset}
        figures |= measure_map(density, test.true_map).figures | wrong_poses(args, path.stem, test, plane)
        results.append({"map": name, "file": str(path.relative_to(args.work)), **figures})
        show(name, figures)


def wrong_poses(args: argparse.Namespace, name: str, test: TestSet, plane: MirrorPlane) -> dict[str, float]:
    """What the wrong poses at the end of a training have to do with its map's mirror plane."""
    state = args.work / "states" / f"{name}.pt"
    label, _, seed = name.rpartition("-seed")
    volume, _, loss = label.partition(", ")
    if loss not in LOSSES or not state.exists():
        return {}
    config = paper_scheme.make_config(scheme(args, volume, loss), int(seed))
    learner = Learner(test, config, Watch(args.minutes), tell=lambda figures: None, state=state)
    learner.go_on()
    rows = np.arange(min(len(test.particles), JUDGED))
    found, _ = find_poses(test, learner.trained(), learner.render(), rows, paper_scheme.WAY)
    alignment = measure_map(learner.density(), test.true_map).alignment
    true = test.pose(rows).rotation
    expected = alignment.rotation @ (mirror_rotation(true) if alignment.mirrored else true)
    return explain_wrong_poses(found.double().numpy(), expected, plane)


def read_density(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(read_map(path).density, np.float32))


def draw_mirror(args: argparse.Namespace) -> None:
    """Each map seen along its best mirror plane, the vertical middle line; below, the truth from the same side."""
    import matplotlib.pyplot as plt

    entries = Results(args.work / "mirror.jsonl").read()
    most_alike: dict[str, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: entry["mirror"]):
        most_alike[entry["map"].partition("-seed")[0]] = entry
    shown = [most_alike[label] for label in dict.fromkeys(e["map"].partition("-seed")[0] for e in entries)]
    figure, axes = plt.subplots(2, len(shown), figsize=(2.4 * len(shown), 5.6), squeeze=False)
    true = read_density(paper_scheme.particles(args) / "true_map.mrc")
    for (above, below), entry in zip(axes.T, shown, strict=True):
        density = read_density(args.work / entry["file"])
        plane = MirrorPlane(entry["mirror"], np.array(entry["normal"]), entry["offset"])
        for axis, seen in ((above, density), (below, measure_map(true, density).aligned)):
            axis.imshow(project_beside_plane(seen, plane), cmap="gray", interpolation="bilinear")
            axis.axvline(density.shape[-1] // 2, color="C1", linewidth=0.7, linestyle=":")
            axis.axis("off")
        title = f"{entry['map']}\nlike its mirror image: {entry['mirror']:.2f}\nmean FSC: {entry['mean_fsc']:.2f}"
        above.set_title(title, fontsize=8)
        below.set_title("truth", fontsize=8)
    figure.tight_layout(h_pad=2)
    figure.savefig(args.images / "spurious_symmetry.png", dpi=130)


def draw_volumes(args: argparse.Namespace) -> None:
    """Steps and seconds to the target: a dot per seed; runs that never got there are crosses at the top."""
    import matplotlib.pyplot as plt

    entries = Results(args.work / "ablation.jsonl").read(what="volume", set=args.set_name, target=args.target)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, name in zip(axes, ("step", "seconds"), strict=True):
        for place, volume in enumerate(VOLUMES):
            runs = [entry for entry in entries if entry["volume"] == volume]
            for marker, reached in (("o", True), ("x", False)):
                values = [entry[name] for entry in runs if entry["reached"] is reached]
                axis.plot([place] * len(values), values, marker, color=f"C{place}", alpha=0.6)
            good = sum(entry["reached"] for entry in runs)
            axis.text(place, 0, f"{good}/{len(runs)}", ha="center", va="bottom", fontsize=8)
        axis.set_xticks(range(len(VOLUMES)), [v.replace("_", "\n") for v in VOLUMES], fontsize=8)
        top = 1.1 * max(entry[name] for entry in entries)
        axis.set(ylabel=f"{name} until {args.target} px", xlim=(-0.5, len(VOLUMES) - 0.5), ylim=(0, top))
    figure.tight_layout()
    figure.savefig(args.images / "volumes.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("part", nargs="?", choices=("loss", "volume", "rates", "mirror"), default="loss")
    paper_scheme.add_scheme_options(parser)
    parser.add_argument("--set", nargs="*", default=[], help="options such as encoder.widths=[16,32]")
    parser.add_argument("--volumes", nargs="+", default=VOLUMES, choices=VOLUMES)
    parser.add_argument("--set-name", default="4ake_ideal", help="particles of `volume`")
    parser.add_argument("--target", type=float, default=2.6, help="px, of `volume`")
    parser.add_argument("--budget", type=int, default=84_000, help="parameters of a network; grids have their own")
    parser.add_argument("--every-steps", type=int, default=25, help="between two looks of `volume`")
    parser.add_argument("--first-step", type=int, default=100)
    parser.add_argument("--rate-steps", type=int, default=150)
    args = parse(parser)
    if args.figures:
        args.images.mkdir(parents=True, exist_ok=True)
        for file, figure in (("mirror", draw_mirror), ("ablation", draw_volumes), ("paper_curves", draw_losses)):
            if (args.work / f"{file}.jsonl").exists():
                figure(args)
        return
    {"loss": loss_arms, "volume": volume_arms, "rates": rates, "mirror": mirror}[args.part](args)


def draw_losses(args: argparse.Namespace) -> None:
    paper_scheme.draw(args, "losses.png")


if __name__ == "__main__":
    main()
