"""The ladder: what is found by noise, molecule and number of images, and what could be.

    python benchmarks/ladder.py --work /tmp/ladder                                # all of it, about a hundred runs
    python benchmarks/ladder.py --work /tmp/ladder --molecules 70S --snr -13 --images 20000 --seeds 0 1
    python benchmarks/ladder.py --work /tmp/ladder --other ../before --label before   # the same sets, other code
    python benchmarks/ladder.py --work /tmp/ladder --label wide --extra bootstrap.steps=120 --only runs
    python benchmarks/ladder.py table [--label NAME | --label newest] [--against NAME]
    python benchmarks/ladder.py figure [--label NAME] [--output docs/images/ladder.png]

A rung is a molecule, an SNR, a number of images and a seed, that of the set and of the run. ``run`` is the default
command on it; ``limit``, once per molecule, SNR and number of images, the same refinement from the true poses.
Each is a command in a process of its own, judged by this checkout whichever ran, and a line of
``benchmarks/results/ladder.jsonl``. It may be killed at any time: what has a line of the same version (the label,
or else the commit that last changed src/, with + where there are changes) is not done again, unless it failed.
Each set is deleted after its last run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from campaign import make_parser, parse
from commands import WRONG_INPUT, SimulatedSet, reconstruct, simulate, version_of
from harness import IMAGES, REPOSITORY, Results, show
from ladder_rungs import BOX, DEEPER, LIMIT, MOLECULES, REALISTIC, SEEDS, TRIALS, Rung, is_within_reach, plan
from ladder_summary import choose_lines, draw, print_tables
from ladder_truth import measure

from cryoai.errors import CryoAIError

SHOWN = ("seconds", "fsc_0.5_px", "rotation_error_median", "fraction_above_0.5", "verdict", "failed")


def simulate_rung(rung: Rung, args: argparse.Namespace) -> Path:
    """The folder of a rung's set, made by this checkout unless it is there."""
    molecule = {**MOLECULES, **TRIALS}[rung.molecule]
    wanted = SimulatedSet(
        molecule.source, rung.box, molecule.pixel_size * BOX / rung.box, rung.images, rung.snr_db,
        molecule.shift_sigma, rung.seed, REALISTIC,
    )  # fmt: skip
    return simulate(wanted, args.work / rung.name, args.shared, args.threads)


def climb(rung: Rung, kind: str, simulated: Path, checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run, or the limit, and its figures; its folder is deleted."""
    extra = {**args.extra, **(LIMIT if kind == "limit" else {})}
    output = args.work / f"{rung.name}-{kind}"
    done = reconstruct(checkout, simulated / "particles.star", output, rung.seed, extra, args.threads)
    if done.finished.status == WRONG_INPUT:
        raise SystemExit(done.said)
    if done.finished.status:
        return {**done.figures, "failed": done.said}
    symmetry = {**MOLECULES, **TRIALS}[rung.molecule].symmetry
    try:
        line = {**done.figures, **measure(simulated, output, symmetry, rung.seed)}
    except CryoAIError as error:
        return {**done.figures, "failed": str(error)}
    if not args.keep:
        done.remove()
    return line


def climb_all(args: argparse.Namespace) -> None:
    checkout = REPOSITORY if args.other is None else args.other.resolve()
    commit = version_of(checkout)
    version = args.label or commit
    results = Results(args.results)
    args.work.mkdir(parents=True, exist_ok=True)
    for rung in plan(args.molecules, args.snr, args.images, args.seeds, args.box):
        for kind in rung.kinds:
            key = rung.key(kind, version, args.extra)
            if args.only not in (None, kind) or results.has(key):
                continue
            if args.snr is None and rung.snr_db == DEEPER and not is_within_reach(key, results.read()):
                continue
            line = climb(rung, kind, simulate_rung(rung, args), checkout, args)
            results.append({**key, "commit": commit, **line})
            show(f"{rung.name} {kind}:", {name: line[name] for name in SHOWN if name in line})
        if not args.keep:
            shutil.rmtree(args.work / rung.name, ignore_errors=True)


def main() -> None:
    parser = make_parser(__doc__, ("climb", "table", "figure"), "ladder.jsonl", BOX)
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES), choices=[*MOLECULES, *TRIALS])
    parser.add_argument("--snr", nargs="+", type=float, help="dB; default -10 -13 -16, and -19 where -16 works")
    parser.add_argument("--images", nargs="+", type=int, help="default 20000, of 70S and 6VYB also 5000 and 50000")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--only", choices=("limit", "run", "runs"), help="leave the others out")
    parser.add_argument("--output", type=Path, default=IMAGES / "ladder.png", help="of figure: where to")
    args = parse(parser)
    args.only = "run" if args.only == "runs" else args.only
    if args.what == "climb":
        climb_all(args)
        return
    lines = Results(args.results).read()
    chosen = choose_lines(lines, args.label)
    if args.what == "figure":
        draw(chosen, args.output)
    else:
        print_tables(chosen, None if args.against is None else choose_lines(lines, args.against))


if __name__ == "__main__":
    main()
