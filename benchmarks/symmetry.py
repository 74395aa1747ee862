"""Symmetry: which point group a run names that was given none, and what giving it the right one is worth.

    python benchmarks/symmetry.py --work /tmp/symmetry                     # all of it
    python benchmarks/symmetry.py --work /tmp/symmetry --only auto --molecules bgal --seeds 0
    python benchmarks/symmetry.py table [--label NAME]

``auto``: β-galactosidase (D2), TRPV1 (C4), 6VYB (nearly C3) and the 70S, -12 dB, as the ladder simulates them.
``imposed``: β-galactosidase at -16 dB, the same images with D2, with C1, and with D2 a quarter of them, which in
theory are worth as much as all of them with C1. ``apoferritin``: the real particles, with O and with nothing.
Each run is a command in a process of its own and a line of ``benchmarks/results/symmetry.jsonl``; it may be killed
at any time, and what has a line of the same version is not done again, unless it failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaign import make_parser, parse
from commands import SimulatedSet, reconstruct, run, simulate, version_of
from hard_sets_truth import compare_with_model
from harness import REPOSITORY, Results, show
from ladder_rungs import BOX, MOLECULES, REALISTIC
from result_tables import name_of, print_origin, print_table

PARTS = ("auto", "imposed", "apoferritin")
AUTO = ("bgal", "trpv1", "6VYB", "70S")
_AUTO_DB, _AUTO_IMAGES = -12.0, 3_000
_IMPOSED_DB, _IMPOSED_IMAGES = -16.0, 8_000
_PARTICLES, _MODEL = "particles/apoferritin_64/apoferritin.star", "structures/apoferritin_24mer_CA.pdb"


@dataclass(frozen=True)
class Case:
    """One run: a molecule (apoferritin is real), how many images of it, and what it is told of the symmetry."""

    part: str
    molecule: str
    symmetry: str
    images: int
    seed: int
    snr_db: float | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.molecule}-{self.symmetry}-{self.images}-seed{self.seed}"


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What is asked for."""
    for part in args.only:
        for seed in args.seeds if args.seeds is not None else _seeds(part):
            for molecule, symmetry, images, snr in _runs(part):
                if args.molecules is None or molecule in args.molecules:
                    yield Case(part, molecule, symmetry, images, seed, snr)


def _seeds(part: str) -> tuple[int, ...]:
    return (0, 1, 2, 3, 4) if part == "apoferritin" else (0, 1, 2)


def _runs(part: str) -> list[tuple[str, str, int, float | None]]:
    if part == "auto":
        return [(molecule, "auto", _AUTO_IMAGES, _AUTO_DB) for molecule in AUTO]
    if part == "apoferritin":
        return [("apoferritin", symmetry, 1864, None) for symmetry in ("O", "auto")]
    runs = (("D2", _IMPOSED_IMAGES), ("C1", _IMPOSED_IMAGES), ("D2", _IMPOSED_IMAGES // 4))
    return [("bgal", symmetry, images, _IMPOSED_DB) for symmetry, images in runs]


def measure(case: Case, checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run, what it says, and how right it is."""
    shared, folder = args.shared, _set_of(case, args)
    particles, output = shared / _PARTICLES, args.work / f"{case.name}-run"
    if case.snr_db is not None:
        molecule = MOLECULES[case.molecule]
        wanted = SimulatedSet(
            molecule.source, BOX, molecule.pixel_size, case.images, case.snr_db, molecule.shift_sigma, case.seed,
            REALISTIC,
        )  # fmt: skip
        particles = simulate(wanted, folder, shared, args.threads) / "particles.star"
    done = reconstruct(
        checkout, particles, output, case.seed, {"symmetry": case.symmetry, **args.extra}, args.threads
    )
    if done.finished.status:
        return {**done.figures, "failed": done.said}
    line = {**done.figures, **_said(output), **_truth(case, folder, output, args)}
    if not args.keep:
        done.remove()
    return line


def _set_of(case: Case, args: argparse.Namespace) -> Path:
    return args.work / f"{case.molecule}-{case.images}-{case.snr_db}-{case.seed}"


def _said(output: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    result = lines[-1]
    names = (
        "verdict",
        "symmetry",
        "symmetry_pseudo",
        "symmetry_tests",
        "resolution_angstrom",
        "fraction_confident",
    )
    starts = [line["held_out_likelihood"] for line in lines if line["step"] == "bootstrap"]
    return {name: result[name] for name in names} | {"starts": starts}


def _truth(case: Case, folder: Path, output: Path, args: argparse.Namespace) -> dict[str, Any]:
    if case.snr_db is None:
        return compare_with_model(output, args.shared / _MODEL)
    figures, log = args.work / f"{case.name}.json", args.work / f"{case.name}.evaluate.log"
    words = [
        "evaluate", "--map", str(output / "map.mrc"), "--true-map", str(folder / "true_map.mrc"), "--poses",
        str(output / "particles.star"), "--true-poses", str(folder / "particles.star"), "--json", str(figures),
        "--symmetry", MOLECULES[case.molecule].symmetry,
    ]  # fmt: skip
    if run(REPOSITORY, words, args.threads, log).status:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    found = json.loads(figures.read_text())
    for path in (figures, log):
        path.unlink()
    # The true group has this name in the results, where the run's own is.
    found["true_symmetry"] = found.pop("symmetry", "C1")
    return found


def run_all(args: argparse.Namespace) -> None:
    checkout = REPOSITORY if args.other is None else args.other.resolve()
    commit = version_of(checkout)
    results = Results(args.results)
    args.work.mkdir(parents=True, exist_ok=True)
    for case in cases(args):
        key = {
            "part": case.part, "molecule": case.molecule, "asked": case.symmetry, "images": case.images,
            "snr_db": case.snr_db, "seed": case.seed, "version": args.label or commit, "extra": args.extra,
        }  # fmt: skip
        if results.has(key):
            continue
        line = measure(case, checkout, args)
        results.append({**key, "commit": commit, **line})
        show(f"{case.name}:", {part: line[part] for part in SHOWN if part in line})
        if not args.keep and case.snr_db is not None:
            shutil.rmtree(
                args.work / f"{case.molecule}-{case.images}-{case.snr_db}-{case.seed}", ignore_errors=True
            )


SHOWN = ("seconds", "symmetry", "symmetry_pseudo", "verdict", "fsc_0.5_angstrom", "rotation_error_median", "failed")


def print_tables(lines: list[dict[str, Any]]) -> None:
    """A row for each run."""
    print_origin(lines)
    head = "molecule | images | dB | seed | asked for | said | nearly | images gain by it, nats | verdict | "
    head += "FSC 0.5 with the truth, Å | rotation error | seconds | version"
    print_table(head, ([*_row(line), name_of(line)] for line in lines if "failed" not in line))


def _row(line: dict[str, Any]) -> list[str]:
    gains = [f"{test['name']} {test['gain']:+.2f} ± {test['gain_error']:.2f}" for test in line["symmetry_tests"]]
    rotation = line.get("rotation_error_median")
    return [
        line["molecule"], f"{line['images']:,}", "real" if line["snr_db"] is None else f"{line['snr_db']:g}",
        str(line["seed"]), line["asked"], line["symmetry"],
        line["symmetry_pseudo"] if line["symmetry_pseudo"] != "C1" else "–", ", ".join(gains) or "–",
        line["verdict"], f"{line['fsc_0.5_angstrom']:.1f}", "–" if rotation is None else f"{rotation:.1e}",
        f"{line['seconds']:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = make_parser(__doc__, ("run", "table"), "symmetry.jsonl", BOX)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, help="leave the others out")
    parser.add_argument("--molecules", nargs="+", choices=(*AUTO, "apoferritin"), help="leave the others out")
    parser.add_argument("--seeds", nargs="+", type=int, help="of every part, in place of its own")
    args = parse(parser)
    if args.what == "run":
        run_all(args)
        return
    lines = Results(args.results).read()
    print_tables([line for line in lines if args.label in (None, line["version"])])


if __name__ == "__main__":
    main()
