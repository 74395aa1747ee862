"""Small simulated sets, made once per test session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.run.config import BootstrapSettings, ReconstructConfig, RefineSettings


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,500 particles of the phantom at 0 dB, box 32, with CTFs and shifts of 2 px."""
    folder = tmp_path_factory.mktemp("simulated")
    settings = SimulationSettings(1500, snr_db=0.0, shift_sigma=16.0, seed=3)
    write_simulation(make_phantom(32, 8.0), settings, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 particles, box 24: enough to run every step, not to solve the structure."""
    folder = tmp_path_factory.mktemp("tiny")
    write_simulation(make_phantom(24, 10.0), SimulationSettings(200, snr_db=0.0, shift_sigma=10.0, seed=4), folder)
    return folder


@pytest.fixture(scope="session")
def quick_config() -> ReconstructConfig:
    """A short schedule: every step, few of each. On the CPU, where two runs give the same to the last bit."""
    return ReconstructConfig(
        seeds=2,
        device="cpu",
        bootstrap=BootstrapSettings(steps=40, batch_size=100, first_radius=5, last_radius=6),
        refine=RefineSettings(max_rounds=3, search_radius=6),
    )


@pytest.fixture(scope="module")
def no_near_symmetries() -> Iterator[None]:
    """Looking for the map's near-symmetries takes longer than all else in a short run, and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryoai.refinement.mates.find_near_symmetries", lambda density, group: [])
        yield
