"""Images that show a second particle beside their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from scenes import BOX, PARTICLES, PIXEL_SIZE, make_scene

from cryoai.particles.dataset import ParticleData
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.refinement.map_particles import References
from cryoai.refinement.neighbours import measure_alone
from cryoai.run.config import ReconstructConfig

COMPANY, DISTANCE = 80, 9
"""The first so many images get a second particle, so many px away."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("pairs")
    scene = make_scene(folder)
    others = folder / "others"
    settings = SimulationSettings(COMPANY, snr_db=None, shift_sigma=0.0, seed=5)
    write_simulation(make_phantom(BOX, PIXEL_SIZE), settings, others)
    second = np.roll(mrcfile.read(others / "particles.mrcs"), DISTANCE, 2)
    with mrcfile.open(folder / "particles.mrcs", mode="r+") as stack:
        # Half of the variance of an image is its particle's.
        stack.data[:COMPANY] += np.sqrt(0.5) * second / second.std((1, 2), keepdims=True)
    data = ParticleData(scene.particles, PIXEL_SIZE, BOX, memory_limit=2**28, scratch=folder)
    references = References(scene.state.half, (scene.volume, scene.volume))
    config = ReconstructConfig(particle_diameter=0.45 * BOX * PIXEL_SIZE)
    return measure_alone(data, scene.state, references, config).numpy()


def test_a_second_particle_is_seen(alone: np.ndarray) -> None:
    assert np.mean(alone[:COMPANY] < 0.5) > 0.85


def test_particles_by_themselves_are_left_alone(alone: np.ndarray) -> None:
    assert alone.shape == (PARTICLES,)
    assert np.mean(alone[COMPANY:] < 0.5) < 0.03


def test_what_is_left_out_is_not_judged(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    state = replace(scene.state, half=np.where(np.arange(PARTICLES) < 10, -1, scene.state.half))
    found = measure_alone(scene.data, state, scene.references(state), ReconstructConfig())
    torch.testing.assert_close(found[:10], torch.ones(10))


def test_a_particle_that_fills_its_box_has_no_room_beside_it(tmp_path: Path) -> None:
    scene = make_scene(tmp_path)
    config = ReconstructConfig(particle_diameter=1.2 * BOX * PIXEL_SIZE)
    found = measure_alone(scene.data, scene.state, scene.references(scene.state), config)
    torch.testing.assert_close(found, torch.ones(PARTICLES))
