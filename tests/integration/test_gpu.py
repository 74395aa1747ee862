"""What a GPU computes against what the CPU does, and whole runs on it; skipped where torch finds none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoai import (
    ReconstructConfig,
    evaluate_reconstruction,
    infer,
    make_phantom,
    read_map,
    read_particles,
    reconstruct,
)
from cryoai.geometry.fourier import make_fourier_disk
from cryoai.geometry.rotations import random_rotations, rotation_angle, rotation_from_vector
from cryoai.particles.simulate import draw_ctf
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.image_formation import form_images
from cryoai.physics.insertion import Inserter, slice_quickly
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.poses.local import refine_poses, score_hypotheses
from cryoai.poses.search import make_search_grid, make_translation_grid, search_poses, search_translations
from cryoai.poses.settings import EncoderSettings
from cryoai.run.config import RefineSettings
from cryoai.run.progress import Progress
from cryoai.tensors import ParticleBatch, PoseHypotheses
from cryoai.training.settings import HybridSettings, TrainingSettings
from cryoai.volumes import VOLUMES, make_volume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

GPU = "cuda"
PIXEL_SIZE = 6.0
COUNT = 40


@dataclass(frozen=True, eq=False)
class Scene:
    """Noisy particles of a known map, in the host's memory."""

    volume: FourierVolume
    batch: ParticleBatch
    rotation: torch.Tensor
    translation: torch.Tensor
    noise: torch.Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=[32, 33])
def scene(request: pytest.FixtureRequest) -> Scene:
    volume = volume_from_map(torch.from_numpy(make_phantom(request.param, PIXEL_SIZE).density))
    disk = make_fourier_disk(request.param)
    rotation, translation = random_rotations(COUNT, generator()), 8 * torch.randn(COUNT, 2, generator=generator(1))
    ctf = compute_ctf(draw_ctf(COUNT, np.random.default_rng(0)), disk, PIXEL_SIZE)
    images = form_images(volume, rotation, translation, ctf, disk, PIXEL_SIZE)
    noise = torch.full((disk.shell_count,), 0.1 * float(images.abs().square().mean()))
    images = images + make_shell_noise(COUNT, noise, disk, generator(2))
    return Scene(volume, ParticleBatch(images, ctf, disk, PIXEL_SIZE), rotation, translation, noise)


def assert_alike(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Within a share of the largest value; both in the host's memory."""
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=tolerance * float(expected.abs().max()), rtol=0)


# The parts


def test_slices_and_sums_of_slices_are_those_of_the_cpu(scene: Scene) -> None:
    slices = [slice_quickly(v, scene.rotation, scene.batch.disk) for v in (scene.volume.to(GPU), scene.volume)]
    assert_alike(slices[0], slices[1])
    sums = []
    for device in (GPU, "cpu"):
        inserter = Inserter(scene.volume.box_size, float(scene.batch.disk.radius[-1]), device=device)
        inserter.add(scene.batch, scene.rotation, scene.translation, scene.noise)
        sums.append(inserter.result())
    assert_alike(sums[0].numerator, sums[1].numerator)
    assert_alike(sums[0].weight, sums[1].weight)


def test_searches_find_what_the_cpu_finds(scene: Scene) -> None:
    grid = make_search_grid(2000, 18.0, 6.0, generator())
    inside = scene.batch.prefix(10)
    gpu, cpu = (
        search_poses(inside, volume, scene.noise, grid, keep=4, dtype=torch.float32)
        for volume in (scene.volume.to(GPU), scene.volume)
    )
    assert_alike(gpu.log_weight, cpu.log_weight, 1e-4)
    # Equal scores may come in another order.
    assert (rotation_angle(gpu.rotation[:, 0], cpu.rotation[:, 0]) < 1e-3).float().mean() > 0.9
    low = search_poses(inside, scene.volume.to(GPU), scene.noise, grid, keep=4)
    assert (rotation_angle(low.rotation[:, 0], cpu.rotation[:, 0]) < 1e-3).float().mean() > 0.8
    moves = make_translation_grid(12.0, 3.0)
    both = (scene.volume.to(GPU), scene.volume)
    gpu, cpu = (search_translations(inside, volume, scene.noise, cpu, moves) for volume in both)
    assert_alike(gpu.translation, cpu.translation)
    # Up to a constant per image.
    assert_alike(gpu.log_weight.diff(dim=1), cpu.log_weight.diff(dim=1), 1e-3)


def test_scores_and_refined_poses_are_those_of_the_cpu(scene: Scene) -> None:
    away = rotation_from_vector(0.02 * torch.randn(COUNT, 3, generator=generator(3))) @ scene.rotation
    moved = scene.translation + torch.randn(COUNT, 2, generator=generator(4))
    hypotheses = PoseHypotheses(
        torch.stack((away, scene.rotation), 1), torch.stack((moved, scene.translation), 1), torch.zeros(COUNT, 2)
    )
    both = (scene.volume.to(GPU), scene.volume)
    gpu, cpu = (score_hypotheses(scene.batch, v, scene.noise, hypotheses).log_weight for v in both)
    assert_alike(gpu, cpu, 1e-4)
    gpu, cpu = (refine_poses(scene.batch, v, scene.noise, away, moved, iterations=10) for v in both)
    assert rotation_angle(gpu.rotation, cpu.rotation).max() < 2e-3
    assert_alike(gpu.translation, cpu.translation, 2e-3)
    torch.testing.assert_close(gpu.cost, cpu.cost, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", list(VOLUMES))
def test_volumes_and_their_gradients_are_those_of_the_cpu(kind: str) -> None:
    disk, found = make_fourier_disk(16, 6.0), []
    for device in (GPU, "cpu"):
        volume = make_volume(kind, 16, width=32, seed=1).to(device)
        rotation = random_rotations(5, generator()).to(device).requires_grad_()
        slices = volume.slice(rotation, disk.to(device))
        slices.abs().square().sum().backward()
        assert rotation.grad is not None
        found.append(
            [slices.detach(), volume.to_fourier_volume(6.0).values, volume.to_map(), rotation.grad]
            + [p.grad for p in volume.parameters() if p.grad is not None]
        )
    for gpu, cpu in zip(*found, strict=True):
        assert_alike(gpu.cpu(), cpu, 1e-3)


# Whole runs


@pytest.fixture(scope="module")
def quick(quick_config: ReconstructConfig) -> Callable[..., ReconstructConfig]:
    """A short schedule on the GPU: every step, few of each."""

    def make(**changes) -> ReconstructConfig:
        return quick_config.model_copy(update={
            "device": "cuda",
            "encoder": EncoderSettings(hypotheses=400, widths=(8, 16, 16), box_size=16),
            "amortize": TrainingSettings(
                steps=24, batch_size=32, last_radius=9, march_steps=16, sampling_steps=6, encoder_start=6,
                own_proposals_start=12, max_shift_box_lengths=0.08, volume_width=32, points_per_step=4096,
                save_every=10,
            ),
            "hybrid": HybridSettings(encoder="always", simulated_steps=10, real_steps=5, batch_size=32),
            "refine": RefineSettings(max_rounds=1, search_radius=6),
            **changes,
        })  # fmt: skip

    return make


@pytest.mark.parametrize("method", ["search", "hybrid", "so3_grid", "s2s2", "anchored"])
def test_every_method_runs_and_its_encoder_poses_on_either_device(
    tiny: Path, tmp_path: Path, quick: Callable[..., ReconstructConfig], method: str
) -> None:
    config = quick(method=method)
    if method not in ("search", "hybrid"):
        hypotheses = {"so3_grid": 400, "s2s2": 1, "anchored": 6}[method]
        encoder = EncoderSettings(head=method, hypotheses=hypotheses, widths=(8, 16, 16), box_size=16)
        config = quick(method="amortized", encoder=encoder)
    result = reconstruct(tiny / "particles.star", tmp_path, config)
    assert np.isfinite(result.density).all() and np.ptp(result.density) > 0
    assert (tmp_path / "map.mrc").stat().st_size > 0
    if method == "search":
        return
    gpu, cpu = (infer(tiny / "particles.star", tmp_path, refine=False, device=d) for d in ("cuda", "cpu"))
    # The network runs in bfloat16 on one of them, so that close hypotheses may change places.
    assert (rotation_angle(gpu.rotation, cpu.rotation) < 0.2).float().mean() > 0.7
    refined = infer(tiny / "particles.star", tmp_path, device="cuda")
    assert refined.rotation.isfinite().all() and refined.confidence.isfinite().all()


def test_known_poses_give_the_map_of_the_cpu(
    tiny: Path, tmp_path: Path, quick: Callable[..., ReconstructConfig]
) -> None:
    gpu, cpu = (
        reconstruct(tiny / "particles.star", tmp_path / d, quick(known_poses=True, device=d)).density
        for d in ("cuda", "cpu")
    )
    assert np.corrcoef(gpu.ravel(), cpu.ravel())[0, 1] > 0.999


class KilledInTraining(Progress):
    """Raises after some steps, as a killed process would stop there."""

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Callable[..., None]]:
        def advance(done: int, note: str = "") -> None:
            if "Training" in name and done == 15:
                raise KeyboardInterrupt

        yield advance


def test_a_killed_training_goes_on(tiny: Path, tmp_path: Path, quick: Callable[..., ReconstructConfig]) -> None:
    config = quick(method="amortized", refine=RefineSettings(max_rounds=0))
    whole = reconstruct(tiny / "particles.star", tmp_path / "whole", config)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(tiny / "particles.star", tmp_path / "cut", config, progress=KilledInTraining())
    resumed = reconstruct(tiny / "particles.star", tmp_path / "cut", config, resume=True)
    losses = [np.array([record.volume_loss for record in run.training]) for run in (whole, resumed)]
    assert len(losses[1]) == 24
    # Sums on a GPU come in any order: equal but for rounding at first, then the winners may differ.
    np.testing.assert_allclose(losses[1][:10], losses[0][:10], rtol=1e-2)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.3)


def test_the_molecule_is_found(simulated: Path, tmp_path: Path) -> None:
    result = reconstruct(simulated / "particles.star", tmp_path, ReconstructConfig(seeds=1, device="cuda"))
    found, true = (read_particles(folder / "particles.star") for folder in (tmp_path, simulated))
    evaluation = evaluate_reconstruction(
        estimated_map=read_map(tmp_path / "map.mrc"), true_map=read_map(simulated / "true_map.mrc"),
        estimated_pose=found.pose, true_pose=true.pose,
    )  # fmt: skip
    assert evaluation.fsc is not None and evaluation.poses is not None
    assert evaluation.fsc.resolution_px(0.5) < 2.2
    assert evaluation.poses.fraction_rotation_above_10deg < 0.03
    # The resolution it claims is not better than the one it has.
    assert result.resolution > 0.93 * evaluation.fsc.resolution_angstrom(0.5)
