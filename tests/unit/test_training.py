"""Losses, gradients, sources, the training loop, and the encoder's file."""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoai import InputError, SimulationSettings, make_phantom, read_particles
from cryoai.amortized.encoder_file import TrainedEncoder, read_encoder, write_encoder
from cryoai.geometry.fourier import (
    FourierDisk,
    disk_to_images,
    images_to_disk,
    make_fourier_disk,
)
from cryoai.geometry.rotations import random_rotations, rotation_angle
from cryoai.geometry.shells import radial_distance
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.particles.dataset import ParticleData
from cryoai.particles.simulate import draw_ctf
from cryoai.particles.write_simulation import write_simulation
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.image_formation import form_images
from cryoai.physics.noise import estimate_shell_power, make_shell_noise
from cryoai.physics.slicing import FourierVolume, slice_volume, volume_from_map
from cryoai.poses.encoder_input import make_encoder_images, turn_by_pi, undo_turn
from cryoai.poses.grid_head import soft_classes
from cryoai.poses.heads import AbstractPoseHead
from cryoai.poses.pose_encoder import PoseEncoder, make_pose_encoder
from cryoai.poses.settings import EncoderSettings
from cryoai.tensors import ParticleBatch, PoseHypotheses
from cryoai.training.losses import Loss, fourier_cost, pick_winner, real_cost
from cryoai.training.make import make_trainer
from cryoai.training.model import AmortizedModel, StepInput
from cryoai.training.settings import TrainingSettings
from cryoai.training.sources import RealParticles, SimulatedParticles
from cryoai.training.trainer import StepRecord, Trainer, TrainingDivergedError
from cryoai.training.winners import Scorer, Winners
from cryoai.volumes import AbstractVolume, FourierGrid, make_volume

BOX, PIXEL_SIZE = 16, 15.0
BOX_LENGTH = BOX * PIXEL_SIZE
SMALL = EncoderSettings(box_size=16, widths=(4, 6, 8, 10), keep=8)
KINDS = ("s2s2", "anchored", "so3_grid")
HALF_TURN = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
# Every phase of the schedule within a dozen steps.
SETTINGS = TrainingSettings(
    steps=12, batch_size=16, first_radius=3.0, last_radius=6.0, march_steps=8, search_radius=5.0,
    max_shift_box_lengths=0.125, sampling_steps=4, encoder_start=2, own_proposals_start=6, own_proposals_share=0.5,
    points_per_step=600, refresh=3, volume_width=16,
)  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def change(settings: TrainingSettings, **options: object) -> TrainingSettings:
    return TrainingSettings(**{**settings.model_dump(), **options})


@pytest.fixture(scope="module")
def volume() -> FourierVolume:
    return volume_from_map(torch.from_numpy(make_phantom(BOX, PIXEL_SIZE).density))


def random_winners(count: int, seed: int = 0) -> Winners:
    g = generator(seed)
    return Winners(random_rotations(count, g), 10 * torch.randn(count, 2, generator=g))


def image_poses(volume: FourierVolume, poses: Winners, snr: float | None = 1.0, seed: int = 0) -> ParticleBatch:
    """Particles at given poses with CTFs and white noise."""
    disk = make_fourier_disk(volume.box_size)
    count = len(poses.rotation)
    ctf = compute_ctf(draw_ctf(count, np.random.default_rng(seed)), disk, PIXEL_SIZE)
    images = form_images(volume, poses.rotation, poses.translation, ctf, disk, PIXEL_SIZE)
    if snr is not None:
        power = torch.full((disk.shell_count,), float(images.abs().square().mean()) / snr)
        images = images + make_shell_noise(count, power, disk, generator(seed + 100))
    return ParticleBatch(images, ctf, disk, PIXEL_SIZE)


def pose_encoder(kind: str, hypotheses: int = 60, seed: int = 0) -> PoseEncoder:
    settings = EncoderSettings(**{**SMALL.model_dump(), "head": kind, "hypotheses": hypotheses})
    return make_pose_encoder(settings, BOX_LENGTH, seed)


def scorer_for(
    volume: FourierVolume, batch: ParticleBatch, *, sample: bool = False, radius: float = 6.0, seed: int = 0
) -> Scorer:
    noise = estimate_shell_power(batch.images, batch.disk).clamp(min=1e-6)
    return Scorer(volume, noise, radius, 5.0, 30.0, sample, generator(seed))


# Losses


def disk_coefficients(count: int, disk: FourierDisk, seed: int = 0) -> Tensor:
    return torch.randn(count, len(disk), 2, generator=generator(seed)).view(torch.complex64)[..., 0]


def test_fourier_cost_is_the_whitened_residual_over_half_the_plane() -> None:
    disk = make_fourier_disk(17, 6.0)
    model, images = disk_coefficients(3, disk), disk_coefficients(3, disk, 1)
    noise_power = 0.5 + torch.rand(disk.shell_count, generator=generator(2))
    plane = torch.fft.fft2(disk_to_images(model, disk) - disk_to_images(images, disk), norm="ortho").abs() ** 2
    axis = torch.fft.fftfreq(17, 1 / 17).round()
    radius = torch.hypot(axis[:, None], axis[None])
    inside = (radius > 0) & (radius <= 6.0001)
    expected = (plane / noise_power[radius.round().long().clamp(max=disk.shell_count - 1)])[:, inside].mean(1)
    torch.testing.assert_close(fourier_cost(model, images, 1 / noise_power[disk.shell]), expected)
    # Nothing but the zero frequency and its corners is left out, and each Friedel pair is held once.
    assert int(inside.sum()) == 2 * len(disk)


@pytest.mark.parametrize("box", [16, 17])
@pytest.mark.parametrize("radius", [None, 4.0])
def test_real_cost_is_fourier_cost_by_parseval(box: int, radius: float | None) -> None:
    disk = make_fourier_disk(box, radius)
    model, images = disk_coefficients(4, disk), disk_coefficients(4, disk, 1)
    precision = 0.5 + torch.rand(len(disk), generator=generator(2))
    fourier = fourier_cost(model, images, precision)
    torch.testing.assert_close(real_cost(model, images, precision, disk), fourier * 2 * len(disk) / box**2)


def test_only_pixels_inside_the_mask_count() -> None:
    disk = make_fourier_disk(16)
    distance = radial_distance(16, 2)
    precision = torch.ones(len(disk))
    residual = disk_to_images(disk_coefficients(2, disk), disk)
    inside, outside = (images_to_disk(residual * part, disk) for part in (distance <= 3, distance > 5))
    nothing = torch.zeros_like(inside)
    masked = real_cost(disk_coefficients(2, disk), nothing, precision, disk, mask_radius_px=3.0)
    torch.testing.assert_close(masked, residual[:, distance <= 3].square().mean(1))
    # The disk leaves out the corners of the plane, so that a little leaks through the edge of the mask.
    everywhere, within = (
        torch.stack([real_cost(part, nothing, precision, disk, radius) for part in (inside, outside)])
        for radius in (None, 3.0)
    )
    assert (within[0] > everywhere[0]).all() and (within[1] < 0.2 * everywhere[1]).all()


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("domain", ["fourier", "real"])
def test_a_loss_is_in_units_of_the_noise_or_of_the_volume(whiten: bool, domain: str) -> None:
    disk = make_fourier_disk(16)
    model, images = disk_coefficients(3, disk), disk_coefficients(3, disk, 1)
    noise = 0.5 + torch.rand(disk.shell_count, generator=generator(2))
    settings = change(SETTINGS, whiten=whiten, domain=domain)
    loss = settings.make_loss(make_volume("real_grid", 16, scale=3.0))
    precision = 1 / noise[disk.shell] if whiten else torch.full((len(disk),), 1 / 9)
    squared = ((model - images).abs().square() * precision).sum(1)
    share = 1 / len(disk) if domain == "fourier" else 2 / 16**2
    torch.testing.assert_close(loss.cost(model, images, disk, noise), share * squared)
    # Hypotheses are scored alike: by the noise shell by shell, or by the mean over all coefficients.
    scored = loss.scoring_noise(noise)
    shell = torch.arange(len(noise))
    torch.testing.assert_close(scored, noise if whiten else (noise * shell / shell.sum()).sum().expand_as(noise))


def test_the_mask_of_the_settings_is_a_share_of_the_box() -> None:
    settings = TrainingSettings(domain="real", mask_radius_box_lengths=0.25)
    for box in (16, 32):
        assert settings.make_loss(make_volume("real_grid", box)).mask_radius_px == box / 4


class Constant(Loss):
    """Another loss."""

    def cost(self, model: Tensor, images: Tensor, disk: FourierDisk, noise_power: Tensor) -> Tensor:
        return 7 + 0 * super().cost(model, images, disk, noise_power)


def test_a_model_trains_on_the_loss_that_it_is_given(volume: FourierVolume) -> None:
    batch = image_poses(volume, random_winners(8))
    model = AmortizedModel(pose_encoder("s2s2"), make_volume("real_grid", BOX), SETTINGS, Constant())
    assert float(model(StepInput(batch, scorer_for(volume, batch), 0))["volume"].detach()) == 7


def test_the_winner_is_the_cheapest() -> None:
    cost = torch.rand(50, 7, generator=generator())
    assert torch.equal(pick_winner(cost), cost.argmin(1))
    # A temperature far below the differences changes nothing.
    assert torch.equal(pick_winner(cost, 1e-7, generator()), cost.argmin(1))


def test_a_temperature_draws_the_winner_by_its_weight() -> None:
    draws, temperature = 20_000, 0.7
    cost = torch.tensor([3.0, 3.5, 5.0]).expand(draws, 3)
    winner = pick_winner(cost, temperature, generator(5))
    expected = torch.softmax(-cost[0] / temperature, 0)
    observed = torch.bincount(winner, minlength=3) / draws
    assert ((observed - expected).abs() < 4 * (expected * (1 - expected) / draws).sqrt()).all()
    assert torch.equal(winner, pick_winner(cost, temperature, generator(5)))
    assert not torch.equal(winner, pick_winner(cost, temperature, generator(6)))


def test_joined_hypotheses_are_those_of_both() -> None:
    first, second = (
        PoseHypotheses(random_rotations(6, generator(s)).view(2, 3, 3, 3), torch.rand(2, 3, 2), torch.rand(2, 3))
        for s in (0, 1)
    )
    both = first.joined(second)
    for name in ("rotation", "translation", "log_weight"):
        assert torch.equal(getattr(both, name)[:, :3], getattr(first, name))
        assert torch.equal(getattr(both, name)[:, 3:], getattr(second, name))


def test_soft_classes_sum_to_one_and_peak_at_the_nearest_rotation() -> None:
    anchors = make_so3_grid(800)
    rotation = random_rotations(40, generator())
    target = soft_classes(rotation, anchors, 0.8 * so3_grid_spacing(800) * math.sqrt(2))
    torch.testing.assert_close(target.sum(1), torch.ones(40))
    angle = rotation_angle(rotation[:, None].expand(-1, 800, -1, -1), anchors.expand(40, -1, -1, -1))
    assert torch.equal(target.argmax(1), angle.argmin(1))
    # A Gaussian: the ratio of two classes follows from their distances.
    near, far = angle[0].argsort()[:2]
    squared = 4 * (1 - angle[0].cos())
    expected = (squared[far] - squared[near]) / (2 * (0.8 * so3_grid_spacing(800)) ** 2 * 2)
    torch.testing.assert_close((target[0, near] / target[0, far]).log(), expected, rtol=1e-3, atol=1e-4)


# The symmetrised loss


class OracleEncoder(PoseEncoder):
    """Knows the pose of each image, or of each image's copy turned by π, and is wrong about the other."""

    def __init__(self, batch: ParticleBatch, poses: Winners, right_for: str) -> None:
        super().__init__(EncoderSettings(box_size=16, widths=(4, 6, 8, 10), head="s2s2"), BOX_LENGTH)
        images = make_encoder_images(batch, SMALL.box_size)
        self.known = images if right_for == "image" else turn_by_pi(images)
        turn = torch.eye(3) if right_for == "image" else HALF_TURN
        sign = 1 if right_for == "image" else -1
        self.right = Winners(poses.rotation @ turn, sign * poses.translation)
        self.wrong = random_winners(len(batch), seed=77)

    def forward(self, images: Tensor) -> PoseHypotheses:
        rotation, translation = [], []
        for image in images:
            distance = (self.known - image).flatten(1).norm(dim=1)
            row = int(distance.argmin())
            poses = self.right if distance[row] < 1e-3 * image.norm() else self.wrong
            rotation.append(poses.rotation[row])
            translation.append(poses.translation[row])
        shape = (len(images), 1)
        return PoseHypotheses(torch.stack(rotation)[:, None], torch.stack(translation)[:, None], torch.zeros(shape))


@pytest.mark.parametrize("right_for", ["image", "copy"])
@pytest.mark.parametrize("domain", ["fourier", "real"])
def test_symmetrised_loss_is_zero_when_either_pose_is_right(
    volume: FourierVolume, right_for: str, domain: str
) -> None:
    poses = random_winners(8)
    batch = image_poses(volume, poses, snr=None)
    # The turned copy is explained by the half-turned pose: checked by turning the image, not by algebra.
    turned = images_to_disk(turn_by_pi(disk_to_images(batch.images, batch.disk)), batch.disk)
    half_turned = form_images(
        volume, poses.rotation @ HALF_TURN, -poses.translation, batch.ctf, batch.disk, PIXEL_SIZE
    )
    torch.testing.assert_close(turned, half_turned, atol=1e-4, rtol=1e-4)

    encoder = OracleEncoder(batch, poses, right_for)
    grid = make_volume("fourier_grid", BOX)
    assert isinstance(grid, FourierGrid)
    grid.set_map(torch.from_numpy(make_phantom(BOX, PIXEL_SIZE).density))
    power = float(batch.images.abs().square().mean())
    settings = change(SETTINGS, symmetrized=True, whiten=False, domain=domain, points_per_step=10**6)
    scorer = scorer_for(volume, batch)
    model = AmortizedModel(encoder, grid, settings)
    with torch.no_grad():
        assert float(model(StepInput(batch, scorer, 0))["volume"]) < 1e-6 * power
    # Without the copy, an encoder that is right about the copy alone is wrong.
    alone = AmortizedModel(encoder, grid, change(settings, symmetrized=False))
    with torch.no_grad():
        cost = float(alone(StepInput(batch, scorer, 0))["volume"])
    assert cost < 1e-6 * power if right_for == "image" else cost > 0.1 * power

    # The pose given back is the original image's.
    hypotheses = model.hypotheses(batch)
    winner = torch.full((8,), 0 if right_for == "image" else 1)
    rows = torch.arange(8)
    torch.testing.assert_close(hypotheses.rotation[rows, winner], poses.rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(hypotheses.translation[rows, winner], poses.translation, atol=1e-4, rtol=0)


def test_undoing_the_turn_twice_changes_nothing() -> None:
    poses = PoseHypotheses(random_rotations(4, generator())[:, None], torch.rand(4, 1, 2), torch.rand(4, 1))
    again = undo_turn(undo_turn(poses))
    assert torch.equal(again.rotation, poses.rotation) and torch.equal(again.translation, poses.translation)


# Gradients


def last_weight(model: AmortizedModel, part: str) -> str:
    """The name of the weight of the last layer of a part of the head."""
    mlp = model.encoder.head.get_submodule(part)
    assert isinstance(mlp, torch.nn.Sequential)
    return f"encoder.head.{part}.{len(mlp) - 1}.weight"


def gradients(losses: dict[str, Tensor], model: AmortizedModel) -> dict[str, Tensor]:
    torch.stack([losses[name] for name in ("volume", "encoder") if name in losses]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["fourier_net", "fourier_grid"])
def test_the_symmetrised_loss_reaches_encoder_and_volume(volume: FourierVolume, kind: str) -> None:
    batch = image_poses(volume, random_winners(12))
    model = AmortizedModel(
        pose_encoder("s2s2"), make_volume(kind, BOX, width=16), change(SETTINGS, symmetrized=True)
    )
    found = gradients(model(StepInput(batch, scorer_for(volume, batch), 0)), model)
    assert all(gradient.isfinite().all() for gradient in found.values())
    # The last layer of the translations is zero at first, so that nothing before it learns in the first step.
    last = (last_weight(model, "rotation"), last_weight(model, "translation.mlp"))
    parts = [name for name in found if name.startswith("volume.")]
    assert parts
    for name in ("encoder.encoder.backbone.0.weight", *last, *parts):
        assert found[name].abs().max() > 0, name


def test_only_the_winner_among_the_hypotheses_is_trained(volume: FourierVolume) -> None:
    count = 12
    batch = image_poses(volume, random_winners(10))
    model = AmortizedModel(pose_encoder("anchored", count), make_volume("fourier_net", BOX, width=16), SETTINGS)
    scorer = scorer_for(volume, batch)
    inside = batch.prefix(min(scorer.search_radius, scorer.radius))
    precision = 1 / scorer.noise_power[inside.disk.shell]
    model.eval()
    with torch.no_grad():
        hypotheses = model.hypotheses(batch)
    costs = []
    for k in range(count):
        rotation, translation = hypotheses.rotation[:, k], hypotheses.translation[:, k]
        images = form_images(volume, rotation, translation, inside.ctf, inside.disk, PIXEL_SIZE)
        costs.append(fourier_cost(images, inside.images, precision))
    won = set(torch.stack(costs).argmin(0).tolist())
    assert 1 < len(won) < count
    found = gradients(model(StepInput(batch, scorer, 0)), model)
    rotation = found[last_weight(model, "rotation")].view(count, -1)
    shift = found[last_weight(model, "translation_delta.mlp")].view(count, -1)
    for k in range(count):
        assert (rotation[k].abs().max() > 0) == (k in won)
        assert (shift[k].abs().max() > 0) == (k in won)
    # The head's own weights learn about losers too: that they lose.
    weights = found[last_weight(model, "log_weight").removesuffix("weight") + "bias"]
    assert (weights != 0).all()
    assert (weights[sorted(won)].min() < 0) and all(weights[k] > 0 for k in range(count) if k not in won)


@pytest.mark.parametrize("known", [True, False])
def test_a_grid_head_trains_the_volume_at_the_winners_and_itself_on_them(
    volume: FourierVolume, known: bool
) -> None:
    poses = random_winners(12)
    batch = image_poses(volume, poses)
    settings = change(SETTINGS, points_per_step=10**6)
    model = AmortizedModel(pose_encoder("so3_grid", 200), make_volume("fourier_net", BOX, width=16), settings)
    scorer = scorer_for(volume, batch)
    losses = model(StepInput(batch, scorer, 1, poses if known else None))
    # Before `encoder_start` the encoder learns only from poses that are known.
    assert ("encoder" in losses) == known
    later = model(StepInput(batch, scorer, SETTINGS.own_proposals_start, poses if known else None))
    found = gradients(later, model)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert {name.split(".")[0] for name in found if found[name].abs().max() > 0} == {"encoder", "volume"}
    trained = {name.split(".")[2] for name in found if name.startswith("encoder.head") and found[name].any()}
    assert trained >= {"classifier", "offset_mlp", "translation"}
    assert later["residual"].shape == (batch.disk.prefix(scorer.radius).shell_count,)


@pytest.mark.parametrize("hypotheses", [5, 20])
def test_a_grid_smaller_than_what_is_kept_of_it(volume: FourierVolume, hypotheses: int) -> None:
    batch = image_poses(volume, random_winners(12))
    settings = EncoderSettings(**{**SMALL.model_dump(), "hypotheses": hypotheses, "keep": 32})
    model = AmortizedModel(
        make_pose_encoder(settings, BOX_LENGTH, 0), make_volume("fourier_net", BOX, width=16), SETTINGS
    )
    losses = model(StepInput(batch, scorer_for(volume, batch), SETTINGS.own_proposals_start))
    assert losses["volume"].isfinite() and losses["encoder"].isfinite()


class OwnClassifier(AbstractPoseHead):
    """Another head that needs a search: the least there is to one."""

    needs_search = True

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("rotations", make_so3_grid(100))
        self.classes = torch.nn.Linear(features, 100)

    @property
    def grid(self) -> Tensor:
        return self.get_buffer("rotations")

    def logits(self, features: Tensor) -> Tensor:
        return self.classes(features)

    def propose(self, features: Tensor, keep: int = 4, logits: Tensor | None = None) -> PoseHypotheses:
        weight, index = (self.logits(features) if logits is None else logits).topk(keep)
        return PoseHypotheses(self.grid[index], torch.zeros(*index.shape, 2), weight)

    def loss(self, features: Tensor, logits: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, soft_classes(rotation, self.grid, 0.5))


def test_a_head_that_needs_a_search_need_not_be_the_grid_head(volume: FourierVolume) -> None:
    source = Repeated(volume)
    trainer = trainer_for(source)
    trainer.model.encoder.head = OwnClassifier(trainer.model.encoder.encoder.features)
    trainer = Trainer(trainer.model, source, SETTINGS, seed=0, image_power=trainer.image_power)
    trainer.train()
    assert trainer.skipped == 0
    # It learns from `encoder_start` on.
    learned = [math.isfinite(record.encoder_loss) for record in trainer.history]
    assert learned == [step >= SETTINGS.encoder_start for step in range(SETTINGS.steps)]


def test_a_head_without_a_search_says_so() -> None:
    head = pose_encoder("s2s2").head
    with pytest.raises(NotImplementedError, match="S2S2Head needs no search"):
        head.logits(torch.zeros(1, 4))


# Sources


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ParticleData:
    folder = tmp_path_factory.mktemp("particles")
    write_simulation(make_phantom(BOX, PIXEL_SIZE), SimulationSettings(70, snr_db=0.0, seed=1), folder)
    particles = read_particles(folder / "particles.star")
    return ParticleData(particles, PIXEL_SIZE, BOX, memory_limit=2**26, scratch=folder)


def rows_of(batch: ParticleBatch, data: ParticleData) -> list[int]:
    """Which particles these are, by their coefficients."""
    n = len(batch.disk)
    everything = data.batch(np.arange(len(data))).images[:, :n]
    distance = (batch.images[:, None] - everything).abs().sum(2)
    assert distance.amin(1).max() < 1e-5
    return distance.argmin(1).tolist()


def test_real_particles_depend_on_the_step_alone(data: ParticleData) -> None:
    source = RealParticles(data, np.arange(70), 5.0, 16, seed=3)
    batches = [source(step) for step in range(6)]
    again = RealParticles(data, np.arange(70), 5.0, 16, seed=3)
    for step in (4, 0, 5):
        batch, poses = again(step)
        assert poses is None
        assert torch.equal(batch.images, batches[step][0].images) and torch.equal(batch.ctf, batches[step][0].ctf)
        assert float(batch.disk.radius[-1]) <= 5.0
    other = RealParticles(data, np.arange(70), 5.0, 16, seed=4)(0)[0]
    assert rows_of(other, data) != rows_of(batches[0][0], data)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_particle_is_shown_once_per_epoch(data: ParticleData, processes: int) -> None:
    """64 particles, 16 to a step in all; two processes share each step."""
    rows = np.arange(70)[3:67]
    sources = [RealParticles(data, rows, 5.0, 16 // processes, 0, rank, processes) for rank in range(processes)]
    epochs = []
    for epoch in range(2):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            shown = [rows_of(source(step)[0], data) for source in sources]
            assert len({row for part in shown for row in part}) == 16
            seen += [row for part in shown for row in part]
        assert sorted(seen) == rows.tolist()
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_particles_left_over_in_an_epoch_are_not_repeated_in_it(data: ParticleData) -> None:
    source = RealParticles(data, np.arange(70), 5.0, 16, seed=0)
    seen = [row for step in range(4) for row in rows_of(source(step)[0], data)]
    assert len(seen) == len(set(seen)) == 64


def test_a_batch_larger_than_the_set_is_the_set(data: ParticleData) -> None:
    source = RealParticles(data, np.arange(10), 5.0, 16, seed=0)
    assert sorted(rows_of(source(7)[0], data)) == list(range(10))


def test_the_place_in_a_batch_does_not_follow_the_place_in_the_file(data: ParticleData) -> None:
    """A volume is trained on the first particles of each batch: over time those must be all of them."""
    source = RealParticles(data, np.arange(70), 5.0, 16, seed=0)
    first = {row for step in range(60) for row in rows_of(source(step)[0][:4], data)}
    assert len(first) == 70


def test_simulated_images_are_the_map_at_their_poses(volume: FourierVolume) -> None:
    pool = image_poses(volume, random_winners(5)).prefix(6.0)
    noise = torch.zeros(pool.disk.shell_count)
    source = SimulatedParticles(volume, pool, noise, 12.0, 400, seed=2)
    batch, poses = source(3)
    expected = form_images(volume, poses.rotation, poses.translation, batch.ctf, batch.disk, batch.pixel_size)
    torch.testing.assert_close(batch.images, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    # CTFs of the pool, each of its particles; translations as spread out as asked.
    chosen = (batch.ctf[:, None] - pool.ctf).abs().amax(2)
    assert chosen.amin(1).max() == 0 and len(set(chosen.argmin(1).tolist())) == 5
    assert float(poses.translation.std()) == pytest.approx(12.0, rel=0.1)
    again, again_poses = SimulatedParticles(volume, pool, noise, 12.0, 400, seed=2)(3)
    assert torch.equal(again.images, batch.images) and torch.equal(again_poses.rotation, poses.rotation)
    assert not torch.equal(source(4)[1].rotation, poses.rotation)


def test_simulated_noise_has_the_spectrum_asked_for(volume: FourierVolume) -> None:
    pool = image_poses(volume, random_winners(5)).prefix(6.0)
    shells = pool.disk.shell_count
    noise = 4.0 / (1 + torch.arange(shells))
    silent, noisy = (
        SimulatedParticles(volume, pool, power, 12.0, 500, seed=2, curriculum_steps=steps)
        for power, steps in ((0 * noise, 0), (noise, 100))
    )
    count = 500 * torch.bincount(pool.disk.shell)[1:]
    # The noise's amplitude grows from 15 % to all of it.
    for step, amplitude in ((0, 0.15), (50, 0.575), (100, 1.0), (500, 1.0)):
        difference = noisy(step)[0].images - silent(step)[0].images
        measured = estimate_shell_power(difference, pool.disk)[1:]
        assert ((measured / (amplitude**2 * noise[1:]) - 1).abs() < 5 / count.sqrt()).all()
        assert abs(complex(difference.mean())) < 0.1


# The training loop


class Repeated:
    """A few batches in turn, of particles at random poses; some of them spoilt at some steps."""

    def __init__(
        self, volume: FourierVolume, known: bool = False, spoilt: Sequence[int] = (), rows: int = 1
    ) -> None:
        self.volume, self.known, self.spoilt, self.rows = volume, known, spoilt, rows
        self.made: dict[int, tuple[ParticleBatch, Winners]] = {}

    def __call__(self, step: int) -> tuple[ParticleBatch, Winners | None]:
        number = step % 20
        if number not in self.made:
            poses = random_winners(SETTINGS.batch_size, seed=number)
            self.made[number] = image_poses(self.volume, poses, snr=2.0, seed=number), poses
        batch, poses = self.made[number]
        if step in self.spoilt:
            batch = replace(batch, images=batch.images.clone())
            batch.images[: self.rows] = math.nan
        return batch, poses if self.known else None


def trainer_for(
    source: Repeated,
    kind: str = "so3_grid",
    settings: TrainingSettings = SETTINGS,
    *,
    volume: AbstractVolume | None = None,
    precision: str = "32-true",
    seed: int = 0,
) -> Trainer:
    hypotheses = {"anchored": 6}.get(kind, 200)
    encoder = EncoderSettings(
        **{**SMALL.model_dump(), "head": kind, "hypotheses": hypotheses, "precision": precision}
    )
    return make_trainer(encoder, settings, source, source(10_000)[0], seed=seed, volume=volume)


def losses_of(history: list[StepRecord]) -> list[tuple]:
    """All but the time, as text: NaN does not equal itself."""
    return [(r.step, r.radius, repr(r.volume_loss), repr(r.encoder_loss), r.skipped) for r in history]


@pytest.mark.parametrize(
    ("kind", "symmetrized", "precision"),
    [("so3_grid", False, "bf16-mixed"), ("anchored", False, "32-true"), ("s2s2", True, "bf16-mixed")],
)
def test_a_resumed_training_is_the_same(
    volume: FourierVolume, tmp_path: Path, kind: str, symmetrized: bool, precision: str
) -> None:
    settings = change(SETTINGS, symmetrized=symmetrized)
    source = Repeated(volume, spoilt=(5,))
    whole = trainer_for(source, kind, settings, precision=precision)
    whole.train()
    # Both in the middle of two renderings of the volume, before and after the encoder's own proposals begin.
    stopped = trainer_for(source, kind, settings, precision=precision)
    for stop in (4, 10):
        stopped.train(until=stop)
        torch.save(stopped.state(), tmp_path / "state.pt")
        stopped = trainer_for(source, kind, settings, precision=precision, seed=0)
        stopped.load_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert stopped.step == 10 and len(stopped.history) == 10
    stopped.train()
    assert losses_of(stopped.history) == losses_of(whole.history)
    assert [record.step for record in whole.history] == list(range(settings.steps))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, stopped.model.state_dict()[name]), name
    assert torch.equal(whole.noise_power, stopped.noise_power) and whole.skipped == stopped.skipped == 1


class Scored(AmortizedModel):
    """Keeps what hypotheses are scored with."""

    def forward(self, given: StepInput) -> dict[str, Tensor]:
        self.scorer = given.scorer
        return super().forward(given)


@pytest.mark.parametrize("whiten", [True, False])
def test_hypotheses_are_scored_with_the_loss_that_is_trained(volume: FourierVolume, whiten: bool) -> None:
    settings, source = change(SETTINGS, whiten=whiten, symmetrized=True), Repeated(volume)
    batch = source(0)[0]
    model = Scored(pose_encoder("s2s2"), make_volume("fourier_net", BOX, width=16), settings)
    trainer = Trainer(model, source, settings, seed=0, image_power=estimate_shell_power(batch.images, batch.disk))
    trainer.train(until=5)
    noise = model.scorer.noise_power[1:]
    spread = float(noise.max() / noise.min())
    # The residuals of a molecule that is hardly known yet are far from white.
    assert spread > 2 if whiten else spread == pytest.approx(1)
    measured = trainer.noise_power[1:]
    assert 0.5 * float(measured.min()) < float(noise.mean()) < 2 * float(measured.max())


def test_another_seed_trains_otherwise(volume: FourierVolume) -> None:
    first, second = (trainer_for(Repeated(volume), seed=seed) for seed in (0, 1))
    for trainer in (first, second):
        trainer.train(until=3)
    assert losses_of(first.history) != losses_of(second.history)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad_step", [2, 7])
def test_a_batch_with_nan_is_skipped_and_changes_nothing(volume: FourierVolume, kind: str, bad_step: int) -> None:
    """While the winner is drawn, and while it is the best."""
    settings = change(SETTINGS, symmetrized=kind == "s2s2")
    trainer = trainer_for(Repeated(volume, spoilt=(bad_step,)), kind, settings)
    trainer.train(until=bad_step)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    noise = trainer.noise_power.clone()
    trainer.train(until=bad_step + 1)
    assert trainer.skipped == 1 and trainer.history[-1].skipped
    assert math.isnan(trainer.history[-1].volume_loss)
    for name, tensor in trainer.model.state_dict().items():
        assert "num_batches_tracked" in name or torch.equal(tensor, before[name]), name
    assert torch.equal(trainer.noise_power, noise)
    trainer.train()
    assert trainer.skipped == 1 and math.isfinite(trainer.history[-1].volume_loss)


@pytest.mark.parametrize("part", ["encoder", "volume"])
def test_a_gradient_that_is_not_finite_is_skipped(volume: FourierVolume, part: str) -> None:
    """The loss is finite, and what is derived from it is not."""
    trainer = trainer_for(Repeated(volume))
    trainer.train(until=3)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    module = {"encoder": trainer.model.encoder, "volume": trainer.model.volume}[part]
    assert module is not None
    spoilt = next(module.parameters()).register_hook(lambda gradient: gradient * math.inf)
    trainer.train(until=4)
    spoilt.remove()
    assert trainer.skipped == 1 and trainer.history[-1].skipped
    for name, tensor in trainer.model.state_dict().items():
        assert "num_batches_tracked" in name or torch.equal(tensor, before[name]), name
    trainer.train(until=5)
    assert trainer.skipped == 1 and not trainer.history[-1].skipped


@pytest.mark.parametrize("kind", ["so3_grid", "s2s2"])
def test_nothing_but_nan_ends_training(volume: FourierVolume, kind: str) -> None:
    settings = change(SETTINGS, steps=1000)
    trainer = trainer_for(Repeated(volume, spoilt=tuple(range(2, 1000))), kind, settings)
    with pytest.raises(TrainingDivergedError, match=r"learning_rate") as error:
        trainer.train()
    assert trainer.step < 50 and error.value.exit_code == 1
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_a_bad_batch_now_and_then_does_not_end_training(volume: FourierVolume) -> None:
    settings = change(SETTINGS, steps=44, encoder_start=100, march_steps=0)
    trainer = trainer_for(Repeated(volume, spoilt=tuple(range(1, 44, 2)), rows=16), "s2s2", settings)
    trainer.train()
    assert trainer.skipped == 22


@pytest.mark.parametrize("kind", ["so3_grid", "s2s2"])
def test_a_volume_that_runs_away_ends_training(volume: FourierVolume, kind: str) -> None:
    settings = change(SETTINGS, volume_learning_rate=1e3, steps=200)
    grid = make_volume("fourier_grid", BOX, scale=1.0)
    trainer = trainer_for(Repeated(volume), kind, settings, volume=grid)
    with pytest.raises(TrainingDivergedError, match=r"volume_learning_rate"):
        trainer.train()
    assert trainer.step < 50


@pytest.mark.parametrize(("kind", "rate"), [("fourier_net", 3e-3), ("fourier_grid", 0.4), ("real_grid", 0.2)])
def test_the_volume_learns_the_map_at_known_poses(volume: FourierVolume, kind: str, rate: float) -> None:
    settings = change(
        SETTINGS, steps=50, volume_learning_rate=rate, march_steps=0, whiten=False, points_per_step=10**5
    )  # fmt: skip
    source = Repeated(volume, known=True)
    scale = float(source(0)[0].images.abs().square().mean().sqrt())
    learned = make_volume(kind, BOX, width=32, scale=scale)
    trainer = trainer_for(source, settings=settings, volume=learned)
    trainer.train()
    losses = np.array([record.volume_loss for record in trainer.history])
    assert losses[-5:].mean() < 0.6 * losses[:5].mean()
    disk = make_fourier_disk(BOX, 5.0)
    rotation = random_rotations(20, generator(9))
    found, true = (slice_volume(v, rotation, disk) for v in (learned.to_fourier_volume(5.0), volume))
    assert float((found * true.conj()).real.sum() / (found.norm() * true.norm())) > 0.9
    # The residual's power, measured along the way, is little more than the noise's: SNR 2.
    noise = float(image_poses(volume, random_winners(500), snr=None).images.abs().square().mean()) / 2
    assert 0.7 * noise < float(trainer.noise_power[3:6].mean()) < 1.6 * noise


def test_an_encoder_learns_the_poses_of_images_of_a_fixed_map(volume: FourierVolume) -> None:
    pool = image_poses(volume, random_winners(5))
    noise = torch.full((pool.disk.shell_count,), 0.02 * float(pool.images.abs().square().mean()))
    simulated = SimulatedParticles(volume, pool, noise, 5.0, 32, seed=0)
    settings = change(
        SETTINGS, steps=60, batch_size=32, encoder_start=0, sampling_steps=0, march_steps=0,
        encoder_learning_rate=3e-3,
    )  # fmt: skip
    encoder = EncoderSettings(**{**SMALL.model_dump(), "hypotheses": 60})
    # The same 64 images again and again: few enough to be learned by heart.
    trainer = make_trainer(
        encoder, settings, lambda step: simulated(step % 2), pool, seed=0, map_volume=volume, noise_power=noise
    )
    model = trainer.model
    trainer.train()
    losses = np.array([record.encoder_loss for record in trainer.history])
    assert losses[-8:].mean() < losses[:8].mean() - 0.8
    assert all(math.isnan(record.volume_loss) for record in trainer.history)
    assert torch.equal(trainer.noise_power, noise)
    model.eval()
    batch, poses = simulated(0)
    with torch.no_grad():
        found = model.encoder.propose(model.encoder_images(batch), 1)
    # The grid's spacing is 63 degrees: most of this is the offsets' work.
    assert float(rotation_angle(found.rotation[:, 0], poses.rotation).rad2deg().median()) < 8
    assert float((found.translation[:, 0] - poses.translation).norm(dim=1).median()) < 2.5


def test_the_radius_marches_and_stays() -> None:
    radii = [SETTINGS.radius_at(step) for step in range(20)]
    assert radii[0] == 3.0 and radii[8:] == [6.0] * 12
    np.testing.assert_allclose(np.diff(radii[:9]), 3 / 8)
    assert change(SETTINGS, march_steps=0).radius_at(1) == 6.0


# The encoder's file


def trained_encoder(kind: str = "so3_grid") -> TrainedEncoder:
    return TrainedEncoder(
        pose_encoder(kind).eval(), True, BOX, PIXEL_SIZE, 6.49, torch.rand(8), torch.rand(8), True
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_survives_its_file(volume: FourierVolume, tmp_path: Path, kind: str) -> None:
    trained = trained_encoder(kind)
    write_encoder(trained, tmp_path / "encoder.pt")
    again = read_encoder(tmp_path / "encoder.pt")
    assert again.encoder.settings == trained.encoder.settings
    for name in ("symmetrized", "box_size", "pixel_size", "radius", "mirrored", "box_length"):
        assert getattr(again, name) == getattr(trained, name)
    assert torch.equal(again.noise_power, trained.noise_power)
    assert torch.equal(again.image_power, trained.image_power)
    images = make_encoder_images(image_poses(volume, random_winners(3)), SMALL.box_size)
    one, other = (t.encoder.propose(images, 4) for t in (trained, again))
    assert torch.equal(one.rotation, other.rotation) and torch.equal(one.translation, other.translation)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.pt"]


def saved_values(path: Path) -> dict:
    write_encoder(trained_encoder(), path)
    return torch.load(path, weights_only=True)


def test_a_missing_encoder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"encoder\.pt.*--method amortized.*--encoder always"):
        read_encoder(tmp_path / "encoder.pt")


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_encoder_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "encoder.pt"
    write_encoder(trained_encoder(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(InputError, match=r"encoder\.pt: the encoder file is damaged; train the encoder again"):
        read_encoder(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cryoai volume"}, "not a cryoai encoder"),
        ({"kind": None}, "not a cryoai encoder"),
        ({"format": 1}, "another version"),
        ({"format": 3}, "another version"),
        ({"format": None}, "another version"),
        ({"weights": None}, "incomplete.*weights"),
        ({"settings": None}, "incomplete.*settings"),
        ({"noise_power": None}, "incomplete.*noise_power"),
        ({"settings": {"keep": "many"}}, "incomplete.*keep"),
        ({"settings": {"head": "of_a_friend"}}, "incomplete.*no head 'of_a_friend'"),
        ({"settings": {"box_length": 240.0}}, "incomplete.*box_length"),
        ({"pixel_size": torch.ones(1)}, "incomplete.*pixel_size"),
        ({"weights": {}}, "incomplete"),
    ],
)  # fmt: skip
def test_what_is_no_whole_encoder_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = tmp_path / "encoder.pt"
    values = {**saved_values(path), **change}
    torch.save({name: value for name, value in values.items() if value is not None}, path)
    with pytest.raises(InputError, match=message):
        read_encoder(path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), 5, "encoder"])
def test_other_files_of_torch_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "encoder.pt")
    with pytest.raises(InputError, match="not a cryoai encoder"):
        read_encoder(tmp_path / "encoder.pt")


class Shell:
    """Unpickling one of these runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("writer", ["torch", "pickle", "inside"])
def test_code_in_an_encoder_file_is_not_run(tmp_path: Path, writer: str) -> None:
    path, mark = tmp_path / "encoder.pt", tmp_path / "was here"
    trap = Shell(f"touch '{mark}'")
    if writer == "pickle":
        path.write_bytes(pickle.dumps(trap))
    elif writer == "torch":
        torch.save(trap, path)
    else:
        torch.save({**saved_values(path), "ctf": trap}, path)
    with pytest.raises(InputError, match="damaged"):
        read_encoder(path)
    assert not mark.exists()
    # The trap works: whoever trusts the file is caught.
    _ = pickle.loads(path.read_bytes()) if writer == "pickle" else torch.load(path, weights_only=False)
    assert mark.exists()


def test_an_object_of_another_class_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({**saved_values(tmp_path / "encoder.pt"), "keep": Winners}, tmp_path / "encoder.pt")
    with pytest.raises(InputError, match="damaged"):
        read_encoder(tmp_path / "encoder.pt")
