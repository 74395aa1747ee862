"""Ab initio reconstruction of simulated particles: accuracy, wall time and memory of the whole command.

    python benchmarks/ab_initio.py --data ../shared/data --work /tmp/ab_initio [--sets 70S-noisy …] [--seeds 5]

Each set is simulated once. Each seed is one run of ``cryoai reconstruct`` in a process of its own, timed from start
to exit; ``limit`` is the same refinement started from the true poses. With ``--starts 1`` the bootstrap has a
single start, which shows how often one suffices. One line of JSON per run goes to ``results.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoai import Map, read_map, write_map

CRYOAI = [sys.executable, "-m", "cryoai"]


@dataclass(frozen=True)
class TestSet:
    source: tuple[str, str]
    pixel_size: float
    shift_sigma: float
    snr_db: float | None


MAP_70S = ("--map", "golden/relion_project_70S/clean70SRibosome_vol_65p.mrc")
# The same map without its negative fringes, which reach to the edge of the box: the positive part of the first 64
# voxels inside a soft sphere, written by `prepare_70s`.
POSITIVE_70S = ("--map", "70S_positive.mrc")
# Pixel sizes at which the molecule (99 % of its atoms) spans half of a box of 64; shifts of 4 px.
SETS = {
    "70S-noisy": TestSet(POSITIVE_70S, 5.0, 20.0, -10),
    "70S-ideal": TestSet(POSITIVE_70S, 5.0, 20.0, None),
    "70S-raw": TestSet(MAP_70S, 5.0, 20.0, -10),
    "4AKE-noisy": TestSet(("--structure", "structures/4ake_A.pdb"), 2.1, 8.4, -10),
    "5NRL-noisy": TestSet(("--structure", "structures/5nrl.cif.gz"), 11.75, 47.0, -10),
    "6VYB-noisy": TestSet(("--structure", "structures/6vyb.pdb"), 5.1, 20.4, -10),
}
SHOWN = {
    "seconds": ".0f", "peak_gib": ".2f", "fsc_0.5_px": ".2f", "half_map_angstrom": ".2f",
    "rotation_error_median": ".2e", "fraction_rotation_above_10deg": ".4f",
    "translation_error_median_px2": ".1e", "translation_error_mean_px2": ".4f",
}  # fmt: skip


def prepare_70s(args: argparse.Namespace) -> None:
    original = read_map(args.data / MAP_70S[1], voxel_size=5.0).density[:64, :64, :64]
    axis = np.arange(64) - 32
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    density = np.clip(original, 0, None) * np.clip((31 - distance) / 3, 0, 1)
    write_map(Map((density / density.std()).astype(np.float32), 5.0), args.work / POSITIVE_70S[1])


def simulate(name: str, args: argparse.Namespace) -> Path:
    folder = args.work / f"{name}-{args.particles}"
    if (folder / "particles.star").exists():
        return folder
    test = SETS[name]
    source = (args.work if test.source is POSITIVE_70S else args.data) / test.source[1]
    if test.source is POSITIVE_70S:
        prepare_70s(args)
    command = [
        *CRYOAI, "simulate", test.source[0], str(source), "--box-size", "64",
        "--pixel-size", str(test.pixel_size), "--n-particles", str(args.particles),
        "--shift-sigma", str(test.shift_sigma), "--seed", "1", "-o", str(folder), "--quiet",
    ]  # fmt: skip
    if test.source[0] == "--map":
        command += ["--voxel-size", str(test.pixel_size)]
    if test.snr_db is not None:
        command += ["--snr-db", str(test.snr_db)]
    subprocess.run(command, check=True)
    return folder


def run(name: str, seed: int, args: argparse.Namespace, from_truth: bool) -> dict:
    simulated = simulate(name, args)
    label = "limit" if from_truth else f"seed{seed}-starts{args.starts}"
    output = args.work / f"{name}-{args.particles}-{label}"
    shutil.rmtree(output, ignore_errors=True)
    config = args.work / f"{output.name}.yaml"
    config.write_text("refine: {start_from_input_poses: true}\n" if from_truth else "{}\n")
    command = [
        *CRYOAI, "reconstruct", str(simulated / "particles.star"), "-o", str(output), "--seed", str(seed),
        "--seeds", str(args.starts), "--config", str(config), "--quiet",
    ]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        return {"set": name, "run": label, "failed": status}
    measured = output / "evaluation.json"
    subprocess.run(
        [
            *CRYOAI, "evaluate", "--map", str(output / "map.mrc"), "--true-map", str(simulated / "true_map.mrc"),
            "--poses", str(output / "particles.star"), "--true-poses", str(simulated / "particles.star"),
            "--json", str(measured),
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    final = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    return {
        "set": name, "run": label, "seconds": seconds, "peak_gib": usage.ru_maxrss / 2**20,
        "half_map_angstrom": final["resolution_angstrom"], **json.loads(measured.read_text()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of test data")
    parser.add_argument("--work", type=Path, required=True, help="folder for simulations and results")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--starts", type=int, default=3, help="bootstrap starts of each run")
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--limit", action="store_true", help="also refine from the true poses")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"{'set':12}{'run':16}" + "".join(f"{key[:18]:>20}" for key in SHOWN))
    for name in args.sets:
        jobs = [(seed, False) for seed in range(args.first_seed, args.first_seed + args.seeds)] + (
            [(0, True)] if args.limit else []
        )
        for seed, from_truth in jobs:
            result = run(name, seed, args, from_truth)
            with open(args.work / "results.jsonl", "a") as stream:
                stream.write(json.dumps(result) + "\n")
            figures = "".join(f"{format(result.get(key, float('nan')), spec):>20}" for key, spec in SHOWN.items())
            print(f"{name:12}{result['run']:16}{figures}", flush=True)


if __name__ == "__main__":
    main()
