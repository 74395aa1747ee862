"""Mixtures: several molecules or states in one stack, with junk; what `--classes` makes of them.

    python benchmarks/mixtures.py --work /tmp/mixtures                     # all of it
    python benchmarks/mixtures.py --work /tmp/mixtures --only two --seeds 0
    python benchmarks/mixtures.py table [--label NAME]

``two``: 70S, 6VYB and noise. ``four``: states of 4V5A (70S, 50S, 30S, 50S without a third of its proteins).
``eight``: its two subunits, 6VYB, and five parts of 5NRL. ``junk``: one species among as much junk of three kinds.
``pure``: each species of ``two`` alone, in the same number of images, for what mixing costs. The number of classes
is given, unless ``--extra classes=auto`` has it found. All of 64 px, 7 Å, σ = 20 Å, -10 dB, real defoci, coloured
noise, contrast that differs from particle to particle.
Each run is a command in a process of its own and a line of ``benchmarks/results/mixtures.jsonl``; it may be killed
at any time, and what has a line of the same version is not done again, unless it failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from campaign import make_parser, parse
from commands import Reconstruction, reconstruct, run, version_of, write_ctf_star
from harness import REPOSITORY, Results, show
from ladder_rungs import REALISTIC
from result_tables import name_of, print_origin, print_table

BOX, PIXEL_SIZE, SNR_DB, SHIFT_SIGMA = 64, 7.0, -10.0, 20.0
_4V5A, _5NRL, _6VYB = "structures/4v5a_70S.cif.gz", "structures/5nrl.cif.gz", "structures/6vyb.pdb"
_30S = [f"A{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTU"]
_RRNA = ["BA", "BB"]
_PROTEINS_50S = [f"B{letter}" for letter in "012345678CDEFGHINOPQRSTUVWXYZ"]
_FEWER = [chain for index, chain in enumerate(_PROTEINS_50S) if index % 3]
# Chains of 5NRL next to each other in the file, of some 400 to 600 kDa each.
_PARTS = (["A"], ["B"], ["C", "D", "E", "F", "G", "H"], ["J", "K", "L", "M", "N", "O"], ["P", "Q", "R", "T", "U"])


def _chains(structure: str, chains: list[str]) -> str:
    return f"{structure}:{','.join(chains)}"


@dataclass(frozen=True)
class MixedSet:
    """What is mixed: structures with their shares of the images, and junk."""

    species: dict[str, tuple[str, float]]
    images: int
    junk: dict[str, float]
    seeds: tuple[int, ...] = (0, 1, 2)


_50S = _chains(_4V5A, [*_RRNA, *_PROTEINS_50S])
SETS = {
    "two": MixedSet({"70S": (_4V5A, 0.5), "6VYB": (_6VYB, 0.35)}, 10_000, {"noise": 0.15}),
    "pure 70S": MixedSet({"70S": (_4V5A, 1.0)}, 5_000, {}, (0,)),
    "pure 6VYB": MixedSet({"6VYB": (_6VYB, 1.0)}, 3_500, {}, (0,)),
    "single": MixedSet({"70S": (_4V5A, 1.0)}, 10_000, {}, (0,)),
    "four": MixedSet(
        {
            "70S": (_4V5A, 0.25), "50S": (_50S, 0.25), "30S": (_chains(_4V5A, _30S), 0.25),
            "50S less": (_chains(_4V5A, [*_RRNA, *_FEWER]), 0.25),
        },
        20_000, {},
    ),
    "eight": MixedSet(
        {
            "50S": (_50S, 0.125), "30S": (_chains(_4V5A, _30S), 0.125), "6VYB": (_6VYB, 0.125),
            **{f"5NRL {number}": (_chains(_5NRL, chains), 0.125) for number, chains in enumerate(_PARTS, 1)},
        },
        24_000, {},
    ),
    "junk": MixedSet({"70S": (_4V5A, 0.5)}, 10_000, {"noise": 0.17, "pairs": 0.16, "edges": 0.17}),
}  # fmt: skip


def simulate(name: str, mixed: MixedSet, seed: int, args: argparse.Namespace) -> Path:
    """The folder of a set, made unless it is there."""
    folder = args.work / f"{name.replace(' ', '-')}-seed{seed}"
    if (folder / "particles.star").exists():
        return folder
    ctfs, log, recipe = (folder.with_name(f"{folder.name}.{end}") for end in ("ctf.star", "log", "mixture.yaml"))
    write_ctf_star(args.shared / "ctf" / "empiar10028_ctf.npz", ctfs)
    species = [
        {"structure": str(args.shared / source), "share": share, "name": label.replace(" ", "-")}
        for label, (source, share) in mixed.species.items()
    ]
    recipe.write_text(yaml.safe_dump({"species": species, "junk": mixed.junk}))
    words = [
        "simulate", "--mixture", str(recipe), "--box-size", str(args.box), "--pixel-size",
        str(PIXEL_SIZE * BOX / args.box), "--n-particles", str(mixed.images), "--snr-db", f"{SNR_DB:g}",
        "--shift-sigma", f"{SHIFT_SIGMA:g}", "--ctf-from", str(ctfs), *REALISTIC, "--seed", str(seed),
        "-o", str(folder), "--overwrite", "--quiet",
    ]  # fmt: skip
    if run(REPOSITORY, words, args.threads, log).status:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    for path in (ctfs, log, recipe):
        path.unlink()
    return folder


def measure(name: str, mixed: MixedSet, seed: int, checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run and what `cryoai evaluate` says of it."""
    folder, classes = simulate(name, mixed, seed, args), len(mixed.species)
    output = folder.with_name(f"{folder.name}-run")
    done = reconstruct(
        checkout, folder / "particles.star", output, seed, {"classes": classes, **args.extra}, args.threads
    )
    if done.finished.status:
        return {**done.figures, "failed": done.said}
    line = {**done.figures, **evaluate(done, folder, args), "verdicts": read_verdicts(output)}
    if not args.keep:
        done.remove()
    return line


def evaluate(done: Reconstruction, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Every map and all particles against the truth."""
    numbers = range(1, len(list(done.output.glob("class*/map.mrc"))) + 1)
    maps = [done.output / f"class{number}" / "map.mrc" for number in numbers] or [done.output / "map.mrc"]
    true_maps = sorted(folder.glob("true_map*.mrc"))
    figures, log = folder.with_name(f"{folder.name}.json"), folder.with_name(f"{folder.name}.evaluate.log")
    words = [
        "evaluate", "--map", *map(str, maps), "--true-map", *map(str, true_maps), "--poses",
        str(done.output / "particles.star"), "--true-poses", str(folder / "particles.star"), "--json", str(figures),
    ]  # fmt: skip
    if run(REPOSITORY, words, args.threads, log).status:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    found = json.loads(figures.read_text())
    for path in (figures, log):
        path.unlink()
    return found


def read_verdicts(output: Path) -> list[str]:
    """Of each class."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["verdict"] for line in lines if line["step"] in ("class", "result")]


def run_all(args: argparse.Namespace) -> None:
    checkout = REPOSITORY if args.other is None else args.other.resolve()
    commit = version_of(checkout)
    results = Results(args.results)
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        mixed = SETS[name]
        for seed in mixed.seeds if args.seeds is None else args.seeds:
            key = {
                "set": name, "seed": seed, "images": mixed.images, "box": args.box, "version": args.label or commit,
                "extra": args.extra,
            }  # fmt: skip
            if results.has(key):
                continue
            line = measure(name, mixed, seed, checkout, args)
            results.append({**key, "commit": commit, **line})
            show(f"{name}, seed {seed}:", {part: line[part] for part in SHOWN if part in line})
            if not args.keep:
                shutil.rmtree(args.work / f"{name.replace(' ', '-')}-seed{seed}", ignore_errors=True)


SHOWN = ("seconds", "class_accuracy", "class_ari", "junk_told_apart", "fsc_0.5_px", "verdicts", "failed")


def print_tables(lines: list[dict[str, Any]]) -> None:
    """A row for each run."""
    print_origin(lines)
    head = (
        "set | classes | seed | accuracy | Rand index | in the sink | junk told apart | FSC 0.5 of the maps, px | "
    )
    head += "verdicts | seconds | version"
    print_table(head, ([*_row(line), name_of(line)] for line in lines if "failed" not in line))


def _row(line: dict[str, Any]) -> list[str]:
    classes = line.get("classes", [line])
    shares = ("class_accuracy", "class_ari", "particles_in_sink", "junk_told_apart")
    # Of a single species the index says nothing.
    known = line.keys() if "classes" in line else line.keys() - {"class_ari"}
    told = [f"{line[name]:.3f}" if name in known else "–" for name in shares]
    return [
        line["set"], _classes_of(line), str(line["seed"]), *told,
        ", ".join(f"{one['fsc_0.5_px']:.2f}" if "fsc_0.5_px" in one else "–" for one in classes),
        ", ".join(line["verdicts"]), f"{line['seconds']:.0f}",
    ]  # fmt: skip


def _classes_of(line: dict[str, Any]) -> str:
    found = len(line["verdicts"])
    return f"auto: {found}" if line["extra"].get("classes") == "auto" else str(found)


def main() -> None:
    parser = make_parser(__doc__, ("run", "table"), "mixtures.jsonl", BOX)
    parser.add_argument("--only", nargs="+", default=list(SETS), choices=SETS, help="leave the others out")
    parser.add_argument("--seeds", nargs="+", type=int, help="of every set, in place of its own")
    args = parse(parser)
    if args.what == "run":
        run_all(args)
        return
    lines = Results(args.results).read()
    print_tables([line for line in lines if args.label in (None, line["version"])])


if __name__ == "__main__":
    main()
