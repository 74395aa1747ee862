"""What the benchmarks of the amortised method share: simulated sets, results on disk, a clock, figures of merit."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import torch
import yaml

from cryoai import read_map, read_particles
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.from_scratch import make_trainer_from_scratch
from cryoai.amortized.posing import EncoderInference, best_of_encoder
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.alignment import MapAlignment, align_maps, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.metrics.pose_error import compute_pose_errors
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.local import score_hypotheses
from cryoai.poses.pose_encoder import PoseEncoder
from cryoai.precision import product_dtype
from cryoai.run.config import ReconstructConfig
from cryoai.training.sources import BatchSource
from cryoai.training.trainer import Trainer
from cryoai.types import ParticleSet, Pose

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "docs" / "images"
# Times mean little without it: bfloat16 products are 4 to 5 times faster than float32, where a processor has them.
PROCESSOR = f"{llvmlite.binding.get_host_cpu_name()}, {str(product_dtype()).removeprefix('torch.')}"
if torch.cuda.is_available():
    PROCESSOR += f", {torch.cuda.get_device_name()}"
# 1.3 times Nyquist, and a squared Frobenius distance of 9 degrees.
CONVERGED_PX, CONVERGED_ROTATION = 2.6, 0.05
# Of a box, what a molecule spans unless one says otherwise.
HALF = 0.5
_CACHE = 2 * 2**30
_CHUNK = 1000


@dataclass(frozen=True)
class Molecule:
    """Options of ``cryoai simulate`` at a box of 32 of which the molecule spans half; shifts of 2 px."""

    source: tuple[str, ...]
    pixel_size: float
    shift_sigma: float


MOLECULES = {
    "4ake": Molecule(("--structure", "structures/4ake_A.pdb"), 4.2, 8.4),
    "4v5a": Molecule(("--structure", "structures/4v5a_70S.cif.gz"), 16.5, 33.0),
    "5nrl": Molecule(("--structure", "structures/5nrl.cif.gz"), 23.5, 47.0),
    "phantom": Molecule(("--phantom",), 5.0, 10.0),
}
NOISE: dict[str, float | None] = {"ideal": None, "0": 0.0, "-10": -10.0}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="test data")
    parser.add_argument("--work", type=Path, required=True, help="folder for simulations and results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--figures", action="store_true", help="draw what is in WORK into --images, run nothing")
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder for the figures")


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    return args


def simulate(
    name: str,
    work: Path,
    data: Path,
    particles: int,
    *,
    box: int = 32,
    centred: bool = False,
    ctf: bool = True,
    fill: float = HALF,
    seed: int = 1,
) -> Path:
    """The folder of a set such as ``4ake_-10``, simulated by the command line unless it is there.

    ``fill`` is the part of the box that the molecule spans.
    """
    molecule, noise = MOLECULES[name.split("_")[0]], NOISE[name.split("_")[1]]
    extras = ["-centred"] * centred + ["-noctf"] * (not ctf) + [f"-fill{fill:g}"] * (fill != HALF)
    folder = work / f"{name}-{box}px-{particles}{''.join(extras)}"
    if (folder / "particles.star").exists():
        return folder
    source, *path = molecule.source
    scale = 32 / box * HALF / fill
    command = [
        sys.executable, "-m", "cryoai", "simulate", source, *(str(data / p) for p in path), "--box-size", str(box),
        "--pixel-size", str(molecule.pixel_size * scale), "--n-particles", str(particles), "--shift-sigma",
        "0" if centred else str(molecule.shift_sigma), "--seed", str(seed), "-o", str(folder), "--quiet",
    ]  # fmt: skip
    command += [] if noise is None else ["--snr-db", str(noise)]
    subprocess.run([*command, *(["--no-ctf"] if not ctf else [])], check=True)
    return folder


@dataclass(frozen=True, eq=False)
class TestSet:
    """Simulated particles in memory, and the truth about them."""

    particles: ParticleSet
    data: ParticleData
    true_map: torch.Tensor
    true_pose: Pose

    def pose(self, rows: np.ndarray) -> Pose:
        return self.true_pose[rows]


def load(folder: Path, device: str = "cpu") -> TestSet:
    particles = read_particles(folder / "particles.star")
    assert particles.pixel_size is not None and particles.box_size is not None and particles.pose is not None
    data = ParticleData(
        particles, particles.pixel_size, particles.box_size, memory_limit=_CACHE, scratch=folder, device=device
    )  # fmt: skip
    true_map = torch.from_numpy(np.array(read_map(folder / "true_map.mrc").density, dtype=np.float32))
    return TestSet(particles, data, true_map, particles.pose)


@dataclass(frozen=True, eq=False)
class MapComparison:
    """How a map lies on the truth, and what `measure_map` reports of it."""

    alignment: MapAlignment
    aligned: torch.Tensor
    figures: dict[str, float]


def measure_map(density: torch.Tensor, true_map: torch.Tensor) -> MapComparison:
    """Alignment over both hands, then the resolution at FSC 0.5 inside a soft sphere, as ``cryoai evaluate``."""
    density = density.detach().float().cpu()
    alignment = align_maps(density, true_map)
    aligned = apply_alignment(density, alignment)
    fsc = compute_fsc(aligned, true_map, make_soft_sphere(true_map.shape[-1]))
    figures = {"fsc_px": fsc.resolution_px(0.5), "mean_fsc": float(np.mean(fsc.correlation))}
    return MapComparison(alignment, aligned, figures)


def measure_poses(
    rotation: torch.Tensor, translation: torch.Tensor, true: Pose, alignment: MapAlignment, pixel_size: float
) -> dict[str, float]:
    """Squared Frobenius distances and px², after the maps' alignment."""
    found = Pose(rotation.double().numpy(), translation.double().numpy())
    errors = compute_pose_errors(found, true, alignment, pixel_size=pixel_size)
    return {
        "rotation_median": errors.rotation_error_median,
        "rotation_q75": errors.rotation_error_quartiles[1],
        "above_10deg": errors.fraction_rotation_above_10deg,
        "translation_median_px2": errors.translation_error_median_px2,
    }


def describe_encoder(
    encoder: PoseEncoder, config: ReconstructConfig, data: ParticleData, noise: torch.Tensor
) -> TrainedEncoder:
    """An encoder as `train_from_scratch` would hand it on."""
    return TrainedEncoder(
        encoder, config.amortize.symmetrized, data.disk.box_size, float(data.pixel_size),
        float(data.disk.radius[-1]), noise, noise,
    )  # fmt: skip


def measure(
    test: TestSet,
    trained: TrainedEncoder,
    rendered: FourierVolume,
    density: torch.Tensor,
    rows: np.ndarray,
    ways: tuple[str, ...] = ("first", "scored"),
    radius: float = np.inf,
) -> dict[str, Any]:
    """Map and poses against the truth.

    Poses are the encoder's ``first`` hypothesis, its best as ``scored`` against the volume, and ``refined``, the
    best after local refinement; each with the seconds that it took. ``radius`` is that of the rendered volume.
    """
    compared = measure_map(density, test.true_map)
    figures: dict[str, Any] = dict(compared.figures)
    for name in ways:
        start = time.perf_counter()
        rotation, translation = find_poses(test, trained, rendered, rows, name, radius)
        seconds = time.perf_counter() - start
        figures[name] = measure_poses(
            rotation, translation, test.pose(rows), compared.alignment, test.data.pixel_size
        )
        figures[name]["seconds"] = seconds
    return figures


def find_poses(
    test: TestSet,
    trained: TrainedEncoder,
    rendered: FourierVolume,
    rows: np.ndarray,
    way: str,
    radius: float = np.inf,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations and translations in one of the ways of `measure`."""
    inference, noise, radius = EncoderInference(trained), trained.noise_power, min(radius, trained.radius)
    pose = {
        "first": lambda batch: _best(inference.hypotheses(batch)),
        "scored": lambda batch: _best(score_hypotheses(batch, rendered, noise, inference.hypotheses(batch))),
        "refined": lambda batch: best_of_encoder(batch, inference, rendered, noise, radius),
    }[way]
    found = [pose(batch) for _, batch in test.data.batches(rows, _CHUNK, radius)]
    rotation, translation = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rotation, translation


def _best(hypotheses):
    best = hypotheses.sorted(1)
    return best.rotation[:, 0], best.translation[:, 0]


def make_trainer(data: ParticleData, config: ReconstructConfig, source: BatchSource | None = None) -> Trainer:
    """What `train_from_scratch` trains with, on as many of the particles as it would read."""
    rows = np.random.default_rng(config.seed).permutation(data.usable_rows)[: config.amortize.images]
    return make_trainer_from_scratch(data, config, rows, source)


def has_converged(figures: dict[str, Any], way: str = "first") -> bool:
    """By a run's own figures: map at 2.6 px, and the encoder's own pose, not even scored, within 9° for most.

    With the symmetrised loss an encoder may explain either an image or its turned copy: there, what counts is the
    better one (``scored``).
    """
    return (
        way in figures
        and figures["fsc_px"] <= CONVERGED_PX
        and figures[way]["rotation_median"] <= CONVERGED_ROTATION
    )


class Results:
    """JSON lines: a killed benchmark keeps what it has, and does not do it again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, **key: Any) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        entries = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]
        return [entry for entry in entries if all(entry.get(name) == value for name, value in key.items())]

    def has(self, key: dict[str, Any]) -> bool:
        """Whether what has this key has been measured; what failed is tried again, and its last line counts."""
        return any("failed" not in line for line in self.read(**key))

    def append(self, entry: dict[str, Any]) -> None:
        entry = {**entry, "processor": PROCESSOR}
        with open(self.path, "a") as stream:
            stream.write(json.dumps(_rounded(entry)) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


class Clock:
    """Wall seconds, without those spent while it was paused, from ``seconds`` on."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._start += time.perf_counter() - before


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``group.name=value`` as `cryoai.run.config.load_config` takes it."""
    pairs = (word.partition("=") for word in words)
    return {name: yaml.safe_load(value) for name, _, value in pairs}


def show(title: str, figures: dict[str, Any]) -> None:
    print(title, _words(figures), flush=True)


def _words(figures: dict[str, Any]) -> str:
    words = []
    for name, value in figures.items():
        if isinstance(value, dict):
            words.append(f"{name} ({_words(value)})")
        else:
            words.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(words)
