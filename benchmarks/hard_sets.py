"""Particles that are hard to get right, or that cannot be: what the default command makes of them.

    python benchmarks/hard_sets.py --work /tmp/hard_sets                          # all of it
    python benchmarks/hard_sets.py --work /tmp/hard_sets --only apoferritin shapes --seeds 0 1
    python benchmarks/hard_sets.py --work /tmp/hard_sets --other ../before --label before
    python benchmarks/hard_sets.py table [--label NAME] [--against NAME]

``apoferritin`` and ``real`` are the real particles of the test data; ``views`` a molecule seen mostly or only from
one side; ``shapes`` those of which some or all views look alike, and noise; ``junk`` images without a particle.
Each run is a command in a process of its own, judged by this checkout whichever ran, and a line of
``benchmarks/results/hard_sets.jsonl``. It may be killed at any time: what has a line of the same version (the
label, or else the commit that last changed src/, with + where there are changes) is not done again, unless it
failed.
Each simulated set is deleted after its last run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from campaign import make_parser, parse
from commands import WRONG_INPUT, Reconstruction, SimulatedSet, reconstruct, simulate, version_of
from hard_sets_plan import (
    BOX,
    IMAGES,
    NOISE,
    PARTS,
    SHAPE_PIXEL_SIZE,
    SHAPE_SHIFT_SIGMA,
    HardSet,
    Planned,
    Real,
    Simulated,
    plan,
)
from hard_sets_summary import choose_lines, print_tables
from hard_sets_truth import compare_with_model, compare_with_truth, describe
from harness import REPOSITORY, Results, show
from ladder_rungs import LIMIT, MOLECULES, REALISTIC
from shapes import write_shape

from cryoai.errors import CryoAIError

SHOWN = (
    "seconds", "fsc_0.5_px", "fsc_0.5_angstrom", "correlation", "rotation_error_median", "roundness", "views",
    "verdict", "refused", "failed",
)  # fmt: skip


def prepare(planned: Planned, args: argparse.Namespace) -> tuple[Path, list[str]]:
    """The particles' file, and what the command must be told to find their images."""
    hard_set, source = planned.hard_set, planned.hard_set.source
    if isinstance(source, Simulated):
        return simulate_set(source, hard_set, planned.seed, args) / "particles.star", []
    particles = args.shared / "particles" / source.particles
    if source.stack is None:
        return particles, []
    there, named = source.stack
    copy = args.work / particles.name
    copy.write_text(particles.read_text().replace(named, there))
    return copy, ["--datadir", str(particles.parent)]


def simulate_set(source: Simulated, hard_set: HardSet, seed: int, args: argparse.Namespace) -> Path:
    """The folder of a set, made by this checkout unless it is there."""
    scale = BOX / args.box
    if source.shape is not None:
        pixel_size, shift_sigma = SHAPE_PIXEL_SIZE * scale, SHAPE_SHIFT_SIGMA
        path = (args.work / "shapes" / f"{source.shape.replace(' ', '-')}-{args.box}px.mrc").resolve()
        write_shape(source.shape, args.box, pixel_size, path)
        what = ("--map", str(path))
    else:
        molecule = MOLECULES[str(source.molecule)]
        pixel_size, shift_sigma, what = molecule.pixel_size * scale, molecule.shift_sigma, molecule.source
    wanted = SimulatedSet(
        what, args.box, pixel_size, args.images, source.snr_db, shift_sigma, seed, (*REALISTIC, *source.options)
    )
    return simulate(wanted, args.work / hard_set.folder(seed), args.shared, args.threads)


def measure(planned: Planned, kind: str, checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run, or the limit, and its figures; its folder is deleted."""
    particles, words = prepare(planned, args)
    output = args.work / f"{planned.hard_set.folder(planned.seed)}-{kind}"
    extra = {**args.extra, **(LIMIT if kind == "limit" else {})}
    if isinstance(planned.hard_set.source, Real):
        extra |= dict(planned.hard_set.source.options)
    done = reconstruct(checkout, particles, output, planned.seed, extra, args.threads, words)
    line = {**done.figures, "status": done.finished.status}
    if done.finished.status:
        is_refused = done.finished.status == WRONG_INPUT
        if is_refused and not may_be_refused(planned.hard_set):
            raise SystemExit(done.said)
        line["refused" if is_refused else "failed"] = done.said
    else:
        try:
            line |= judge(planned.hard_set, particles.parent, done, args)
        except CryoAIError as error:
            return {**line, "failed": str(error)}
    if not args.keep and "failed" not in line:
        done.remove()
    return line


def may_be_refused(hard_set: HardSet) -> bool:
    """Whether there may be too few particles, or nothing in them: to refuse them is right then."""
    return hard_set.part == "real" or not hard_set.told_apart


def judge(hard_set: HardSet, folder: Path, done: Reconstruction, args: argparse.Namespace) -> dict[str, Any]:
    """What a finished run says, and how its map and poses compare with the truth where that is known."""
    line, source = describe(done.output), hard_set.source
    if isinstance(source, Simulated):
        return line if hard_set.name == NOISE else {**line, **compare_with_truth(folder, done.output)}
    if source.model is None:
        return line
    return {**line, **compare_with_model(done.output, args.shared / source.model)}


def run_all(args: argparse.Namespace) -> None:
    checkout = REPOSITORY if args.other is None else args.other.resolve()
    commit = version_of(checkout)
    results = Results(args.results)
    args.work.mkdir(parents=True, exist_ok=True)
    for planned in plan(args.only, args.seeds):
        hard_set, seed = planned.hard_set, planned.seed
        for kind in planned.kinds:
            key = hard_set.key(kind, seed, args.label or commit, args.extra, args.box, args.images)
            if results.has(key):
                continue
            line = measure(planned, kind, checkout, args)
            results.append({**key, "commit": commit, **line})
            show(f"{hard_set.name}, seed {seed}, {kind}:", {name: line[name] for name in SHOWN if name in line})
        if not args.keep:
            shutil.rmtree(args.work / hard_set.folder(seed), ignore_errors=True)


def main() -> None:
    parser = make_parser(__doc__, ("run", "table"), "hard_sets.jsonl", BOX)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, help="leave the others out")
    parser.add_argument("--seeds", nargs="+", type=int, help="of every set, in place of its own")
    parser.add_argument("--images", type=int, default=IMAGES, help=argparse.SUPPRESS)
    args = parse(parser)
    if args.what == "run":
        run_all(args)
        return
    lines = Results(args.results).read()
    before = None if args.against is None else choose_lines(lines, args.against)
    print_tables(choose_lines(lines, args.label), before)


if __name__ == "__main__":
    main()
