"""The pipeline on small simulated sets, through its public function."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import mrcfile
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from star_blocks import read_blocks

from cryoai import (
    InputError,
    ReconstructConfig,
    evaluate_reconstruction,
    read_map,
    read_particles,
    reconstruct,
)
from cryoai.cli.reconstruct import print_result
from cryoai.geometry.fourier import full_radius, make_fourier_disk, resample
from cryoai.geometry.rotations import rotation_angle
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.io import StackWriter
from cryoai.metrics.alignment import MapAlignment, mirror_rotation, mirror_volume
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.dataset import ParticleData
from cryoai.refinement.masks import lowpass
from cryoai.refinement.mates import Mates
from cryoai.refinement.poses import reconstruct_halves
from cryoai.report import write_report
from cryoai.run.config import BootstrapSettings, RefineSettings
from cryoai.run.progress import Advance, Progress

pytestmark = pytest.mark.usefixtures("no_near_symmetries")

MAPS = ("map.mrc", "half1.mrc", "half2.mrc", "mask.mrc")


class StopAfter(Progress):
    """Raises when a step begins, as a killed process would stop there."""

    def __init__(self, step: str) -> None:
        self.name = step
        self.messages: list[str] = []

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Advance]:
        if self.name in name:
            raise KeyboardInterrupt
        yield lambda done, note="": None

    def say(self, message: str) -> None:
        self.messages.append(message)


@pytest.fixture(scope="module")
def finished(
    no_near_symmetries: None, tiny: Path, quick_config: ReconstructConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a whole run of `tiny`."""
    folder = tmp_path_factory.mktemp("finished")
    reconstruct(tiny / "particles.star", folder, quick_config)
    return folder


def test_killed_run_resumes_to_the_same_result(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, finished: Path
) -> None:
    stack = tiny / "particles.star"
    for step in ("start 2", "Posing", "round 2: half-maps"):
        with pytest.raises(KeyboardInterrupt):
            reconstruct(stack, tmp_path / "killed", quick_config, resume=True, progress=StopAfter(step))
        assert not (tmp_path / "killed" / "map.mrc").exists()
    reconstruct(stack, tmp_path / "killed", quick_config, resume=True)
    for name in MAPS:
        with mrcfile.open(finished / name) as one, mrcfile.open(tmp_path / "killed" / name) as other:
            np.testing.assert_array_equal(one.data, other.data)
    assert (finished / "particles.star").read_text().split("data_particles")[1] == (
        tmp_path / "killed" / "particles.star"
    ).read_text().split("data_particles")[1]


def test_resume_refuses_other_options(tiny: Path, tmp_path: Path, quick_config: ReconstructConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        reconstruct(tiny / "particles.star", tmp_path, quick_config, resume=True, progress=StopAfter("Posing"))
    other = quick_config.model_copy(update={"seed": 7})
    with pytest.raises(InputError, match="other options"):
        reconstruct(tiny / "particles.star", tmp_path, other, resume=True)


def test_two_starts_that_agree_are_enough(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryoai.ab_initio.agreement.AGREEMENT_OF_SHELLS", -0.99)
    result = reconstruct(tiny / "particles.star", tmp_path / "out", quick_config.model_copy(update={"seeds": 5}))
    assert result.ab_initio is not None and len(result.ab_initio.likelihoods) == 2


def test_more_starts_can_be_added_to_a_run(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the program advises where starts disagree, as these are taken to."""
    monkeypatch.setattr("cryoai.ab_initio.agreement.AGREEMENT_OF_SHELLS", 1.5)
    stack = tiny / "particles.star"
    first = reconstruct(stack, tmp_path / "out", quick_config)
    assert first.ab_initio is not None
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "checkpoint").glob("bootstrap_*.pt")}
    more = quick_config.model_copy(update={"seeds": 3})
    second = reconstruct(stack, tmp_path / "out", more, resume=True)
    assert second.ab_initio is not None and len(second.ab_initio.likelihoods) == 3
    assert second.ab_initio.likelihoods[:2] == first.ab_initio.likelihoods
    for name, time in done.items():
        assert (tmp_path / "out" / "checkpoint" / name).stat().st_mtime_ns == time
    # The same as if all had been asked for at once.
    at_once = reconstruct(stack, tmp_path / "at once", more)
    np.testing.assert_array_equal(second.density, at_once.density)


def test_the_map_is_made_of_the_poses_that_are_written(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last step sends particles to mates of their poses."""
    turn = Rotation.from_rotvec([0, 0, np.pi]).as_matrix()
    mate = MapAlignment(turn, np.zeros(3), False, 0.9)
    monkeypatch.setattr("cryoai.refinement.rounds.find_mates", lambda halves: Mates((mate,)))
    result = reconstruct(tiny / "particles.star", tmp_path / "out", quick_config)
    monkeypatch.undo()
    data = ParticleData(read_particles(tiny / "particles.star"), 10.0, 24, memory_limit=2**28, scratch=tmp_path)
    again = reconstruct_halves(data, result.state, full_radius(24), None)
    data.close()
    for one, other in zip(result.halves.unfiltered, again.unfiltered, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_that_images_leave_open_is_settled_by_the_map(
    tiny: Path, tmp_path: Path, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "particles.star").write_text((tiny / "particles.star").read_text())
    with mrcfile.open(tiny / "particles.mrcs") as stack:
        assert stack.data is not None
        images = sign * stack.data
    with StackWriter(folder / "particles.mrcs", len(images), 24, 10.0) as writer:
        writer.write(images)
    config = ReconstructConfig(known_poses=True)
    sure = reconstruct(folder / "particles.star", tmp_path / "sure", config)
    monkeypatch.setattr("cryoai.particles.judge.skew_is_sure", lambda skew, error: False)
    progress = StopAfter("never")
    unsure = reconstruct(folder / "particles.star", tmp_path / "unsure", config, progress=progress)
    colour = "white" if sign > 0 else "black"
    assert any(f"Protein is {colour}" in message and "map shows" in message for message in progress.messages)
    scale = np.abs(sure.density).max()
    for one, other in ((sure.density, unsure.density), (sure.halves.wiener_map(), unsure.halves.wiener_map())):
        np.testing.assert_allclose(one, other, atol=1e-4 * scale)
    np.testing.assert_allclose(read_map(tmp_path / "unsure" / "map.mrc").density, sure.density, atol=1e-4 * scale)


def test_damaged_checkpoint_is_refused(tiny: Path, tmp_path: Path, quick_config: ReconstructConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        reconstruct(tiny / "particles.star", tmp_path, quick_config, resume=True, progress=StopAfter("start 2"))
    (tmp_path / "checkpoint" / "bootstrap_01.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="damaged"):
        reconstruct(tiny / "particles.star", tmp_path, quick_config, resume=True)


def test_scratch_file_gives_the_same_result(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into memory lies in a file that is gone however the run ends."""
    opened: list[IO[bytes]] = []
    make = tempfile.TemporaryFile

    def note(dir: Path) -> IO[bytes]:
        assert dir == tmp_path
        opened.append(make(dir=dir))
        return opened[-1]

    sizes: list[int] = []

    class Sizes(Progress):
        @contextmanager
        def step(self, name: str, total: int) -> Iterator[Advance]:
            if name == "Final half-maps":
                sizes.extend(os.fstat(file.fileno()).st_size for file in opened)
            yield lambda done, note="": None

    monkeypatch.setattr("cryoai.particles.cache.tempfile.TemporaryFile", note)
    config = quick_config.model_copy(update={"cache_gib": 0.0})
    reconstruct(tiny / "particles.star", tmp_path, config, progress=Sizes())
    assert sizes == [200 * len(make_fourier_disk(24)) * np.dtype(np.complex64).itemsize]
    assert opened[0].closed
    # Neither the file nor anything else is left that a run in memory would not leave.
    assert names_in(tmp_path) == names_in(finished)
    np.testing.assert_array_equal(read_map(finished / "map.mrc").density, read_map(tmp_path / "map.mrc").density)


def names_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_a_good_run_says_that_the_molecule_was_found(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing, in few steps; in the result, in metrics.jsonl, in the terminal and at the top of the report."""
    config = ReconstructConfig(
        seeds=2, device="cpu", max_particles=600,
        bootstrap=BootstrapSettings(steps=60, batch_size=100, first_radius=6, last_radius=8),
        refine=RefineSettings(max_rounds=3, first_search_radius=8, searches=()),
    )  # fmt: skip
    result = reconstruct(simulated / "particles.star", tmp_path, config)
    verdict = result.verdict
    assert verdict.call == "found" and not verdict.advice
    assert result.evidence.view_share > 0.8
    assert any("all 2 starts" in reason for reason in verdict.reasons)
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["verdict"] == "found" and record["verdict_reasons"] == list(verdict.reasons)
    assert record["evidence_starts_agreeing"] == 2 and record["evidence_fit_ratio"] > 0.9
    # What was measured is not lowered.
    assert record["fraction_confident"] == record["evidence_fraction_confident"] > 0.5
    write_report(result, result.folder / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<div class="box verdict found"' in page and "What would help" not in page
    print_result(result)
    assert capsys.readouterr().out.split()[:2] == ["verdict", "found"]


def test_known_poses_give_the_true_map(simulated: Path, tmp_path: Path) -> None:
    result = reconstruct(simulated / "particles.star", tmp_path, ReconstructConfig(known_poses=True))
    assert result.ab_initio is None and not result.rounds
    evaluation = evaluate_reconstruction(
        estimated_map=read_map(tmp_path / "map.mrc"), true_map=read_map(simulated / "true_map.mrc")
    )
    assert evaluation.fsc is not None and evaluation.alignment is not None
    assert evaluation.fsc.resolution_px(0.5) < 2.1
    assert not evaluation.alignment.mirrored
    np.testing.assert_allclose(evaluation.alignment.rotation, np.eye(3), atol=0.01)
    np.testing.assert_allclose(evaluation.alignment.shift, 0, atol=0.1)


def test_cropping_the_box_keeps_the_molecule(simulated: Path, tmp_path: Path) -> None:
    config = ReconstructConfig(known_poses=True, box_size=20)
    result = reconstruct(simulated / "particles.star", tmp_path, config)
    assert result.density.shape == (20, 20, 20)
    assert result.voxel_size == pytest.approx(8.0 * 32 / 20)
    # Nothing is aligned: the map must lie where the true one does.
    sphere = make_soft_sphere(20)
    truth = resample(torch.from_numpy(read_map(simulated / "true_map.mrc").density.copy()), 20, 3)
    curve = compute_fsc(torch.from_numpy(result.density) * sphere, truth * sphere, voxel_size=result.voxel_size)
    assert curve.resolution_px(0.5) < 2.3


def test_invert_hand_mirrors_map_and_poses(tiny: Path, tmp_path: Path, quick_config: ReconstructConfig) -> None:
    config = quick_config.model_copy(update={"known_poses": True})
    plain = reconstruct(tiny / "particles.star", tmp_path / "plain", config)
    mirrored = reconstruct(
        tiny / "particles.star", tmp_path / "mirrored", config.model_copy(update={"invert_hand": True})
    )
    expected = mirror_volume(torch.from_numpy(plain.density)).numpy()
    np.testing.assert_allclose(mirrored.density, expected, atol=1e-6 * np.abs(expected).max())
    poses = [read_particles(tmp_path / name / "particles.star").pose for name in ("plain", "mirrored")]
    np.testing.assert_allclose(poses[1].rotation, mirror_rotation(poses[0].rotation), atol=1e-6)
    np.testing.assert_allclose(poses[1].translation, poses[0].translation, atol=1e-6)


@pytest.mark.parametrize("invert_hand", [False, True])
def test_missing_views_are_told(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, invert_hand: bool
) -> None:
    """All particles are seen within 10° of one axis: the map is smeared along it, in the hand that is written."""
    particles = read_particles(tiny / "particles.star")
    assert particles.pose is not None
    rng = np.random.default_rng(0)
    towards = Rotation.from_rotvec([0, np.arcsin(0.6), 0])  # z to (0.6, 0, 0.8)
    angles = np.stack((rng.uniform(0, 360, 200), rng.uniform(0, 10, 200), rng.uniform(0, 360, 200)), 1)
    rotation = (towards * Rotation.from_euler("ZYZ", angles, degrees=True)).as_matrix()
    particles = dataclasses.replace(particles, pose=dataclasses.replace(particles.pose, rotation=rotation))
    config = quick_config.model_copy(update={"known_poses": True, "invert_hand": invert_hand})
    result = reconstruct(particles, tmp_path, config)
    assert result.views.is_lacking and result.views.emptiest_cone_deg > 70
    expected = [-0.6, 0, 0.8] if invert_hand else [0.6, 0, 0.8]
    np.testing.assert_allclose(result.views.weakest_axis, expected, atol=0.05)
    assert [text for text in result.warnings if "views are missing" in text] == [result.views.warning()]
    write_report(result, result.folder / "report.html")
    assert "Views are missing" in (tmp_path / "report.html").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["views_filled_share"] == result.views.filled_share < 0.5
    assert result.views.warning() in record["warnings"]
    assert result.verdict.call == record["verdict"] == "not found"
    assert result.verdict.reasons[0].startswith("views are missing: the emptiest cone is at")


def test_black_protein_is_noticed_and_inverted(simulated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "black"
    folder.mkdir()
    (folder / "particles.star").write_text((simulated / "particles.star").read_text())
    with mrcfile.open(simulated / "particles.mrcs") as stack, mrcfile.new(folder / "particles.mrcs") as black:
        black.set_data(-stack.data)
        black.voxel_size = 8.0
    config = ReconstructConfig(known_poses=True)
    progress = StopAfter("never")
    inverted = reconstruct(folder / "particles.star", tmp_path / "out", config, progress=progress)
    assert any("black" in message for message in progress.messages)
    white = reconstruct(simulated / "particles.star", tmp_path / "white", config)
    np.testing.assert_allclose(inverted.density, white.density, atol=1e-5 * np.abs(white.density).max())


def test_junk_images_are_named_and_keep_their_rows(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig
) -> None:
    folder = tmp_path / "junk"
    folder.mkdir()
    (folder / "particles.star").write_text((tiny / "particles.star").read_text())
    with mrcfile.open(tiny / "particles.mrcs") as stack:
        images = stack.data.copy()
    images[4] = np.nan
    images[17] = 3.0
    with StackWriter(folder / "particles.mrcs", len(images), 24, 10.0) as writer:
        writer.write(images)
    progress = StopAfter("never")
    result = reconstruct(folder / "particles.star", tmp_path / "out", quick_config, progress=progress)
    assert any("2 of 200" in message and "5, 18" in message for message in progress.messages)
    assert len(result.state.used) == 198
    table = read_blocks(tmp_path / "out" / "particles.star")["particles"]
    assert len(table) == 200
    assert (table["cryoaiConfidence"].to_numpy()[[4, 17]] == 0).all()
    assert np.isfinite(result.density).all()


def test_output_star_keeps_every_input_column(tiny: Path, finished: Path) -> None:
    before = read_blocks(tiny / "particles.star")["particles"]
    after = read_blocks(finished / "particles.star")["particles"]
    assert set(before.columns) <= set(after.columns)
    assert set(after["rlnRandomSubset"]) == {1, 2}
    np.testing.assert_allclose(after["rlnDefocusU"], before["rlnDefocusU"])


def test_half_sets_of_the_input_are_kept(tiny: Path, tmp_path: Path) -> None:
    particles = read_particles(tiny / "particles.star")
    subset = np.tile([1, 2, 2, 1], 50)
    particles = dataclasses.replace(particles, random_subset=subset)
    result = reconstruct(particles, tmp_path, ReconstructConfig(known_poses=True))
    np.testing.assert_array_equal(result.state.half, subset - 1)


def test_halves_that_never_meet_in_a_chunk(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A STAR file sorted by half-set gives chunks in which one half is absent."""
    particles = read_particles(tiny / "particles.star")
    mixed = dataclasses.replace(particles, random_subset=np.tile([1, 2], 100))
    assert mixed.random_subset is not None
    order = np.argsort(mixed.random_subset, kind="stable")
    whole = reconstruct(mixed, tmp_path / "mixed", ReconstructConfig(known_poses=True))
    monkeypatch.setattr("cryoai.refinement.map_particles.particles_at_once", lambda data: 50)
    chunked = reconstruct(mixed.select(order), tmp_path / "sorted", ReconstructConfig(known_poses=True))
    np.testing.assert_allclose(chunked.density, whole.density, atol=1e-3 * np.abs(whole.density).max())


def test_one_half_set_alone_is_split_with_a_warning(tiny: Path, tmp_path: Path) -> None:
    particles = dataclasses.replace(read_particles(tiny / "particles.star"), random_subset=np.ones(200, int))
    result = reconstruct(particles, tmp_path, ReconstructConfig(known_poses=True))
    assert any("half" in warning for warning in result.warnings)
    assert np.bincount(result.state.half).tolist() == [100, 100]


def test_references_in_plain_torch_give_the_same_result(
    tiny: Path, tmp_path: Path, quick_config: ReconstructConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU would run: the pipeline without the fused kernels."""
    # The bootstrap draws poses: a draw that falls to the next pose by rounding makes another map in the end.
    changes = {"max_rounds": 1, "start_from_input_poses": True}
    config = quick_config.model_copy(update={"refine": quick_config.refine.model_copy(update=changes)})
    fused = reconstruct(tiny / "particles.star", tmp_path / "fused", config)
    for module in ("physics.insertion", "poses.local"):
        monkeypatch.setattr(f"cryoai.{module}.runs_kernels", lambda device: False)
    plain = reconstruct(tiny / "particles.star", tmp_path / "plain", config)
    # Sums in another order: some 1e-7 of each. Now and then a step of one particle is taken in one run alone.
    angle = rotation_angle(fused.state.rotation, plain.state.rotation)
    assert float(angle.median()) < 1e-5 and float(angle.max()) < 5e-3
    assert int((angle > 1e-4).sum()) <= 2
    moved = (plain.state.translation - fused.state.translation).abs().amax(1)
    assert float(moved.median()) < 1e-3 and float(moved.max()) < 0.5
    torch.testing.assert_close(plain.state.confidence, fused.state.confidence, atol=0.02, rtol=0)
    largest = np.abs(fused.density).max()
    np.testing.assert_allclose(plain.density, fused.density, atol=2e-3 * largest)
    for one, other in zip(plain.halves.unfiltered, fused.halves.unfiltered, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3 * float(other.abs().max()), rtol=0)


def test_real_ribosome_images_give_a_compact_particle(shared_data: Path, tmp_path: Path) -> None:
    """220 real tilt images of a few ribosomes at their published poses (one is not in the STAR file).

    The stack is binned 8 times, which its STAR file does not say.
    """
    star = shared_data / "particles" / "subtomo_ribosome_220x64" / "sta_testing_bin8.star"
    config = ReconstructConfig(known_poses=True, pixel_size=8 * 1.96)
    result = reconstruct(star, tmp_path, config)
    density = lowpass(result.halves.unfiltered[0] + result.halves.unfiltered[1], 14.0).numpy()
    axis = np.arange(64) - 32
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    spread = density[distance > 26].std()
    # A ribosome is 250 to 300 Å across: 8 px in radius here, and nothing around it.
    assert density[distance < 4].mean() > 3 * spread
    assert density[distance < 7].mean() > 2 * spread
    assert abs(density[(distance > 12) & (distance < 28)].mean()) < 0.3 * spread
