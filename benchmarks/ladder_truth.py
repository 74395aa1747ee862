"""A finished run of the ladder against the truth: figures, calibration, standard deviations, likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import read_metrics
from scipy.spatial.transform import Rotation

from cryoai import read_map, read_particles
from cryoai.ab_initio.images import choose_images
from cryoai.ab_initio.starts import judge_volumes
from cryoai.metrics.alignment import MIRROR
from cryoai.metrics.evaluation import evaluate_reconstruction, match_particles
from cryoai.metrics.pose_error import PoseErrors
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.reconstruction.reading import read_data
from cryoai.run.config import BootstrapSettings, ReconstructConfig
from cryoai.run.progress import Progress
from cryoai.tensors import ParticleBatch
from cryoai.types import ParticleSet, Pose

BINS = 10
RIGHT = np.radians(10.0)
_FOR_SCALE = 500


def measure(simulated: Path, output: Path, symmetry: str, seed: int) -> dict[str, Any]:
    """All figures of a run by its folder and that of the simulated set; angles and maps up to the symmetry."""
    true, found = read_particles(simulated / "particles.star"), read_particles(output / "particles.star")
    assert true.pose is not None and found.pose is not None and true.pixel_size is not None
    names = [[str(name) for name in p.source.particles["rlnImageName"]] for p in (found, true)]
    true_pose = true.pose[match_particles(*names)]
    maps = read_map(output / "map.mrc"), read_map(simulated / "true_map.mrc")
    evaluation = evaluate_reconstruction(
        estimated_map=maps[0], true_map=maps[1], estimated_pose=found.pose, true_pose=true_pose, symmetry=symmetry
    )
    assert evaluation.poses is not None
    axes = evaluation.symmetry
    turn, move = pose_differences(
        found.pose, true_pose, evaluation.poses, axes.rotations, axes.centre, true.pixel_size
    )
    right = np.linalg.norm(turn, axis=1) < RIGHT
    table = found.source.particles
    confidence = table["cryoaiConfidence"].to_numpy(float)
    rotation_std = np.radians(table["cryoaiRotationStdDeg"].to_numpy(float))
    translation_std = table["cryoaiTranslationStdAngst"].to_numpy(float)
    return {
        **evaluation.to_json_dict(),
        **read_metrics(output / "metrics.jsonl"),
        "confidence": calibration_table(confidence, right),
        "fraction_above_0.5": float(np.mean(confidence > 0.5)),
        "rotation_inside": count_inside(turn[right], rotation_std[right]),
        "translation_inside": count_inside(move[right], translation_std[right]),
        "likelihood": measure_likelihoods(
            true, {"truth": (maps[1].density, true_pose), "map": (maps[0].density, found.pose)}, seed, output
        ),
    }  # fmt: skip


def pose_differences(
    found: Pose, true: Pose, errors: PoseErrors, group: np.ndarray, centre: np.ndarray, pixel_size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rotation vectors (radians) and translations (Å) from the true poses to the ones found, (n, 3) and (n, 2).

    After the global rotation, shift and hand of ``errors``; of the mates of a symmetric molecule, whose images are
    the same, the nearest one counts. ``group`` (mates, 3, 3) and ``centre`` (Å) are those of
    `cryoai.metrics.symmetry.MapSymmetry`.
    """
    mirror = MIRROR if errors.hand == "mirrored" else np.eye(3)
    r_found, r_true = found.rotation.astype(np.float64), group[:, None] @ true.rotation.astype(np.float64)
    turned = r_found @ (errors.rotation @ mirror @ r_true @ mirror).transpose(0, 1, 3, 2)
    turns = Rotation.from_matrix(turned.reshape(-1, 3, 3)).as_rotvec().reshape(len(group), -1, 3)
    nearest, each = np.linalg.norm(turns, axis=2).argmin(0), np.arange(len(found))
    moved = (centre - group @ centre)[nearest, :, None]
    t_true = true.translation - (r_true[nearest, each].transpose(0, 2, 1) @ moved)[:, :2, 0]
    t_true = t_true - (r_found.transpose(0, 2, 1) @ (errors.shift_px * pixel_size))[:, :2]
    return turns[nearest, each], found.translation - t_true


def calibration_table(confidence: np.ndarray, right: np.ndarray) -> list[list[float]]:
    """Particles, right ones and mean confidence in each tenth of the confidences, low ones first."""
    place = np.clip((confidence * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    mean = np.bincount(place, confidence, BINS) / np.maximum(count, 1)
    return [
        [int(c), int(r), float(m)]
        for c, r, m in zip(count, np.bincount(place, right, BINS), mean, strict=True)
    ]  # fmt: skip


def count_inside(difference: np.ndarray, deviation: np.ndarray) -> list[int]:
    """How many components of (n, axes) differences lie within one standard deviation per axis, and of how many."""
    return [int(np.sum(np.abs(difference) <= deviation[:, None])), difference.size]


def measure_likelihoods(
    particles: ParticleSet, candidates: dict[str, tuple[np.ndarray, Pose]], seed: int, scratch: Path
) -> dict[str, float]:
    """Held-out log-likelihood gain per image, nats, of maps with the poses that belong to them.

    Judged as the starts of the run with that seed are, on the same images, with default settings whatever the run's
    were: what runs of all kinds can be compared by. Each map has its scale fitted. A final map, unlike a start, was
    made of these images as well, and of few images it may lie above the truth for that reason. Where there is
    little noise a start may as well (by 2 of 56 nats at -3 dB in 32 px): the judges' grid is too coarse for a sharp
    map there. At -13 dB in 32 px fitting each shell's scale at the grid's poses changed 0.05 of 13.8 nats.
    """
    config = ReconstructConfig(seed=seed)
    data = read_data(particles, config, scratch, Progress())
    try:
        images = choose_images(data, config.bootstrap, seed)
        return {
            name: judge_volumes([scaled_volume(data, density, pose, images.settings)], [1.0], images)
            for name, (density, pose) in candidates.items()
        }
    finally:
        data.close()


def scaled_volume(
    data: ParticleData, density: np.ndarray, pose: Pose, settings: BootstrapSettings
) -> FourierVolume:
    """A map as a volume inside the bootstrap's radius, on the images' scale (least squares at the poses)."""
    rows = sample_rows(data.usable_rows, _FOR_SCALE)
    batch = data.batch(rows, settings.last_radius)
    volume = volume_from_map(torch.from_numpy(np.array(density, np.float32)), settings.last_radius)
    factor = fit_scale(batch, volume, pose[rows])
    return FourierVolume(volume.values * factor, volume.box_size, volume.padding)


def fit_scale(batch: ParticleBatch, volume: FourierVolume, pose: Pose) -> float:
    rotation, translation = (torch.from_numpy(a.astype(np.float32)) for a in (pose.rotation, pose.translation))
    model = form_images_quickly(volume, rotation, translation, batch.ctf, batch.disk, batch.pixel_size)
    power = estimate_shell_power(batch.images, batch.disk).clamp(min=1e-12)[batch.disk.shell]
    explained = ((model.conj() * batch.images).real / power).sum()
    return float(explained / (model.abs().square() / power).sum().clamp(min=1e-30))
