"""The parts of a refinement, on particles whose true poses are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import PARTICLES, Scene

from cryoai.geometry.rotations import random_rotations, rotation_angle, rotation_from_vector
from cryoai.metrics.alignment import MapAlignment
from cryoai.physics.slicing import volume_from_map
from cryoai.refinement.confidence import measure_fit_scale
from cryoai.refinement.fits import measure_fits
from cryoai.refinement.map_particles import Portion, References, map_particles
from cryoai.refinement.mates import try_mates
from cryoai.refinement.poses import insert_particles, reconstruct_halves, refine_locally, update_noise
from cryoai.refinement.rounds import RoundSummary, is_settled
from cryoai.refinement.state import start_refinement
from cryoai.refinement.unseen import unseen_fit
from cryoai.run.config import ReconstructConfig


def turned(rotation: torch.Tensor, degrees: float, seed: int = 0) -> torch.Tensor:
    axis = torch.nn.functional.normalize(
        torch.randn(len(rotation), 3, generator=torch.Generator().manual_seed(seed)), dim=1
    )
    return rotation_from_vector(axis * np.radians(degrees)) @ rotation


def test_a_particle_counts_for_what_its_pose_is_certain(scene: Scene) -> None:
    certainty, half = torch.ones(PARTICLES), scene.state.half.copy()
    certainty[::3], half[::3] = 0.0, -1
    unsure = insert_particles(scene.data, replace(scene.state, certainty=certainty), 8.0)
    without = insert_particles(scene.data, replace(scene.state, half=half), 8.0)
    both = insert_particles(scene.data, replace(scene.state, certainty=torch.full((PARTICLES,), 0.5)), 8.0)
    whole = insert_particles(scene.data, scene.state, 8.0)
    for i in (0, 1):
        torch.testing.assert_close(unsure[i].numerator, without[i].numerator, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(unsure[i].weight, without[i].weight, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(2 * both[i].numerator, whole[i].numerator, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("at_once", [7, 100, 10_000])
def test_every_particle_is_handed_over_once_with_its_own_map(
    scene: Scene, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoai.refinement.map_particles.particles_at_once", lambda data: at_once)
    index = np.arange(PARTICLES) % 3 - 1
    volumes = tuple(replace(scene.volume, values=scene.volume.values * factor) for factor in (1.0, 2.0))
    seen, counts = np.zeros(PARTICLES, int), []

    def look(portion: Portion) -> None:
        seen[portion.rows] += 1
        assert (index[portion.rows] == portion.map_index).all()
        assert portion.volume is volumes[portion.map_index]
        expected = scene.data.batch(portion.rows, 6.0).images
        torch.testing.assert_close(portion.own_batch.images, expected)
        torch.testing.assert_close(portion.batch.images[portion.image_of], expected)

    map_particles(scene.data, References(index, volumes), look, radius=6.0, on_chunk=counts.append)
    np.testing.assert_array_equal(seen, index >= 0)
    assert counts[-1] == (index >= 0).sum() and sorted(counts) == counts


def test_only_the_rows_asked_for_are_handed_over(scene: Scene) -> None:
    rows, seen = np.array([3, 4, 90, 201]), []
    references = References(np.zeros(PARTICLES, int), (scene.volume,))
    map_particles(scene.data, references, lambda portion: seen.extend(portion.rows), rows)
    assert seen == rows.tolist()


def test_swapped_references_hand_each_half_the_other_map(scene: Scene) -> None:
    references = References(np.array([0, 1, -1, 0]), (scene.volume,) * 2).swapped()
    assert references.index.tolist() == [1, 0, -1, 1]


def test_halves_are_of_equal_size_and_depend_on_the_seed(scene: Scene) -> None:
    one, same, other = (start_refinement(scene.data, scene.noise_power, seed).half for seed in (0, 0, 1))
    assert np.bincount(one).tolist() == [PARTICLES // 2] * 2
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_noise_is_what_the_true_map_leaves_at_the_true_poses(scene: Scene) -> None:
    state = replace(scene.state, noise_power=torch.ones_like(scene.noise_power))
    found = update_noise(scene.data, state, scene.references(state), scene.radius).noise_power
    ratio = found[2:] / scene.noise_power[2:]
    assert (ratio - 1).abs().max() < 0.1 and (ratio.mean() - 1).abs() < 0.02
    # Beyond the radius nothing is known.
    inner = update_noise(scene.data, state, scene.references(state), 5.0).noise_power
    assert (inner[6:] == 1).all()
    # At wrong poses the particle is taken for noise.
    wrong = replace(state, rotation=random_rotations(PARTICLES, torch.Generator().manual_seed(5)))
    left = update_noise(scene.data, wrong, scene.references(state), scene.radius).noise_power
    assert (left[2:5] > found[2:5]).all()


def test_the_gain_at_the_right_pose_is_what_is_expected(scene: Scene) -> None:
    state = scene.state
    references, config = scene.references(state), ReconstructConfig()
    fits = measure_fits(scene.data, state, references, scene.radius, config)
    quality = fits.quality
    assert quality.mean().abs() < 0.25 and 0.8 < quality.std() < 1.2
    wrong = replace(state, rotation=random_rotations(PARTICLES, torch.Generator().manual_seed(5)))
    worse = measure_fits(scene.data, wrong, references, scene.radius, config).gain
    assert (worse < fits.gain).float().mean() > 0.95


def test_local_refinement_finds_back_and_knows_its_errors(scene: Scene) -> None:
    truth = scene.state
    state = replace(truth, rotation=turned(truth.rotation, 4.0), translation=truth.translation + 3.0)
    found = refine_locally(scene.data, state, scene.references(state), scene.radius, iterations=8)
    error = rotation_angle(found.rotation, truth.rotation)
    assert error.rad2deg().median() < 1.5
    assert (found.translation - truth.translation).norm(dim=1).median() < 2.0
    # θ² is the sum over three axes.
    per_axis = (error.square().median() / 2.37).sqrt()
    assert 0.7 < float(found.rotation_std.median() / per_axis) < 1.4
    still = refine_locally(scene.data, state, scene.references(state), scene.radius, iterations=0)
    torch.testing.assert_close(still.rotation, state.rotation, atol=1e-6, rtol=0)
    assert torch.isfinite(still.rotation_std).all()


@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (0.3, -0.5, 0.8)])
def test_particles_come_back_from_a_mate_and_leave_none(scene: Scene, axis: tuple[float, float, float]) -> None:
    """Whatever the rotation: of the right pose and its mate the right one fits better, and stays or is found."""
    vector = torch.nn.functional.normalize(torch.tensor(axis), dim=0) * (2 * np.pi / 3)
    turn = rotation_from_vector(vector[None])[0]
    shift = np.array([1.0, -0.5, 0.25])
    forth = MapAlignment(turn.double().numpy(), shift, False, 0.9)
    back = MapAlignment(turn.T.double().numpy(), -(turn.T.double().numpy() @ shift), False, 0.9)
    truth = scene.state
    at_mate = torch.arange(PARTICLES) % 2 == 0
    rotation = torch.where(at_mate[:, None, None], turn @ truth.rotation, truth.rotation)
    moved = (torch.from_numpy(shift).float() * scene.data.pixel_size @ (turn @ truth.rotation))[:, :2]
    translation = torch.where(at_mate[:, None], truth.translation - moved, truth.translation)
    state = replace(truth, rotation=rotation, translation=translation)
    found, weight = try_mates(scene.data, state, scene.references(state), [forth, back], scene.radius)
    right = rotation_angle(found.rotation, truth.rotation).rad2deg() < 10
    assert right.float().mean() > 0.97
    assert (found.translation - truth.translation)[right].norm(dim=1).median() < 3.0
    assert ((weight > 0.3) & (weight <= 1)).all() and weight[right].median() > 0.99


@pytest.mark.parametrize(
    ("number", "change", "previous_fsc", "mates_moved", "settled"),
    [
        (5, 0.01, 11.0, 0, True),
        (3, 0.01, 11.0, 0, False),  # too early
        (5, 5.0, 11.0, 0, False),  # poses still move
        (5, 0.01, 10.0, 0, False),  # half-maps still improve
        (5, 0.01, 11.0, PARTICLES // 10, False),  # particles still go to mates
    ],
)
def test_a_refinement_is_settled_when_nothing_changes_any_more(
    scene: Scene, number: int, change: float, previous_fsc: float, mates_moved: int, settled: bool
) -> None:
    state = replace(scene.state, rotation_std=torch.full((PARTICLES,), np.radians(1.0)))
    summary = RoundSummary(number, 11.0, 11.0, change, mates=1, mates_moved=mates_moved)
    assert is_settled(state, summary, RoundSummary(number - 1, previous_fsc, 11.0, 1.0)) is settled
    assert not is_settled(state, summary, None)


def test_a_particle_in_the_map_fits_better_than_one_that_is_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `cryoai infer` compares new particles with must be the fit of particles that the map does not hold."""
    state = scene.state
    old = np.arange(PARTICLES) < 160
    run = replace(state, half=np.where(old, state.half, -1))
    halves = reconstruct_halves(scene.data, run, scene.radius, None)
    volume = volume_from_map(halves.wiener_map())
    everything = References(np.zeros(PARTICLES, int), (volume,))
    found = refine_locally(scene.data, state, everything, scene.radius)
    quality = measure_fits(scene.data, found, everything, scene.radius, ReconstructConfig()).quality
    was_in = torch.from_numpy(old)
    inside, outside = quality[was_in], quality[~was_in]
    assert inside.mean() > outside.mean() + 0.3
    # All of the map's particles in turn, so that both means are well known.
    monkeypatch.setattr("cryoai.refinement.unseen._MOST_FOLDS", 10)
    estimated, expected = unseen_fit(scene.data, run, halves)
    assert len(estimated) == old.sum()
    error = 2 * (estimated.std() ** 2 / len(estimated) + outside.std() ** 2 / len(outside)) ** 0.5
    assert abs(estimated.mean() - outside.mean()) < error
    # The same particles when they were in the map: by what they had left there.
    assert estimated.mean() < inside.mean() - 0.1
    scale = measure_fit_scale(estimated, expected)
    assert abs(scale.centre - estimated.median()) < 0.05
