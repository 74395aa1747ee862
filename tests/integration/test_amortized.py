"""Encoders in whole runs: trained from scratch, trained on a bootstrap's map, and posing new particles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import torch
from star_blocks import read_blocks, write_blocks

from cryoai import (
    InputError,
    Pose,
    ReconstructConfig,
    SimulationSettings,
    infer,
    make_phantom,
    read_particles,
    reconstruct,
)
from cryoai.amortized.encoder_file import TrainedEncoder, read_encoder, write_encoder
from cryoai.amortized.on_a_map import uses_encoder
from cryoai.cli import main
from cryoai.geometry.fourier import resample
from cryoai.geometry.rotations import random_rotations, rotation_angle
from cryoai.geometry.so3_grid import make_so3_grid
from cryoai.io import StackWriter
from cryoai.metrics.pose_error import compute_pose_errors
from cryoai.particles.dataset import ParticleData
from cryoai.particles.write_simulation import write_simulation
from cryoai.physics.noise import estimate_shell_power
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.poses.settings import EncoderSettings
from cryoai.reconstruction.infer import InferredPoses
from cryoai.reconstruction.result import ReconstructionResult
from cryoai.report import write_report
from cryoai.run.config import BootstrapSettings, RefineSettings
from cryoai.run.progress import Advance, Progress
from cryoai.training.settings import HybridSettings, TrainingSettings

OUTPUTS = (
    "map.mrc", "half1.mrc", "half2.mrc", "mask.mrc", "particles.star", "fsc.csv", "metrics.jsonl", "config.yaml",
)  # fmt: skip
COLUMNS = ("cryoaiConfidence", "cryoaiRotationStdDeg", "cryoaiTranslationStdAngst")
MIRROR = torch.diag(torch.tensor([1.0, 1.0, -1.0]))

pytestmark = pytest.mark.usefixtures("no_near_symmetries")


class Listening(Progress):
    """Keeps what it is told; raises in the middle of a step if asked, as a killed process would stop there."""

    def __init__(self, stop_in: str = "nothing", stop_after: int = 0) -> None:
        self.stop_in, self.stop_after = stop_in, stop_after
        self.steps: list[str] = []
        self.done: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []

    @contextmanager
    def step(self, name: str, total: int) -> Iterator[Advance]:
        self.steps.append(name)

        def advance(done: int, note: str = "") -> None:
            self.notes.append(note)
            self.done.append((name, done))
            if self.stop_in in name and done >= self.stop_after:
                raise KeyboardInterrupt

        yield advance

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(scope="module")
def config() -> ReconstructConfig:
    """Every step, few of each."""
    return ReconstructConfig(
        method="amortized",
        seeds=1,
        device="cpu",
        bootstrap=BootstrapSettings(steps=40, batch_size=100, first_radius=5, last_radius=6),
        encoder=EncoderSettings(hypotheses=400, widths=(8, 16, 16), box_size=16),
        amortize=TrainingSettings(
            steps=24, batch_size=32, last_radius=9, march_steps=16, sampling_steps=6, encoder_start=6,
            own_proposals_start=12, max_shift_box_lengths=0.08, volume_width=32, points_per_step=4096,
            save_every=10,
        ),
        hybrid=HybridSettings(simulated_steps=10, real_steps=5, batch_size=32),
        refine=RefineSettings(max_rounds=0, search_radius=6),
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(
    tiny: Path, config: ReconstructConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ReconstructionResult, Listening]:
    """A run of ``--method amortized``, and what it said."""
    progress = Listening()
    folder = tmp_path_factory.mktemp("amortized")
    return reconstruct(tiny / "particles.star", folder, config, progress=progress), progress


def assert_same_results(one: Path, other: Path) -> None:
    for name in OUTPUTS[:4]:
        with mrcfile.open(one / name) as first, mrcfile.open(other / name) as second:
            np.testing.assert_array_equal(first.data, second.data)
    first, second = ((folder / "particles.star").read_text().split("data_particles")[1] for folder in (one, other))
    assert first == second


def table_of(star: Path) -> pd.DataFrame:
    return read_blocks(star)["particles"]


# From scratch


def test_amortized_leaves_all_outputs(finished: tuple[ReconstructionResult, Listening], tmp_path: Path) -> None:
    result, progress = finished
    assert all((result.folder / name).stat().st_size > 0 for name in OUTPUTS)
    trained = read_encoder(result.folder / "encoder.pt")
    assert (trained.box_size, trained.pixel_size) == (24, 10.0)
    assert torch.equal(trained.noise_power, result.state.noise_power) and not trained.mirrored
    table = np.genfromtxt(result.folder / "training.csv", delimiter=",", names=True, dtype=None, encoding="utf8")
    assert table["step"].tolist() == list(range(24))
    assert np.isfinite(table["volume_loss"]).all() and np.isfinite(table["encoder_loss"][6:]).all()
    assert np.isnan(table["encoder_loss"][:6]).all() and (np.diff(table["radius"]) >= 0).all()
    assert result.ab_initio is None and not result.rounds
    assert any("images/s" in note and "volume loss" in note for note in progress.notes)
    write_report(result, tmp_path / "report.html")
    report = (tmp_path / "report.html").read_text()
    assert "Training" in report and "trained from scratch once" in report


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def test_metrics_are_json(finished: tuple[ReconstructionResult, Listening]) -> None:
    lines = (finished[0].folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse_constant) for line in lines]
    assert [record["step"] for record in records] == ["training", "result"]
    assert records[0]["steps"] == 24 and records[0]["skipped"] == 0
    views = finished[0].views
    assert [records[1][f"views_{name}"] for name in ("evenness", "emptiest_cone_deg", "filled_share", "scf")] == [
        views.evenness, views.emptiest_cone_deg, views.filled_share, views.scf_star,
    ]  # fmt: skip


def test_poses_that_were_not_refined_in_halves_are_warned_of(
    finished: tuple[ReconstructionResult, Listening],
) -> None:
    result, progress = finished
    assert any("too good" in warning for warning in result.warnings)
    assert list(result.warnings) == progress.warnings


@pytest.mark.parametrize(("step", "after", "finished_steps"), [("Training", 15, 10), ("Final", 0, 24)])
def test_a_run_killed_in_training_resumes_to_the_same_result(
    tiny: Path, tmp_path: Path, config: ReconstructConfig, finished: tuple[ReconstructionResult, Listening],
    step: str, after: int, finished_steps: int,
) -> None:  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        reconstruct(tiny / "particles.star", tmp_path, config, progress=Listening(step, after))
    saved = torch.load(tmp_path / "checkpoint" / "training.pt", weights_only=True)
    assert saved["values"]["step"] == finished_steps
    assert not any((tmp_path / name).exists() for name in (*OUTPUTS[:7], "encoder.pt", "training.csv"))
    progress = Listening()
    result = reconstruct(tiny / "particles.star", tmp_path, config, resume=True, progress=progress)
    # It goes on where it was saved, and does not begin again.
    trained = [done for name, done in progress.done if "Training" in name]
    assert trained == list(range(finished_steps + 1, 25))
    assert_same_results(finished[0].folder, tmp_path)
    assert result.warnings == finished[0].warnings
    losses = [[(r.step, r.volume_loss) for r in run.training] for run in (result, finished[0])]
    assert losses[0] == losses[1]
    one, other = (read_encoder(folder / "encoder.pt") for folder in (tmp_path, finished[0].folder))
    weights = other.encoder.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.encoder.state_dict().items())


def test_training_on_a_part_of_the_particles_poses_all(
    tiny: Path, tmp_path: Path, config: ReconstructConfig
) -> None:
    few = config.model_copy(update={"amortize": config.amortize.model_copy(update={"images": 80, "steps": 8})})
    progress = Listening()
    result = reconstruct(tiny / "particles.star", tmp_path, few, progress=progress)
    assert len(result.state.used) == 200 and len(result.training) == 8
    assert not (result.state.rotation == torch.eye(3)).flatten(1).all(1).any()
    assert any("80" in name and "train" in name for name in progress.steps)


@pytest.mark.parametrize("images", [80, 1000])
def test_a_stack_without_a_usable_image_is_refused_before_training(
    tiny: Path, tmp_path: Path, config: ReconstructConfig, images: int
) -> None:
    star = write_particles(tmp_path / "in", tiny / "particles.star", np.full((200, 24, 24), 3.0), pixel_size=10.0)
    few = config.model_copy(update={"amortize": config.amortize.model_copy(update={"images": images})})
    with pytest.raises(InputError, match="0 usable images"):
        reconstruct(star, tmp_path / "out", few)
    assert not (tmp_path / "out" / "map.mrc").exists()


@pytest.mark.slow
def test_an_encoder_trained_from_scratch_poses_seen_and_unseen_particles(tmp_path: Path) -> None:
    """500 particles at 10 dB; no map, no pose and no bootstrap to start from."""
    for name, count, seed in (("seen", 500, 10), ("unseen", 100, 11)):
        simulation = SimulationSettings(count, snr_db=10.0, shift_sigma=3.0, seed=seed)
        write_simulation(make_phantom(24, 10.0), simulation, tmp_path / name)
    config = ReconstructConfig(
        method="amortized",
        encoder=EncoderSettings(hypotheses=600, widths=(16, 32, 64), box_size=16, keep=100),
        amortize=TrainingSettings(
            steps=130, batch_size=64, first_radius=3, last_radius=8, march_steps=60, search_radius=8,
            max_shift_box_lengths=0.05, sampling_steps=50, encoder_start=30, own_proposals_start=95,
            volume_width=64, points_per_step=6000,
        ),
        refine=RefineSettings(max_rounds=1, search_radius=6),
    )  # fmt: skip
    run = tmp_path / "run"
    reconstruct(tmp_path / "seen" / "particles.star", run, config)
    errors = []
    for star, poses in (
        ("seen", read_particles(run / "particles.star").pose),
        ("unseen", pose_of(infer(tmp_path / "unseen" / "particles.star", run))),
    ):
        true = read_particles(tmp_path / star / "particles.star").pose
        assert poses is not None and true is not None
        errors.append(compute_pose_errors(poses, true, pixel_size=10.0))
    seen, unseen = errors
    # The best that a grid without offsets could do.
    rotation = random_rotations(500, torch.Generator().manual_seed(0))
    trace = (rotation.flatten(1) @ make_so3_grid(600).flatten(1).T).amax(1)
    of_the_grid = float((6 - 2 * trace).median())
    assert seen.rotation_error_median < 0.1 * of_the_grid
    assert seen.fraction_rotation_above_10deg < 0.2
    assert seen.translation_error_median_px2 < 0.05
    # New particles are posed in the frame of the run's map.
    assert unseen.rotation_error_median < 0.2 * of_the_grid
    assert unseen.hand == seen.hand
    np.testing.assert_allclose(unseen.rotation, seen.rotation, atol=0.05)


# After a bootstrap


@pytest.fixture(scope="module")
def searched(tiny: Path, config: ReconstructConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    reconstruct(tiny / "particles.star", folder, hybrid(config, method="search"))
    return folder


def hybrid(config: ReconstructConfig, method: str = "hybrid", **options: object) -> ReconstructConfig:
    changed = {
        "method": method,
        "hybrid": config.hybrid.model_copy(update=options),
        "refine": config.refine.model_copy(update={"max_rounds": 1}),
    }
    return config.model_copy(update=changed)


def test_hybrid_below_its_fewest_particles_is_the_search(
    tiny: Path, tmp_path: Path, config: ReconstructConfig, searched: Path
) -> None:
    result = reconstruct(tiny / "particles.star", tmp_path, hybrid(config, fewest_particles=201))
    assert_same_results(searched, tmp_path)
    assert result.encoder is None and not result.training
    assert not (tmp_path / "encoder.pt").exists() and not (tmp_path / "training.csv").exists()


@pytest.mark.parametrize(
    ("particles", "device", "options", "expected"),
    [
        (699_999, "cpu", {}, False),
        (700_000, "cpu", {}, True),
        (10_000_000, "cuda", {}, False),
        (100, "cuda", {"encoder": "always"}, True),
        (100, "cuda", {"fewest_particles": 100}, True),
        (10_000_000, "cpu", {"encoder": "never"}, False),
    ],
)
def test_hybrid_chooses_by_number_and_device(particles: int, device: str, options: dict, expected: bool) -> None:
    config = ReconstructConfig(hybrid=HybridSettings(**options))
    assert uses_encoder(config, particles, torch.device(device)) is expected


@pytest.mark.parametrize("method", ["amortized", "hybrid"])
def test_training_in_plain_torch_and_bfloat16(
    tiny: Path, tmp_path: Path, config: ReconstructConfig, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """What a GPU would run: no fused kernels, and autocast around all of a step."""
    for module in ("physics.insertion", "poses.local"):
        monkeypatch.setattr(f"cryoai.{module}.runs_kernels", lambda device: False)
    low = config.encoder.model_copy(update={"precision": "bf16-mixed"})
    options = hybrid(config.model_copy(update={"encoder": low}), method, encoder="always")
    result = reconstruct(tiny / "particles.star", tmp_path, options)
    assert np.isfinite([record.encoder_loss for record in result.training[6:]]).all()
    assert not any(record.skipped for record in result.training)
    assert np.isfinite(result.density).all()


@pytest.mark.parametrize("options", [{"encoder": "always"}, {"fewest_particles": 200}])
def test_hybrid_with_an_encoder_writes_it(
    tiny: Path, tmp_path: Path, config: ReconstructConfig, options: dict
) -> None:
    progress = Listening()
    result = reconstruct(tiny / "particles.star", tmp_path, hybrid(config, **options), progress=progress)
    trained = read_encoder(tmp_path / "encoder.pt")
    assert (trained.box_size, trained.encoder.settings.keep) == (24, 32) and result.ab_initio is not None
    assert len(result.training) == 15 and len((tmp_path / "training.csv").read_text().splitlines()) == 16
    assert any("encoder" in name for name in progress.steps) and any("encoder loss" in n for n in progress.notes)
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse_constant)
    found = infer(tiny / "particles.star", tmp_path)
    assert bool(found.usable.all()) and torch.isfinite(found.rotation).all()


def test_an_encoder_of_an_earlier_run_does_not_stay(
    tiny: Path, tmp_path: Path, finished: tuple[ReconstructionResult, Listening]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished[0].folder, folder)
    reconstruct(tiny / "particles.star", folder, ReconstructConfig(known_poses=True), overwrite=True)
    assert not (folder / "encoder.pt").exists() and not (folder / "training.csv").exists()


# Posing new particles


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map from known poses, and an encoder that proposes every rotation of its grid: the best pose is found.

    What `infer` makes of an encoder's proposals can so be tested without training one.
    """
    root = tmp_path_factory.mktemp("run")
    write_simulation(
        make_phantom(32, 8.0), SimulationSettings(400, snr_db=0.0, shift_sigma=4.0, seed=3), root / "in"
    )
    folder = root / "out"
    result = reconstruct(root / "in" / "particles.star", folder, ReconstructConfig(known_poses=True))
    particles = read_particles(root / "in" / "particles.star")
    data = ParticleData(particles, 8.0, 32, memory_limit=2**28, scratch=root)
    settings = EncoderSettings(hypotheses=1000, box_size=16, widths=(4, 4, 4), keep=1000)
    look = data.batch(np.arange(400))
    trained = TrainedEncoder(
        make_pose_encoder(settings, 256.0, 0).eval(), False, 32, 8.0, 10.0, result.state.noise_power,
        estimate_shell_power(look.images, look.disk),
    )  # fmt: skip
    write_encoder(trained, folder / "encoder.pt")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 particles that the run has not seen, in a box of twice the pixels and the same length."""
    folder = tmp_path_factory.mktemp("large")
    write_simulation(make_phantom(64, 4.0), SimulationSettings(60, snr_db=0.0, shift_sigma=2.0, seed=5), folder)
    return folder / "particles.star"


@pytest.fixture(scope="module")
def cropped(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same particles, Fourier cropped to the run's own box."""
    images = torch.from_numpy(read_images(large))
    small = resample(images, 32, 2).numpy()
    return write_particles(tmp_path_factory.mktemp("cropped"), large, small, pixel_size=8.0)


def read_images(star: Path) -> np.ndarray:
    with mrcfile.open(star.with_suffix(".mrcs")) as stack:
        return stack.data.copy()


def write_particles(folder: Path, like: Path, images: np.ndarray, pixel_size: float = 4.0) -> Path:
    """Other images with the metadata of a set."""
    folder.mkdir(exist_ok=True)
    blocks = read_blocks(like)
    blocks["optics"] = blocks["optics"].assign(rlnImagePixelSize=pixel_size, rlnImageSize=images.shape[-1])
    write_blocks(blocks, folder / "particles.star")
    with StackWriter(folder / "particles.mrcs", len(images), images.shape[-1], pixel_size) as writer:
        writer.write(np.ascontiguousarray(images, np.float32))
    return folder / "particles.star"


def pose_of(found: InferredPoses) -> Pose:
    return Pose(found.rotation.numpy(), found.translation.numpy())


def share_of_same_poses(one: InferredPoses, other: InferredPoses, radians: float, angstroms: float) -> float:
    """A few particles whose hypotheses are all but equal may take another."""
    angle = rotation_angle(one.rotation, other.rotation)
    distance = (one.translation - other.translation).norm(dim=1)
    return float(((angle < radians) & (distance < angstroms)).float().mean())


@pytest.fixture(scope="module")
def found(run_folder: Path, cropped: Path) -> InferredPoses:
    return infer(cropped, run_folder)


def test_unseen_particles_get_their_poses(
    run_folder: Path, cropped: Path, found: InferredPoses, tmp_path: Path
) -> None:
    true = read_particles(cropped).pose
    assert true is not None
    errors = compute_pose_errors(pose_of(found), true, pixel_size=8.0)
    assert errors.rotation_error_median < 1e-3 and errors.fraction_rotation_above_10deg < 0.1
    assert errors.translation_error_median_px2 < 0.01
    # The map is in the frame of the true poses: nothing is turned or moved on the way.
    np.testing.assert_allclose(errors.rotation, np.eye(3), atol=0.02)
    assert found.warnings == () and bool(found.usable.all())
    # Standard deviations are of the size of the errors: θ² per axis is ‖·‖²_F / 6.
    actual = np.sqrt(np.median(errors.rotation_error) / 6)
    assert 0.5 < float(found.rotation_std.median()) / actual < 2.5

    rough = infer(cropped, run_folder, refine=False)
    rough_errors = compute_pose_errors(pose_of(rough), true, pixel_size=8.0)
    # The best of the grid's rotations, 25 degrees apart, as they are.
    assert 0.01 < rough_errors.rotation_error_median < 0.3
    assert float(rough.confidence[0]) >= 0 and bool(rough.usable.all())


def test_particles_that_the_encoder_misses_are_searched_for(
    run_folder: Path, cropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = read_particles(cropped).pose
    assert true is not None
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    trained = read_encoder(folder / "encoder.pt")
    trained.encoder.settings = trained.encoder.settings.model_copy(update={"keep": 300})
    write_encoder(trained, folder / "encoder.pt")
    searched = infer(cropped, folder)
    monkeypatch.setattr("cryoai.reconstruction.infer._DOUBTFUL", np.inf)
    alone = infer(cropped, folder)
    wrong = [
        compute_pose_errors(pose_of(poses), true, pixel_size=8.0).fraction_rotation_above_10deg
        for poses in (alone, searched)
    ]
    assert wrong[0] > 0.2 and wrong[1] < 0.05
    same = rotation_angle(alone.rotation, searched.rotation) < 1e-6
    assert bool((searched.confidence[~same] > alone.confidence[~same] - 1e-3).all())


def test_larger_boxes_of_the_same_length_are_cropped(run_folder: Path, large: Path, found: InferredPoses) -> None:
    assert share_of_same_poses(infer(large, run_folder), found, 0.02, 0.5) > 0.9


def test_the_scale_of_the_images_does_not_matter(
    run_folder: Path, large: Path, cropped: Path, found: InferredPoses, tmp_path: Path
) -> None:
    scaled = write_particles(tmp_path / "scaled", cropped, 7 * read_images(cropped) + 3, pixel_size=8.0)
    again = infer(scaled, run_folder)
    assert share_of_same_poses(again, found, 1e-3, 0.05) > 0.95
    torch.testing.assert_close(again.confidence, found.confidence, atol=0.02, rtol=0)


def test_pixel_size_in_place_of_the_files(run_folder: Path, large: Path, tmp_path: Path) -> None:
    wrong = write_particles(tmp_path / "wrong", large, read_images(large)[:, :, :], pixel_size=5.0)
    with pytest.raises(InputError, match=r"320\.0 Å wide \(64 px of 5 Å\).*256\.0 Å.*box of 51 px"):
        infer(wrong, run_folder)
    assert bool(infer(wrong, run_folder, pixel_size=4.0).usable.all())
    with pytest.raises(InputError, match="pixel_size"):
        infer(wrong, run_folder, pixel_size=-4.0)


def test_images_with_fewer_pixels_than_the_run_are_refused(run_folder: Path, large: Path, tmp_path: Path) -> None:
    small = resample(torch.from_numpy(read_images(large)), 24, 2).numpy()
    star = write_particles(tmp_path / "small", large, small, pixel_size=256 / 24)
    with pytest.raises(InputError, match=r"24 px, fewer than the 32 px.*at least 32 px"):
        infer(star, run_folder, tmp_path / "out.star")
    assert not (tmp_path / "out.star").exists()


def test_output_keeps_every_input_column(
    run_folder: Path, cropped: Path, found: InferredPoses, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = read_blocks(cropped)
    blocks["particles"]["rlnCoordinateX"] = np.arange(60) * 1.5
    blocks["particles"]["myOwnColumn"] = [f"name{i}" for i in range(60)]
    shutil.copytree(cropped.parent, tmp_path / "in")
    write_blocks(blocks, tmp_path / "in" / "particles.star")
    out = tmp_path / "new folder" / "posed.star"
    main(["infer", str(tmp_path / "in" / "particles.star"), "--run", str(run_folder), "-o", str(out)])
    said = capsys.readouterr().out
    assert "60 particles posed" in said and "images/s" in said
    before, after = blocks["particles"], table_of(out)
    assert list(after.columns[: len(before.columns)]) == list(before.columns)
    assert set(COLUMNS) <= set(after.columns) and len(after) == 60
    for name in ("rlnCoordinateX", "myOwnColumn", "rlnMicrographName", "rlnDefocusU", "rlnOpticsGroup"):
        assert after[name].tolist() == before[name].tolist()
    written = read_particles(out)
    assert written.pose is not None and written.stack_paths == (tmp_path / "in" / "particles.mrcs",)
    np.testing.assert_allclose(written.pose.rotation, found.rotation.numpy(), atol=1e-4)
    np.testing.assert_allclose(written.pose.translation, found.translation.numpy(), atol=1e-3)
    np.testing.assert_allclose(after["cryoaiConfidence"], found.confidence.numpy(), atol=1e-4)
    assert [path.name for path in out.parent.iterdir()] == ["posed.star"]


def test_images_that_cannot_be_used_keep_their_rows(run_folder: Path, cropped: Path, tmp_path: Path) -> None:
    images = read_images(cropped)
    images[4], images[17], images[18, 3, 3] = np.nan, 3.0, np.inf
    star = write_particles(tmp_path / "junk", cropped, images, pixel_size=8.0)
    out = tmp_path / "posed.star"
    found = infer(star, run_folder, out)
    assert np.flatnonzero(~found.usable).tolist() == [4, 17, 18]
    assert any("3 of 60 images" in warning for warning in found.warnings)
    table, given = table_of(out), table_of(star)
    assert len(table) == 60 and np.isfinite(table[list(COLUMNS)].to_numpy()).all()
    assert (table["cryoaiConfidence"].to_numpy()[[4, 17, 18]] == 0).all()
    assert (table["cryoaiRotationStdDeg"].to_numpy()[[4, 17, 18]] == 999).all()
    assert (np.delete(table["cryoaiConfidence"].to_numpy(), [4, 17, 18]) > 0.5).mean() > 0.9
    # Their rows keep the input's pose.
    np.testing.assert_allclose(table["rlnAngleTilt"].to_numpy()[4], given["rlnAngleTilt"].to_numpy()[4], atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan])
def test_nothing_but_unusable_images_is_refused(
    run_folder: Path, cropped: Path, tmp_path: Path, value: float
) -> None:
    star = write_particles(tmp_path / "in", cropped, np.full((60, 32, 32), value), pixel_size=8.0)
    with pytest.raises(InputError, match="none of the images can be used"):
        infer(star, run_folder, tmp_path / "out.star")
    assert not (tmp_path / "out.star").exists()


def test_black_protein_is_inverted(run_folder: Path, cropped: Path, found: InferredPoses, tmp_path: Path) -> None:
    star = write_particles(tmp_path / "black", cropped, -read_images(cropped), pixel_size=8.0)
    assert share_of_same_poses(infer(star, run_folder, invert_contrast="yes"), found, 1e-3, 0.05) > 0.95


def test_noise_is_not_posed_with_confidence(run_folder: Path, cropped: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(60, 32, 32))
    found = infer(write_particles(tmp_path / "noise", cropped, noise, pixel_size=8.0), run_folder)
    assert float((found.confidence > 0.5).float().mean()) < 0.5


def test_a_mirrored_run_poses_in_the_frame_of_its_mirrored_map(
    tiny: Path, tmp_path: Path, config: ReconstructConfig, finished: tuple[ReconstructionResult, Listening]
) -> None:
    folder = tmp_path / "mirrored"
    shutil.copytree(finished[0].folder, folder)
    progress = Listening()
    inverted = config.model_copy(update={"invert_hand": True})
    reconstruct(tiny / "particles.star", folder, inverted, resume=True, progress=progress)
    assert read_encoder(folder / "encoder.pt").mirrored
    # The map's own poses, and new ones.
    one, other = (read_particles(f / "particles.star").pose for f in (finished[0].folder, folder))
    assert one is not None and other is not None
    mirror = MIRROR.numpy()
    np.testing.assert_allclose(other.rotation, mirror @ one.rotation @ mirror, atol=1e-4)
    plain = infer(tiny / "particles.star", finished[0].folder)
    mirrored = infer(tiny / "particles.star", folder)
    expected = replace(plain, rotation=MIRROR @ plain.rotation @ MIRROR)
    assert share_of_same_poses(mirrored, expected, 0.02, 0.5) > 0.95
    assert share_of_same_poses(mirrored, plain, 0.02, 0.5) < 0.1


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a refused command says: one sentence and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and len(message.strip().splitlines()) == 1 and "Traceback" not in message
    return message


def test_runs_that_cannot_pose_are_refused(
    run_folder: Path, cropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("infer", cropped, "-o", tmp_path / "out.star", "--run")
    assert "not a folder" in refusal(capsys, *words, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    message = refusal(capsys, *words, tmp_path / "empty")
    assert "encoder.pt" in message and "--method amortized" in message and "--encoder always" in message
    shutil.copytree(run_folder, tmp_path / "run")
    encoder = tmp_path / "run" / "encoder.pt"
    encoder.write_bytes(encoder.read_bytes()[:5000])
    message = refusal(capsys, *words, tmp_path / "run")
    assert "encoder.pt" in message and "damaged" in message
    shutil.copy(run_folder / "encoder.pt", encoder)
    shutil.copy(cropped.parents[1] / "large0" / "true_map.mrc", tmp_path / "run" / "map.mrc")
    assert "64 voxels" in refusal(capsys, *words, tmp_path / "run")
    (tmp_path / "run" / "map.mrc").unlink()
    assert "map.mrc" in refusal(capsys, *words, tmp_path / "run")
    assert not (tmp_path / "out.star").exists()


def test_existing_files_are_not_replaced_by_mistake(
    run_folder: Path, cropped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cropped.parent, tmp_path / "in")
    star, out = tmp_path / "in" / "particles.star", tmp_path / "out.star"
    out.write_text("mine")
    words = ("infer", star, "--run", run_folder, "--quiet", "-o")
    assert "--overwrite" in refusal(capsys, *words, out) and out.read_text() == "mine"
    assert ".star" in refusal(capsys, *words, tmp_path / "out.csv")
    before = star.read_bytes()
    assert "another -o" in refusal(capsys, *words, star, "--overwrite")
    assert star.read_bytes() == before
    main([str(word) for word in (*words, out, "--overwrite")])
    assert len(table_of(out)) == 60 and capsys.readouterr() == ("", "")


def test_a_device_that_is_not_there_is_refused(
    run_folder: Path, cropped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device cuda"):
        infer(cropped, run_folder, device="cuda")
