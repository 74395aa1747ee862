"""The standard set and the demo's, by this checkout and by another one in turn: is it as good, and no slower?

    python benchmarks/against.py --work /tmp/against --other ../cryoai-before --turns 2
    python benchmarks/against.py --table

Each run is a whole command in a process of its own; what it took and what it is worth goes to
``benchmarks/results/against.jsonl``. ``--table`` prints the file as the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import PROCESSOR, REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results" / "against.jsonl"
FIGURES = (
    "fsc_0.5_px", "rotation_error_median", "fraction_rotation_above_10deg", "translation_error_mean_px2",
)  # fmt: skip
# Name, options of simulate, options of reconstruct.
SETS = {
    "70S": (
        ("--box-size", "64", "--pixel-size", "5", "--n-particles", "10000", "--shift-sigma", "20",
         "--snr-db", "-10"),
        (),
    ),
    "demo": (
        ("--phantom", "--box-size", "48", "--pixel-size", "5", "--n-particles", "3000", "--shift-sigma", "12",
         "--snr-db", "-8"),
        ("--seeds", "2"),
    ),
}  # fmt: skip


def run(checkout: Path, *words: str | Path, threads: int) -> float:
    """Seconds that a command of a checkout takes."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    command = [sys.executable, "-m", "cryoai", *map(str, words)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def commit_of(checkout: Path) -> str:
    return subprocess.check_output(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], text=True).strip()


def measure(name: str, checkout: Path, work: Path, threads: int) -> dict[str, Any]:
    simulated, out = work / name, work / f"{name}-{commit_of(checkout)}"
    options = SETS[name][1]
    particles, truth = simulated / "particles.star", simulated / "true_map.mrc"
    seconds = run(
        checkout, "reconstruct", particles, "-o", out, "--overwrite", "--quiet", *options, threads=threads
    )
    run(
        checkout, "evaluate", "--map", out / "map.mrc", "--true-map", truth, "--poses", out / "particles.star",
        "--true-poses", particles, "--json", out / "figures.json", threads=threads,
    )  # fmt: skip
    figures = json.loads((out / "figures.json").read_text())
    result = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "set": name, "commit": commit_of(checkout), "seconds": round(seconds, 1), "threads": threads, "seed": 0,
        "processor": PROCESSOR, "command": f"cryoai reconstruct {' '.join(options)}".strip(),
        "fraction_confident": result["fraction_confident"], "resolution_angstrom": result["resolution_angstrom"],
        "parts": result["seconds"], **{key: figures[key] for key in FIGURES},
    }  # fmt: skip


def print_table() -> None:
    print("| set | commit | time | FSC 0.5 with the truth | rotation | translation, mean | wrong by over 10° |")
    print("|---|---|---|---|---|---|---|")
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        print(
            f"| {row['set']} | {row['commit']} | {row['seconds']:.0f} s | {row['fsc_0.5_px']:.2f} px | "
            f"{row['rotation_error_median']:.1e} | {row['translation_error_mean_px2']:.4f} px² | "
            f"{100 * row['fraction_rotation_above_10deg']:.2f} % |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print what was measured, run nothing")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="test data")
    parser.add_argument("--work", type=Path, help="folder for simulations and runs")
    parser.add_argument("--other", type=Path, help="another checkout of this repository")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    args = parser.parse_args()
    if args.table:
        print_table()
        return
    args.work.mkdir(parents=True, exist_ok=True)
    checkouts = [REPOSITORY] if args.other is None else [args.other.resolve(), REPOSITORY]
    for name in args.sets:
        source = () if name == "demo" else ("--structure", args.data / "structures" / "4v5a_70S.cif.gz")
        if not (args.work / name / "particles.star").exists():
            words = ("simulate", *source, *SETS[name][0], "-o", args.work / name, "--quiet")
            run(checkouts[0], *words, threads=args.threads)
        for _ in range(args.turns):
            for checkout in checkouts:
                figures = measure(name, checkout, args.work, args.threads)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(figures) + "\n")
                print(figures, flush=True)


if __name__ == "__main__":
    main()
