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
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from harness import IMAGES, REPOSITORY, Results, parse_overrides, show
from ladder_rungs import BOX, DEEPER, MOLECULES, REALISTIC, SEEDS, TRIALS, Rung, is_within_reach, plan
from ladder_summary import choose_lines, draw, print_tables
from ladder_truth import measure

from cryoai.errors import CryoAIError
from cryoai.io.star import ParticleStarWriter

RESULTS = REPOSITORY / "benchmarks" / "results" / "ladder.jsonl"
# What `cryoai` exits with where an option, and not the run, is wrong.
_WRONG_INPUT = 2
SHOWN = ("seconds", "fsc_0.5_px", "rotation_error_median", "fraction_above_0.5", "verdict", "failed")


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    seconds: float
    peak_gib: float


def run(checkout: Path, words: list[str], threads: int, log: Path) -> Finished:
    """A command of a checkout; what it says goes to a file, and it does not outlive this process."""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), **dict.fromkeys(names, str(threads))}
    start = time.perf_counter()
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "cryoai", *words], env=environment, stdout=stream, stderr=stream
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
    status = os.waitstatus_to_exitcode(status)
    if status < 0:
        raise SystemExit(f"{' '.join(words)}: ended by signal {-status}; see {log}")
    return Finished(status, time.perf_counter() - start, usage.ru_maxrss / 2**20)


def version_of(checkout: Path) -> str:
    """The commit that last changed the code (and not these results), with a + where it has changed since."""
    git = ["git", "-C", str(checkout)]
    commit = subprocess.check_output([*git, "log", "-1", "--format=%h", "--", "src"], text=True).strip()
    changed = subprocess.check_output([*git, "status", "--porcelain", "--", "src"], text=True).strip()
    return commit + "+" * bool(changed)


def write_ctf_star(table: Path, path: Path) -> None:
    """The real defoci as a STAR file, shuffled, so that a few of them come from everywhere."""
    ctf = np.load(table)
    order = np.random.default_rng(0).permutation(len(ctf["defocus_u_angstrom"]))
    optics = pd.DataFrame(
        {
            "rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"], "rlnVoltage": [float(ctf["voltage_kv"])],
            "rlnSphericalAberration": [float(ctf["spherical_aberration_mm"])],
            "rlnAmplitudeContrast": [round(float(ctf["amplitude_contrast"]), 6)],
            "rlnImagePixelSize": [round(float(ctf["pixel_size_angstrom"]), 6)],
            "rlnImageSize": [int(ctf["box_size"])], "rlnImageDimensionality": [2],
        }
    )  # fmt: skip
    particles = pd.DataFrame(
        {
            "rlnImageName": [f"{row + 1:06d}@particles.mrcs" for row in order],
            "rlnDefocusU": ctf["defocus_u_angstrom"][order].astype(float),
            "rlnDefocusV": ctf["defocus_v_angstrom"][order].astype(float),
            "rlnDefocusAngle": ctf["defocus_angle_deg"][order].astype(float),
            "rlnOpticsGroup": 1,
        }
    )
    with ParticleStarWriter(path, optics) as writer:
        writer.append(particles)


def simulate(rung: Rung, args: argparse.Namespace) -> Path:
    """The folder of a rung's set, made by this checkout unless it is there."""
    folder, ctfs = args.work / rung.name, args.work / "defoci.star"
    if (folder / "particles.star").exists():
        return folder
    if not ctfs.exists():
        write_ctf_star(args.shared / "ctf" / "empiar10028_ctf.npz", ctfs)
    molecule = {**MOLECULES, **TRIALS}[rung.molecule]
    source, *path = molecule.source
    words = [
        "simulate", source, *(str(args.shared / p) for p in path), "--box-size", str(rung.box), "--pixel-size",
        str(molecule.pixel_size * BOX / rung.box), "--n-particles", str(rung.images),
        "--snr-db", f"{rung.snr_db:g}", "--shift-sigma", f"{molecule.shift_sigma:g}", "--ctf-from", str(ctfs),
        *REALISTIC, "--seed", str(rung.seed), "-o", str(folder), "--overwrite", "--quiet",
    ]  # fmt: skip
    log = args.work / f"{rung.name}.simulate.log"
    if run(REPOSITORY, words, args.threads, log).status:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    log.unlink()
    return folder


def climb(rung: Rung, kind: str, simulated: Path, checkout: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run, or the limit, and its figures; its folder is deleted."""
    output = args.work / f"{rung.name}-{kind}"
    options, log = output.with_name(f"{output.name}.yaml"), output.with_name(f"{output.name}.log")
    extra = dict(args.extra)
    if kind == "limit":
        extra["refine.start_from_input_poses"] = True
    options.write_text(yaml.safe_dump(nested(extra)))
    words = ["reconstruct", str(simulated / "particles.star"), "-o", str(output), "--seed", str(rung.seed)]
    words += ["--config", str(options)] if extra else []
    finished = run(checkout, [*words, "--overwrite", "--quiet"], args.threads, log)
    line = {
        "command": f"cryoai reconstruct --seed {rung.seed}" + "".join(f" {k}={v}" for k, v in extra.items()),
        "threads": args.threads, "seconds": finished.seconds, "peak_gib": finished.peak_gib,
    }  # fmt: skip
    if finished.status == _WRONG_INPUT:
        raise SystemExit(log.read_text())
    if finished.status:
        return {**line, "failed": log.read_text()[-500:]}
    symmetry = {**MOLECULES, **TRIALS}[rung.molecule].symmetry
    try:
        line |= measure(simulated, output, symmetry, rung.seed)
    except CryoAIError as error:
        return {**line, "failed": str(error)}
    if not args.keep:
        shutil.rmtree(output)
        options.unlink()
        log.unlink()
    return line


def is_done(key: dict[str, Any], results: Results) -> bool:
    """Whether a rung has its line; what failed is tried again, and its last line counts."""
    return any("failed" not in line for line in results.read(**key))


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """``group.name`` as a YAML file of ``cryoai reconstruct`` has it."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *groups, last = name.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return tree


def climb_all(args: argparse.Namespace) -> None:
    checkout = REPOSITORY if args.other is None else args.other.resolve()
    commit = version_of(checkout)
    version = args.label or commit
    results = Results(args.results)
    args.work.mkdir(parents=True, exist_ok=True)
    for rung in plan(args.molecules, args.snr, args.images, args.seeds, args.box):
        for kind in rung.kinds:
            key = rung.key(kind, version, args.extra)
            if args.only not in (None, kind) or is_done(key, results):
                continue
            if args.snr is None and rung.snr_db == DEEPER and not is_within_reach(key, results.read()):
                continue
            line = climb(rung, kind, simulate(rung, args), checkout, args)
            results.append({**key, "commit": commit, **line})
            show(f"{rung.name} {kind}:", {name: line[name] for name in SHOWN if name in line})
        if not args.keep:
            shutil.rmtree(args.work / rung.name, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="climb", choices=("climb", "table", "figure"))
    parser.add_argument("--work", type=Path, help="folder for simulations and runs, of this ladder alone")
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared" / "data", help="test data")
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES), choices=[*MOLECULES, *TRIALS])
    parser.add_argument("--snr", nargs="+", type=float, help="dB; default -10 -13 -16, and -19 where -16 works")
    parser.add_argument("--images", nargs="+", type=int, help="default 20000, of 70S and 6VYB also 5000 and 50000")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--only", choices=("limit", "run", "runs"), help="leave the others out")
    parser.add_argument("--other", type=Path, help="run this checkout instead of the script's own")
    parser.add_argument("--label", help="names what is run; by default the commit does")
    parser.add_argument("--extra", nargs="+", default=[], help="options of the runs, such as bootstrap.steps=120")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="delete neither sets nor the folders of the runs")
    parser.add_argument("--against", metavar="NAME", help="of table: compare with this label or commit")
    parser.add_argument("--output", type=Path, default=IMAGES / "ladder.png", help="of figure: where to")
    # To try the ladder itself.
    parser.add_argument("--box", type=int, default=BOX, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = "run" if args.only == "runs" else args.only
    if wrong := [word for word in args.extra if "=" not in word]:
        parser.error(f"--extra takes name=value, not {wrong[0]!r}")
    args.extra = parse_overrides(args.extra)
    if args.what != "climb":
        lines = Results(args.results).read()
        chosen = choose_lines(lines, args.label)
        if args.what == "figure":
            draw(chosen, args.output)
        else:
            print_tables(chosen, None if args.against is None else choose_lines(lines, args.against))
        return
    if args.work is None:
        parser.error("--work is missing")
    torch.set_num_threads(args.threads)
    # As Ctrl-C: what is running ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    climb_all(args)


if __name__ == "__main__":
    main()
