"""Classes whose particles have poses: two states of one, and particles that belong to another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from star_blocks import read_blocks

from cryoai import Map, ReconstructConfig, read_particles
from cryoai.geometry.rotations import random_rotations, rotation_angle
from cryoai.metrics.alignment import MIRROR, MapAlignment
from cryoai.particles.dataset import ParticleData
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings, Species
from cryoai.particles.write_simulation import write_simulation
from cryoai.reconstruction.sort_classes import tell_of_states
from cryoai.refinement.exchange import PosedClass, exchange_particles
from cryoai.refinement.misfits import place_misfits
from cryoai.refinement.poses import reconstruct_halves
from cryoai.refinement.state import RefinementState, start_refinement
from cryoai.refinement.states import TwoStates, find_two_states
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import BootstrapSettings
from cryoai.run.context import Run
from cryoai.run.progress import Progress

PARTICLES, BOX, PIXEL_SIZE, RADIUS = 1000, 24, 10.0, 10.0
TURN = Rotation.from_rotvec([0.4, -1.1, 2.0]).as_matrix()


@dataclass(frozen=True, eq=False)
class Mixed:
    """Particles of a phantom, of which some have a ball more, at their true poses, and which these are."""

    data: ParticleData
    state: RefinementState
    has_ball: np.ndarray

    def posed(self, state: RefinementState) -> PosedClass:
        return PosedClass(state, reconstruct_halves(self.data, state, RADIUS, None))

    def states(self, state: RefinementState) -> TwoStates:
        found = find_two_states(self.data, state, self.posed(state).halves, RADIUS, 0)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    folder = tmp_path_factory.mktemp("states")
    phantom = make_phantom(BOX, PIXEL_SIZE)
    axis = np.arange(BOX) - BOX // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    ball = phantom.density.max() * np.exp(-((x - 3) ** 2 + (y + 2) ** 2 + (z - 5) ** 2) / 8)
    more = Map((phantom.density + ball).astype(np.float32), PIXEL_SIZE)
    species = (Species(phantom, 0.6, "without"), Species(more, 0.4, "with"))
    write_simulation(species, SimulationSettings(PARTICLES, snr_db=0.0, shift_sigma=8.0, seed=2), folder)
    particles = read_particles(folder / "particles.star")
    assert particles.pose is not None
    data = ParticleData(particles, PIXEL_SIZE, BOX, memory_limit=2**28, scratch=folder)
    state = start_refinement(data, torch.full((data.disk.shell_count,), 0.5), seed=0)
    state = replace(
        state,
        rotation=torch.from_numpy(particles.pose.rotation).float(),
        translation=torch.from_numpy(particles.pose.translation).float(),
    )
    number = read_blocks(folder / "particles.star")["particles"]["rlnClassNumber"].to_numpy(int)
    return Mixed(data, state, number == 2)


def keep(state: RefinementState, rows: np.ndarray) -> RefinementState:
    return replace(state, half=np.where(rows, state.half, -1))


def test_two_states_are_told_apart(mixed: Mixed) -> None:
    found = mixed.states(mixed.state)
    assert found.differ and found.nats > 5 and found.agreement > 0.95
    torch.testing.assert_close(found.probability.sum(1), torch.ones(PARTICLES))
    # The more frequent one first.
    assert np.mean((found.probability[:, 1] > 0.5).numpy() == mixed.has_ball) > 0.95


def test_one_state_is_one(mixed: Mixed) -> None:
    assert not mixed.states(keep(mixed.state, ~mixed.has_ball)).differ


def test_particles_of_another_contrast_are_no_state(mixed: Mixed) -> None:
    weak = np.random.default_rng(0).random(PARTICLES) < 0.5

    class Weaker(ParticleData):
        def __init__(self) -> None:
            self.__dict__.update(mixed.data.__dict__)

        def batches(self, *arguments, **named):
            for rows, batch in mixed.data.batches(*arguments, **named):
                factor = torch.from_numpy(np.where(weak[rows], 0.5, 1.0)).float()
                yield rows, replace(batch, images=batch.images * factor[:, None])

    data = Weaker()
    state = keep(mixed.state, ~mixed.has_ball)
    halves = reconstruct_halves(data, state, RADIUS, None)
    found = find_two_states(data, state, halves, RADIUS, 0)
    assert found is not None and not found.differ


def test_particles_with_turned_poses_are_no_state(mixed: Mixed) -> None:
    state = keep(mixed.state, ~mixed.has_ball)
    turned = torch.from_numpy(np.random.default_rng(0).random(PARTICLES) < 0.3)
    matrix = torch.from_numpy(TURN).float()
    state = replace(state, rotation=torch.where(turned[:, None, None], matrix @ state.rotation, state.rotation))
    found = mixed.states(state)
    assert found.is_turned and not found.differ


def test_one_map_of_two_states_is_a_warning(mixed: Mixed, tmp_path: Path) -> None:
    def warnings(state: RefinementState, **options) -> list[str]:
        run = Run(ReconstructConfig(**options), Checkpoint(tmp_path, "particles"), Progress())
        tell_of_states(mixed.data, state, mixed.posed(state).halves, run)
        return run.warnings

    (said,) = warnings(mixed.state)
    assert said.startswith("the particles show two states, about ") and "--classes auto" in said
    rarer = float(said.split("and ")[1].split(" %")[0])
    assert rarer == pytest.approx(40, abs=5)
    assert warnings(keep(mixed.state, ~mixed.has_ball)) == []
    assert warnings(mixed.state, classes=2) == [] == warnings(mixed.state, known_poses=True)


def test_few_particles_say_nothing(mixed: Mixed) -> None:
    few = keep(mixed.state, np.arange(PARTICLES) < 50)
    assert find_two_states(mixed.data, few, mixed.posed(mixed.state).halves, RADIUS, 0) is None


def in_another_frame(state: RefinementState) -> RefinementState:
    """The poses that a turned map of the other hand has."""
    reflect, matrix = torch.from_numpy(MIRROR).float(), torch.from_numpy(TURN).float()
    return replace(state, rotation=matrix @ reflect @ state.rotation @ reflect)


def test_particles_go_to_the_class_that_they_fit(mixed: Mixed) -> None:
    strays = ~mixed.has_ball & (np.random.default_rng(1).random(PARTICLES) < 0.2)
    first = keep(mixed.state, ~mixed.has_ball & ~strays)
    second = keep(in_another_frame(mixed.state), mixed.has_ball | strays)
    found = exchange_particles(mixed.data, [mixed.posed(first), mixed.posed(second)], RADIUS)
    assert found.kept == (0, 1) and found.moved > 0.8 * strays.sum()
    without, with_ball = found.states
    assert not np.intersect1d(without.used, with_ball.used).size
    assert len(without.used) + len(with_ball.used) == PARTICLES
    assert np.mean(mixed.has_ball[without.used]) < 0.05 and np.mean(mixed.has_ball[with_ball.used]) > 0.95
    # They arrive with poses in the frame of their new class.
    arrived = np.intersect1d(without.used, np.flatnonzero(strays))
    error = torch.rad2deg(rotation_angle(without.rotation[arrived], mixed.state.rotation[arrived]))
    assert float(error.median()) < 3
    np.testing.assert_array_equal(without.half[arrived], mixed.state.half[arrived])
    assert min(found.losses) > 2
    assert float(found.certainty[mixed.state.used].min()) >= 0.5


def test_copies_of_a_class_become_one(mixed: Mixed) -> None:
    chosen = np.random.default_rng(2).random(PARTICLES) < 0.4
    first = keep(mixed.state, ~mixed.has_ball & ~chosen)
    second = keep(in_another_frame(mixed.state), ~mixed.has_ball & chosen)
    found = exchange_particles(mixed.data, [mixed.posed(second), mixed.posed(first)], RADIUS)
    assert found.kept == (1,) and found.losses == (np.inf,)
    (together,) = found.states
    assert len(together.used) == np.sum(~mixed.has_ball)
    error = torch.rad2deg(rotation_angle(together.rotation, mixed.state.rotation)[together.used])
    assert float(error.median()) < 3


def test_particles_without_a_right_pose_are_looked_for_in_the_other_class(mixed: Mixed) -> None:
    strays = mixed.has_ball & (np.random.default_rng(3).random(PARTICLES) < 0.2)
    wrong = random_rotations(PARTICLES, torch.Generator().manual_seed(4))
    first = keep(mixed.state, ~mixed.has_ball | strays)
    is_stray = torch.from_numpy(strays)[:, None, None]
    first = replace(first, rotation=torch.where(is_stray, wrong, first.rotation))
    second = keep(mixed.state, mixed.has_ball & ~strays)
    config = ReconstructConfig(bootstrap=BootstrapSettings(first_radius=6, last_radius=8))
    placed = place_misfits(mixed.data, [mixed.posed(first), mixed.posed(second)], RADIUS, config)
    states = placed.states
    found = np.intersect1d(states[1].used, np.flatnonzero(strays))
    assert len(found) > 0.8 * strays.sum()
    assert len(placed.moved) < 1.5 * strays.sum()
    # How sure a particle is of its new class is of what the search has found, not of where it was.
    assert np.mean(placed.certainty.numpy() > 0.9) > 0.8 and float(placed.certainty.min()) > 0.5
    assert not np.intersect1d(states[0].used, states[1].used).size
    np.testing.assert_array_equal(states[1].half[found], mixed.state.half[found])
    error = torch.rad2deg(rotation_angle(states[1].rotation[found], mixed.state.rotation[found]))
    assert float(error.median()) < 5


@pytest.mark.parametrize("mirrored", [False, True])
def test_an_alignment_and_its_inverse(mirrored: bool) -> None:
    link = MapAlignment(TURN, np.array([1.0, -2.0, 0.5]), mirrored, 1.0)
    point = np.array([3.0, 1.0, -4.0])
    there = link.matrix @ point + link.shift
    back = link.inverse()
    np.testing.assert_allclose(back.matrix @ there + back.shift, point, atol=1e-12)
    assert back.mirrored == mirrored and np.linalg.det(back.rotation) == pytest.approx(1)
