"""Commands of a checkout, each in a process of its own, and what a reconstruction says of itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from harness import REPOSITORY

from cryoai.io.star import ParticleStarWriter

# What `cryoai` exits with where the input or an option is wrong, and not the run.
WRONG_INPUT = 2
# Characters of what a command said, of which the last ones tell most.
_SAID = 500


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    status: int
    seconds: float
    peak_gib: float


def run(checkout: Path, words: Sequence[str], threads: int, log: Path) -> Finished:
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


@dataclass(frozen=True)
class SimulatedSet:
    """What `cryoai simulate` is asked for; Å, px, dB.

    ``source`` is ``--structure`` or ``--map`` with a path in the test data (or an absolute one), or ``--phantom``.
    """

    source: tuple[str, ...]
    box: int
    pixel_size: float
    images: int
    snr_db: float
    shift_sigma: float
    seed: int
    options: tuple[str, ...] = ()


def simulate(wanted: SimulatedSet, folder: Path, shared: Path, threads: int) -> Path:
    """The folder of a set, made by this checkout unless it is there, with real defoci."""
    ctfs, log = folder.with_name("defoci.star"), folder.with_name(f"{folder.name}.simulate.log")
    if (folder / "particles.star").exists():
        return folder
    if not ctfs.exists():
        write_ctf_star(shared / "ctf" / "empiar10028_ctf.npz", ctfs)
    source, *path = wanted.source
    words = [
        "simulate", source, *(str(shared / p) for p in path), "--box-size", str(wanted.box), "--pixel-size",
        str(wanted.pixel_size), "--n-particles", str(wanted.images), "--snr-db", f"{wanted.snr_db:g}",
        "--shift-sigma", f"{wanted.shift_sigma:g}", "--ctf-from", str(ctfs), *wanted.options,
        "--seed", str(wanted.seed), "-o", str(folder), "--overwrite", "--quiet",
    ]  # fmt: skip
    if run(REPOSITORY, words, threads, log).status:
        raise SystemExit(f"{' '.join(words)} failed:\n{log.read_text()}")
    log.unlink()
    return folder


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


@dataclass(frozen=True)
class Reconstruction:
    """A `cryoai reconstruct` that has ended; ``figures`` are what every line of the results says of one."""

    finished: Finished
    particles: Path
    output: Path
    figures: dict[str, Any]

    @property
    def said(self) -> str:
        """The end of what it printed, without the folders of this machine."""
        said = _log_of(self.output).read_text()
        for path in (self.particles, self.output):
            said = said.replace(f"{path.parent}{os.sep}", "")
        return said[-_SAID:].strip()

    def remove(self) -> None:
        """Delete all that it has written."""
        shutil.rmtree(self.output, ignore_errors=True)
        for path in (_log_of(self.output), _options_of(self.output)):
            path.unlink(missing_ok=True)


def reconstruct(
    checkout: Path, particles: Path, output: Path, seed: int, extra: dict[str, Any], threads: int,
    words: Sequence[str] = (),
) -> Reconstruction:  # fmt: skip
    """The default command of a checkout, with ``extra`` options (``group.name``) in its configuration file."""
    options = _options_of(output)
    options.write_text(yaml.safe_dump(nested(extra)))
    command = ["reconstruct", str(particles), *words, "-o", str(output), "--seed", str(seed)]
    command += ["--config", str(options)] if extra else []
    finished = run(checkout, [*command, "--overwrite", "--quiet"], threads, _log_of(output))
    figures = {
        "command": f"cryoai reconstruct --seed {seed}" + "".join(f" {k}={v}" for k, v in extra.items()),
        "threads": threads, "seconds": finished.seconds, "peak_gib": finished.peak_gib,
    }  # fmt: skip
    return Reconstruction(finished, particles, output, figures)


def _log_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.log")


def _options_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.yaml")


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


def read_metrics(path: Path) -> dict[str, Any]:
    """What a run says of itself; None or nothing where its code did not say it yet."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    starts, result = [line for line in lines if line["step"] == "bootstrap"], lines[-1]
    return {
        "starts": [start["held_out_likelihood"] for start in starts],
        "agreements": [start["agreement"] for start in starts],
        "verdict": result.get("verdict"), "reasons": result.get("verdict_reasons", []),
        "warnings": result.get("warnings", []), "half_map_angstrom": result["resolution_angstrom"],
        "fraction_confident": result.get("fraction_confident"), "parts": result["seconds"],
        # What the verdict rests on: its thresholds can be set anew without another run.
        "evidence": {
            name.removeprefix("evidence_"): value for name, value in result.items() if name.startswith("evidence_")
        },
    }  # fmt: skip
