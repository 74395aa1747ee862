"""Images of nothing: whatever the method, no resolution and no confidence come of them.

Half-sets share what their first poses come from, up to some shells. Beyond those their maps must be noise.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from star_blocks import read_blocks

from cryoai import ReconstructConfig, read_map, reconstruct
from cryoai.cli import main
from cryoai.io import StackWriter
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.poses.settings import EncoderSettings
from cryoai.reconstruction.result import ReconstructionResult
from cryoai.refinement.confidence import CONFIDENT
from cryoai.run.config import BootstrapSettings, RefineSettings
from cryoai.training.settings import HybridSettings, TrainingSettings

BOX, IMAGES, SHARED = 32, 300, 6


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """White noise with the CTFs of a real set."""
    folder = tmp_path_factory.mktemp("noise")
    write_simulation(make_phantom(BOX, 8.0), SimulationSettings(IMAGES, snr_db=0.0, seed=1), folder)
    images = np.random.default_rng(0).normal(size=(IMAGES, BOX, BOX)).astype(np.float32)
    with StackWriter(folder / "particles.mrcs", IMAGES, BOX, 8.0) as writer:
        writer.write(images)
    return folder / "particles.star"


def config(method: str) -> ReconstructConfig:
    """Short schedules that share no more than six shells."""
    return ReconstructConfig(
        method="amortized" if method == "amortized" else "hybrid" if method == "encoder" else "search",
        seeds=1,
        device="cpu",
        bootstrap=BootstrapSettings(steps=10, batch_size=100, first_radius=5, last_radius=SHARED),
        encoder=EncoderSettings(box_size=12, widths=(8, 16)),
        amortize=TrainingSettings(
            steps=30, batch_size=32, last_radius=SHARED, search_radius=SHARED, encoder_start=5, volume_width=32,
            own_proposals_start=15, sampling_steps=5, march_steps=10, points_per_step=4096,
        ),
        hybrid=HybridSettings(
            encoder="always" if method == "encoder" else "never", simulated_steps=10, real_steps=4
        ),
        refine=RefineSettings(max_rounds=2, search_radius=SHARED),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_near_symmetries():
    """Looking for them takes longer than all else here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryoai.refinement.mates.find_near_symmetries", lambda density, group: [])
        yield


@pytest.fixture(scope="module", params=["search", "encoder", "amortized"])
def result(request: pytest.FixtureRequest, noise: Path, tmp_path_factory: pytest.TempPathFactory):
    return reconstruct(noise, tmp_path_factory.mktemp(request.param), config(request.param))


def test_half_maps_of_noise_are_noise_beyond_what_they_share(result: ReconstructionResult) -> None:
    assert result.shared_shells <= SHARED + 0.5
    halves = result.halves
    beyond = slice(SHARED + 1, None)  # shells from 8 on; the one behind the last shared one leaks
    for mask in (None, halves.mask):
        curve = compute_fsc(*halves.unfiltered, mask).correlation[beyond]
        # Independent coefficients of a shell number some hundred: the mean of eight shells is known to 0.03.
        assert abs(curve.mean()) < 0.12 and curve.max() < 0.35, mask is None
    assert result.fsc.corrected.crossing(0.143) < SHARED + 3


def test_no_pose_of_noise_is_confident_and_that_is_said(result: ReconstructionResult) -> None:
    assert result.fraction_confident == 0
    assert any("no evidence" in warning for warning in result.warnings)
    assert read_map(result.folder / "map.mrc").box_size == BOX


def test_the_molecule_is_not_found_in_noise_and_no_confidence_is_written(result: ReconstructionResult) -> None:
    assert result.verdict.call == "not found" and result.verdict.advice
    confidence = read_blocks(result.folder / "particles.star")["particles"]["cryoaiConfidence"].to_numpy()
    # None is high, and the order is still there.
    assert confidence.max() <= 0.25 < CONFIDENT and len(np.unique(confidence)) > 10
    record = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["verdict"] == "not found" and record["verdict_reasons"] == list(result.verdict.reasons)
    assert record["evidence_own_shells"] < 3 and record["evidence_poses"] == result.evidence.poses


def test_not_found_is_said_and_is_no_error(noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = tmp_path / "options.yaml"
    options.write_text(yaml.safe_dump(config("search").model_dump(mode="json")))
    try:
        main(["reconstruct", str(noise), "-o", str(tmp_path / "out"), "--config", str(options)])
    except SystemExit as stop:
        assert not stop.code
    said = capsys.readouterr().out
    assert said.split()[:3] == ["verdict", "not", "found"]
    assert "Why not found:" in said and "What would help:" in said and "more particles" in said
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert '<div class="box verdict not-found"' in page and "What would help" in page
    assert page.index('not-found"') < page.index('class="headline"')
