"""Classes of a bootstrap: shares, and which of two starts belong together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from three_balls import PIXEL_SIZE, SUPPORT, generator, make_density

from cryoai.ab_initio.agreement import choose_best
from cryoai.ab_initio.balance import ClassBalance
from cryoai.ab_initio.bootstrap import BootstrapResult
from cryoai.ab_initio.consensus import choose_classes
from cryoai.ab_initio.images import BootstrapImages
from cryoai.ab_initio.shares import share_out
from cryoai.ab_initio.starts import find_starts
from cryoai.geometry.fourier import make_fourier_disk
from cryoai.geometry.rotations import random_rotations
from cryoai.particles.dataset import ParticleData
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.refinement.state import RefinementState, merge_states
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import BootstrapSettings, ReconstructConfig
from cryoai.run.context import Run
from cryoai.run.progress import Progress
from cryoai.tensors import ParticleBatch

BOX, NOISE = 24, 0.005


def test_shares_are_found_from_likelihoods() -> None:
    generator_ = generator(1)
    true = (torch.rand(4000, generator=generator_) < 0.2).long()
    # A value of mean 1 in the right class and 0 in the other, σ = 1: its log-likelihoods differ by that value.
    gain = torch.randn(4000, 2, generator=generator_) + torch.eye(2)[true]
    probability = share_out(gain.double(), torch.tensor([0.5, 0.5]).double())
    assert float(probability[:, 1].mean()) == pytest.approx(0.2, abs=0.03)
    sure = probability[:, 1] > 0.4
    assert float(true[sure].double().mean()) == pytest.approx(float(probability[sure, 1].mean()), abs=0.05)


def test_what_cannot_be_is_never_chosen() -> None:
    gain = torch.zeros(10, 3).double()
    gain[:, 0] = -torch.inf
    probability = share_out(gain, torch.ones(3).double())
    assert (probability[:, 0] == 0).all()
    torch.testing.assert_close(probability.sum(1), torch.ones(10).double())


def balanced(gain: torch.Tensor, progress: float) -> torch.Tensor:
    """The share of images that each class has in the end."""
    balance = ClassBalance(gain.shape[1])
    balance.loosen(progress)
    for _ in range(5):
        share = (gain + torch.tensor(balance.odds).double().log()).softmax(1)
        balance.learn(share.float(), torch.ones(len(gain)))
    return share.mean(0)


def test_a_class_that_explains_every_image_better_gets_no_more_of_them() -> None:
    generator_ = generator(2)
    true = torch.arange(300) % 3
    gain = (3 * torch.eye(3)[true] + torch.randn(300, 3, generator=generator_)).double()
    gain[:, 0] += 8
    assert float(gain.softmax(1).mean(0)[0]) > 0.98
    torch.testing.assert_close(balanced(gain, 0.0), torch.full((3,), 1 / 3).double(), atol=0.01, rtol=0)


def test_images_that_are_sure_of_their_class_stay_there() -> None:
    """Of 100 images 90 show the first class, by 20 nats: in the end no balance takes them away."""
    gain = torch.zeros(100, 2).double()
    gain[:90, 0], gain[90:, 1] = 20.0, 20.0
    torch.testing.assert_close(balanced(gain, 1.0), torch.tensor([0.9, 0.1]).double(), atol=0.01, rtol=0)


def images_of(volume: FourierVolume, count: int, seed: int) -> ParticleBatch:
    disk = make_fourier_disk(BOX, 9.0)
    ctf = torch.cos(disk.radius * torch.linspace(0.05, 0.15, count)[:, None])
    clean = form_images_quickly(
        volume, random_rotations(count, generator(seed)), torch.zeros(count, 2), ctf, disk, PIXEL_SIZE
    )
    noise = make_shell_noise(count, torch.full((20,), NOISE), disk, generator(seed + 1))
    return ParticleBatch(clean + noise, ctf, disk, PIXEL_SIZE)


@pytest.fixture(scope="module")
def volumes() -> list[FourierVolume]:
    """Two molecules."""
    density = make_density(BOX)
    return [volume_from_map(one) for one in (density, 4.0 * density.flip(0).roll(3, 2) * density.roll(2, 1))]


@pytest.fixture(scope="module")
def images(volumes: list[FourierVolume]) -> BootstrapImages:
    """As many images of each."""
    parts = [images_of(volume, 40, 5 * number) for number, volume in enumerate(volumes)]
    batch = ParticleBatch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.ctf for part in parts]),
        parts[0].disk,
        PIXEL_SIZE,
    )
    settings = BootstrapSettings(first_radius=5, last_radius=6).in_box(BOX)
    return BootstrapImages(batch, batch, torch.full((20,), NOISE), SUPPORT, settings)


def test_classes_of_two_starts_are_matched_by_their_images(
    volumes: list[FourierVolume], images: BootstrapImages
) -> None:
    noise = images.noise_power
    first = BootstrapResult(tuple(volumes), (0.6, 0.4), noise, 2.0, 0, 6.0)
    swapped = BootstrapResult(tuple(volumes[::-1]), (0.4, 0.6), noise, 1.0, 1, 6.0)
    same_twice = BootstrapResult((volumes[0], volumes[0]), (0.5, 0.5), noise, 0.5, 2, 6.0)
    starts = [first, swapped, same_twice]
    assert len(choose_classes(starts, images, None)) == 2
    found = choose_best(starts, images, classes=2)
    assert len(found.classes) == 2 and found.saved_as == "bootstrap_01"
    assert sorted(one.agreeing for one in found.classes) == [2, 3]
    for one in found.classes:
        assert one.agreements[0] == pytest.approx(1, abs=0.02)
        assert one.agreements[1] == pytest.approx(1, abs=0.02)
        assert one.likelihoods == (2.0, 1.0, 0.5)
        assert one.loss > 2
    # The third start has the first molecule in both of its classes.
    assert min(one.agreements[2] for one in found.classes) < 0.8
    assert found.agree_in_every_shell


def test_a_class_that_is_there_twice_is_needed_once() -> None:
    volume = volume_from_map(make_density(BOX))
    batch = images_of(volume, 60, 3)
    noise = torch.full((20,), NOISE)
    settings = BootstrapSettings(first_radius=5, last_radius=6).in_box(BOX)
    images = BootstrapImages(batch, batch, noise, SUPPORT, settings)
    twice = BootstrapResult((volume, volume), (0.5, 0.5), noise, 2.0, 0, 6.0)
    (kept,) = choose_classes([twice, twice], images, None)
    assert kept.share == pytest.approx(1) and kept.loss == np.inf
    assert len(choose_classes([twice], images, 2)) == 2


class Usable(ParticleData):
    """Of which only the number is asked for."""

    usable_rows = np.arange(1000)

    def __init__(self) -> None:
        pass


def test_the_number_of_classes_is_found(
    volumes: list[FourierVolume], images: BootstrapImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By starts with more of them than there are; then come starts with as many."""
    asked: list[tuple[int, bool]] = []

    def start(images: BootstrapImages, seed: int, on_step: object, patient: bool, classes: int) -> BootstrapResult:
        asked.append((classes, patient))
        held = tuple(volumes[index % 2] for index in range(classes))
        return BootstrapResult(held, (1 / classes,) * classes, images.noise_power, 1.0, seed, 6.0, not patient)

    def compare(volume: FourierVolume, reference: FourierVolume, radius: int) -> tuple[float, float]:
        return (1.0, 1.0) if volume is reference else (0.2, 0.0)

    for module in ("agreement", "consensus"):
        monkeypatch.setattr(f"cryoai.ab_initio.{module}.compare_volumes", compare)
    monkeypatch.setattr("cryoai.ab_initio.starts.choose_images", lambda *arguments: images)
    monkeypatch.setattr("cryoai.ab_initio.starts.run_start", start)
    monkeypatch.setattr("cryoai.ab_initio.starts.go_on", lambda images, maps, seed, on_step: maps)
    run = Run(ReconstructConfig(classes="auto"), Checkpoint(tmp_path, "set"), Progress())
    found = find_starts(Usable(), run)
    assert asked == [(3, True), (3, True), (2, False), (2, False)]
    assert len(found.classes) == 2 and all(one.agreeing == 2 for one in found.classes)


def test_a_start_that_needs_all_its_classes_is_followed_by_one_with_more(
    volumes: list[FourierVolume], images: BootstrapImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def start(images: BootstrapImages, seed: int, on_step: object, patient: bool, classes: int) -> BootstrapResult:
        asked.append(classes)
        held = tuple(volumes[index % 2] for index in range(classes))
        return BootstrapResult(held, (1 / classes,) * classes, images.noise_power, 1.0, seed, 6.0, not patient)

    monkeypatch.setattr("cryoai.ab_initio.starts._FIRST_GUESS", 2)
    monkeypatch.setattr("cryoai.ab_initio.starts.choose_images", lambda *arguments: images)
    monkeypatch.setattr("cryoai.ab_initio.starts.run_start", start)
    monkeypatch.setattr("cryoai.ab_initio.starts.go_on", lambda images, maps, seed, on_step: maps)
    run = Run(ReconstructConfig(classes="auto"), Checkpoint(tmp_path, "set"), Progress())
    found = find_starts(Usable(), run)
    assert asked[:3] == [2, 4, 4] and set(asked[3:]) == {2}
    assert len(found.classes) == 2


def test_states_are_merged_by_class() -> None:
    def state(value: float, half: list[int]) -> RefinementState:
        n = len(half)
        filled = torch.full((n,), value)
        return RefinementState(
            value * torch.eye(3).repeat(n, 1, 1), torch.full((n, 2), value), np.array(half), torch.ones(3), filled,
            filled, filled, filled, np.full(n, value > 1), filled,
        )  # fmt: skip

    first, second = state(1.0, [0, -1, 1, -1]), state(2.0, [-1, 0, -1, -1])
    merged = merge_states(first, second, second.half >= 0)
    np.testing.assert_array_equal(merged.half, [0, 0, 1, -1])
    torch.testing.assert_close(merged.translation[:, 0], torch.tensor([1.0, 2.0, 1.0, 1.0]))
    np.testing.assert_array_equal(merged.is_confirmed, [False, True, False, False])
    np.testing.assert_array_equal(first.half, [0, -1, 1, -1])
