"""A finished run's encoder on particles it has never seen: how often it is right, how accurate `cryoai infer` is.

    python benchmarks/hybrid.py --run OUT --seen SIMULATED --unseen SIMULATED_WITH_ANOTHER_SEED

OUT is the folder of ``cryoai reconstruct SIMULATED/particles.star -o OUT --encoder always``; both sets come from
``cryoai simulate`` of the same molecule. A hypothesis is right within 15 degrees of the true rotation.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import cryoai
from cryoai.amortized.encoder_file import TrainedEncoder, read_encoder
from cryoai.amortized.posing import EncoderInference
from cryoai.metrics.alignment import MapAlignment, align_maps
from cryoai.metrics.pose_error import compute_pose_errors, mirror_rotation
from cryoai.particles.dataset import ParticleData
from cryoai.types import ParticleSet, Pose

_RIGHT_DEGREES = 15.0
_HYPOTHESES = (1, 8, 32)


def recall(
    particles: ParticleSet, trained: TrainedEncoder, rotation: np.ndarray, mirrored: bool, scratch: Path
) -> dict:
    """Share of the particles whose true rotation is among the encoder's best."""
    assert particles.pixel_size is not None and particles.pose is not None
    data = ParticleData(particles, particles.pixel_size, trained.box_size, memory_limit=2**29, scratch=scratch)
    inference = EncoderInference(trained)
    rows = data.usable_rows
    batches = [batch for _, batch in data.batches(rows, 1000)]
    found = torch.cat([inference.hypotheses(batch).rotation for batch in batches]).double()
    data.close()
    true = particles.pose.rotation[rows]
    expected = torch.from_numpy(rotation @ (mirror_rotation(true) if mirrored else true))
    trace = torch.einsum("bhij,bij->bh", found, expected)
    right = trace > 1 + 2 * math.cos(math.radians(_RIGHT_DEGREES))
    return {f"right_in_{k}": float(right[:, :k].any(1).double().mean()) for k in _HYPOTHESES}


def pose_figures(
    estimated: Pose, true: Pose, alignment: MapAlignment, pixel_size: float, confidence: np.ndarray | None = None
) -> dict:
    errors = compute_pose_errors(estimated, true, alignment, pixel_size=pixel_size)
    figures = {}
    if confidence is not None:
        wrong = errors.rotation_error > 4 * (1 - math.cos(math.radians(10)))
        figures = {
            "confident": float(np.mean(confidence > 0.5)),
            "confident_and_wrong": float(np.mean(wrong & (confidence > 0.5))),
        }
    return {
        **figures,
        "rotation_median": errors.rotation_error_median,
        "above_10deg": errors.fraction_rotation_above_10deg,
        "translation_median_px2": errors.translation_error_median_px2,
        "translation_mean_px2": errors.translation_error_mean_px2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seen", type=Path, required=True, help="the simulation that the run was made from")
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    density, truth = cryoai.read_map(args.run / "map.mrc"), cryoai.read_map(args.seen / "true_map.mrc")
    alignment = align_maps(*(torch.from_numpy(np.array(m.density, np.float32)) for m in (density, truth)))
    trained = read_encoder(args.run / "encoder.pt")
    figures = {}
    for name, folder in (("seen", args.seen), ("unseen", args.unseen)):
        particles = cryoai.read_particles(folder / "particles.star")
        figures[name] = recall(particles, trained, alignment.rotation, alignment.mirrored, args.run)
        inferred = {
            "refined": cryoai.infer(particles, args.run),
            "not_refined": cryoai.infer(particles, args.run, refine=False),
        }
        for way, poses in inferred.items():
            estimated = Pose(poses.rotation.double().numpy(), poses.translation.double().numpy())
            figures[name][way] = {
                **pose_figures(
                    estimated, particles.pose, alignment, particles.pixel_size, poses.confidence.double().numpy()
                ),
                "seconds": poses.seconds,
            }
    run = cryoai.read_particles(args.run / "particles.star", check_stacks=False)
    true = cryoai.read_particles(args.seen / "particles.star").pose
    figures["run"] = pose_figures(run.pose, true, alignment, trained.pixel_size)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
