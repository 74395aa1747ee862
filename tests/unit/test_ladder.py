"""What the ladder concludes from its runs (benchmarks/ladder.py); the runs themselves take hours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scenes import Scene
from scipy.spatial.transform import Rotation

from cryoai.io import read_particles
from cryoai.metrics.alignment import MIRROR
from cryoai.metrics.pose_error import PoseErrors
from cryoai.types import Pose


@pytest.fixture
def rungs(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("ladder_rungs")


@pytest.fixture
def summary(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("ladder_summary")


@pytest.fixture
def truth(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("ladder_truth")


@pytest.fixture
def commands(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("commands")


@pytest.fixture
def harness(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("harness")


def line(kind: str = "run", snr: float = -10.0, seed: int = 0, px: float = 2.5, **other: Any) -> dict[str, Any]:
    """A line of the results; right beside a limit of 2.5 px."""
    return {
        "kind": kind, "molecule": "70S", "snr_db": snr, "images": 20_000, "seed": seed, "box": 64, "version": "a",
        "extra": {}, "fsc_0.5_px": px, "rotation_error_median": 0.001, "fraction_rotation_above_10deg": 0.01,
        "likelihood": {"truth": 7.5, "map": 7.25}, "starts": [5.0, 6.0], "verdict": "found", "seconds": 100.0,
        "peak_gib": 2.0, "fraction_above_0.5": 1.0, "confidence": [[0, 0, 0.0]] * 9 + [[100, 99, 0.98]],
        "rotation_inside": [68, 100], "translation_inside": [70, 100], "processor": "abacus", "threads": 2, **other,
    }  # fmt: skip


# What is climbed, and when it has been


def test_the_whole_ladder_is_about_a_hundred_runs_and_ends_with_what_may_be_out_of_reach(rungs: ModuleType) -> None:
    everything = rungs.plan(rungs.MOLECULES)
    main = [rung for rung in everything if rung.snr_db != rungs.DEEPER]
    assert len(main) == 6 * 3 * 3 + 2 * 2 * 3 * 3
    assert len(set(everything)) == len(everything) and everything[: len(main)] == main
    assert [rung.seed for rung in main[:54]] == [0] * 18 + [1] * 18 + [2] * 18
    assert {rung.molecule for rung in everything if rung.images != 20_000} == {"70S", "6VYB"}
    assert [rung.kinds for rung in main[17:19]] == [("limit", "run"), ("run",)]


def test_a_part_is_just_that_part(rungs: ModuleType) -> None:
    part = rungs.plan(["70S", "6VYB"], [-13.0], [20_000], [0, 2])
    assert [(rung.molecule, rung.snr_db, rung.images, rung.seed) for rung in part] == [
        ("70S", -13.0, 20_000, 0), ("6VYB", -13.0, 20_000, 0), ("70S", -13.0, 20_000, 2),
        ("6VYB", -13.0, 20_000, 2),
    ]  # fmt: skip


def test_a_rung_is_climbed_once_by_one_version_with_the_same_options_unless_it_failed(
    rungs: ModuleType, harness: ModuleType, tmp_path: Path
) -> None:
    results, rung = harness.Results(tmp_path / "ladder.jsonl"), rungs.Rung("70S", -13.0, 20_000, 1)
    extra = {"bootstrap.steps": 9}
    key = rung.key("run", "abc1234", extra)
    results.append({**key, "failed": "the disk is full"})
    assert not results.has(key)
    results.append({**key, "seconds": 1.0})
    assert results.has(key)
    for other in (
        rung.key("limit", "abc1234", extra), rung.key("run", "before", extra), rung.key("run", "abc1234", {}),
        rungs.Rung("70S", -13.0, 20_000, 2).key("run", "abc1234", extra),
        rungs.Rung("70S", -13.0, 20_000, 1, 32).key("run", "abc1234", extra),
    ):  # fmt: skip
        assert not results.has(other)


def test_options_become_the_groups_of_a_config(commands: ModuleType, harness: ModuleType) -> None:
    options = harness.parse_overrides(["bootstrap.steps=9", "seeds=2", "bootstrap.draws=4"])
    assert commands.nested(options) == {"bootstrap": {"steps": 9, "draws": 4}, "seeds": 2}


def test_the_real_defoci_are_read_back_from_the_star_file(
    commands: ModuleType, shared_data: Path, tmp_path: Path
) -> None:
    table = tmp_path / "ctf.npz"
    with np.load(shared_data / "ctf" / "empiar10028_ctf.npz") as whole:
        few = {name: whole[name][:300] if whole[name].ndim else whole[name] for name in whole.files}
    np.savez(table, **few)
    commands.write_ctf_star(table, tmp_path / "defoci.star")
    ctf = read_particles(tmp_path / "defoci.star", check_stacks=False).ctf
    order = np.argsort(few["defocus_u_angstrom"], kind="stable")
    read = np.argsort(ctf.defocus_u_angstrom, kind="stable")
    assert not np.array_equal(ctf.defocus_u_angstrom, few["defocus_u_angstrom"])
    np.testing.assert_allclose(ctf.defocus_u_angstrom[read], few["defocus_u_angstrom"][order], rtol=1e-6)
    np.testing.assert_allclose(np.sort(ctf.defocus_v_angstrom), np.sort(few["defocus_v_angstrom"]), rtol=1e-6)
    np.testing.assert_allclose(
        np.sort(ctf.defocus_angle), np.sort(np.radians(few["defocus_angle_deg"])), rtol=0, atol=1e-6
    )
    assert (ctf.voltage_kv[0], ctf.spherical_aberration_mm[0], ctf.amplitude_contrast[0]) == (300, 2, 0.1)


# What is right


def test_a_run_is_right_whose_map_and_poses_come_near_the_limit(rungs: ModuleType) -> None:
    limit = line("limit", px=2.5)
    assert rungs.is_right(line(px=3.3), limit) is True
    assert rungs.is_right(line(px=3.4), limit) is False
    assert rungs.is_right(line(rotation_error_median=0.06), limit) is False
    assert rungs.is_right({**line(), "failed": "out of memory"}, limit) is False
    assert rungs.is_right(line(), None) is None


def test_a_limit_is_attainable_that_resolves_better_than_6_px_with_poses_at_9_degrees(rungs: ModuleType) -> None:
    assert rungs.is_attainable(line("limit", px=5.9))
    assert not rungs.is_attainable(line("limit", px=6.0))
    assert not rungs.is_attainable(line("limit", rotation_error_median=0.05))


def test_the_deepest_rungs_are_climbed_where_the_ones_above_were(rungs: ModuleType) -> None:
    deep = {**line(snr=-19.0), "kind": "run"}
    limit, wrong, right = line("limit", -16.0), line(snr=-16.0, px=9.0), line(snr=-16.0, seed=1)
    assert rungs.is_within_reach({**deep, "kind": "limit"}, [limit])
    assert not rungs.is_within_reach({**deep, "kind": "limit"}, [line("limit", -16.0, px=7.0)])
    assert not rungs.is_within_reach(deep, [limit, wrong])
    assert rungs.is_within_reach(deep, [limit, wrong, right])
    assert not rungs.is_within_reach({**deep, "version": "b"}, [limit, right])
    assert not rungs.is_within_reach({**deep, "images": 5_000}, [limit, right])


def test_the_limit_is_that_of_the_same_version_or_else_the_newest(rungs: ModuleType) -> None:
    old, own, new = (line("limit", version=version) for version in ("o", "a", "n"))
    assert rungs.find_limit(line(), [old, own, new]) is own
    assert rungs.find_limit(line(), [old, new]) is new
    assert rungs.find_limit(line(snr=-13.0), [old, own, new]) is None


# Thresholds


@pytest.mark.parametrize(
    ("shares", "shown"),
    [
        ({-10.0: 1.0, -13.0: 1 / 3, -16.0: 0.0}, "-12.2"),
        ({-16.0: 0.0, -13.0: 0.0, -10.0: 1.0}, "-11.5"),
        ({-10.0: 1.0, -13.0: 0.5, -16.0: 0.0}, "-13.0"),
        ({-10.0: 1.0, -13.0: 1.0}, "< -13.0"),
        ({-10.0: 1 / 3, -13.0: 1.0}, "> -10.0"),
        # The first fall counts, not a lucky rung below it.
        ({-10.0: 1.0, -13.0: 0.0, -16.0: 1.0}, "-11.5"),
    ],
)
def test_half_of_the_runs_succeed_at(summary: ModuleType, shares: dict[float, float], shown: str) -> None:
    assert str(summary.find_threshold(shares)) == shown


def test_no_runs_have_no_threshold(summary: ModuleType) -> None:
    assert summary.find_threshold({}) is None


@pytest.mark.parametrize(
    ("of", "minus", "shown"),
    [
        ((-12.0, "="), (-14.5, "="), "+2.5"),
        ((-12.0, "="), (-16.0, "<"), "> +4.0"),
        ((-10.0, ">"), (-14.5, "="), "> +4.5"),
        ((-10.0, ">"), (-16.0, "<"), "> +6.0"),
        ((-16.0, "<"), (-14.5, "="), "< -1.5"),
        ((-16.0, "<"), (-10.0, ">"), "< -6.0"),
        # Neither is known any nearer.
        ((-16.0, "<"), (-16.0, "<"), "–"),
        ((-10.0, ">"), (-10.0, ">"), "–"),
    ],
)
def test_a_difference_of_bounds_is_a_bound(summary: ModuleType, of: Any, minus: Any, shown: str) -> None:
    assert summary.describe_difference(summary.Threshold(*of), summary.Threshold(*minus)) == shown


# Calibration


def test_confidences_that_are_true_have_no_error_over_several_runs(truth: ModuleType, summary: ModuleType) -> None:
    rng = np.random.default_rng(1)
    runs = []
    for count in (40_000, 10_000):
        confidence = rng.uniform(size=count)
        right = rng.uniform(size=count) < confidence
        runs.append({"confidence": truth.calibration_table(confidence, right)})
    pooled = summary.pool_calibration(runs)
    assert sum(count for count, *_ in pooled) == 50_000
    assert summary.calibration_error(pooled) < 0.01


def test_blind_trust_has_the_share_of_wrong_poses_for_an_error(truth: ModuleType, summary: ModuleType) -> None:
    table = truth.calibration_table(np.ones(1000), np.arange(1000) < 300)
    assert table[-1] == [1000, 300, 1.0]
    assert summary.calibration_error(table) == pytest.approx(0.7)


def test_deviations_are_counted_per_axis(truth: ModuleType) -> None:
    differences = np.array([[0.5, -0.5, 2.0], [3.0, -3.0, 1.0]])
    assert truth.count_inside(differences, np.array([1.0, 1.0])) == [3, 6]


@pytest.mark.parametrize("symmetry", ["C1", "C4", "D2"])
@pytest.mark.parametrize("hand", ["same", "mirrored"])
def test_differences_are_those_of_the_nearest_mate_after_the_global_transform(
    truth: ModuleType, symmetry: str, hand: str
) -> None:
    rng = np.random.default_rng(3)
    count, pixel_size = 50, 4.0
    mirror = MIRROR if hand == "mirrored" else np.eye(3)
    true = Pose(Rotation.random(count, rng).as_matrix(), rng.normal(0, 10, (count, 2)))
    group = Rotation.create_group(symmetry).as_matrix()
    mate, centre = group[rng.integers(len(group), size=count)], rng.normal(0, 8, 3)
    mates = mate @ true.rotation
    q, shift_px = Rotation.random(None, rng).as_matrix(), rng.normal(0, 2, 3)
    turn, move = rng.normal(0, 0.02, (count, 3)), rng.normal(0, 1, (count, 2))
    rotation = Rotation.from_rotvec(turn).as_matrix() @ q @ mirror @ mates @ mirror
    # t_map = t - P Rᵀ T (cryoai.metrics.alignment), and the same of the mates, which turn about the centre.
    translation = true.translation - np.einsum("nji,nj->ni", mates, centre - mate @ centre)[:, :2]
    translation = translation - (rotation.transpose(0, 2, 1) @ (shift_px * pixel_size))[:, :2] + move
    errors = PoseErrors(np.zeros(count), np.zeros(count), q, shift_px, hand)
    found = truth.pose_differences(Pose(rotation, translation), true, errors, group, centre, pixel_size)
    np.testing.assert_allclose(found[0], turn, atol=1e-8)
    np.testing.assert_allclose(found[1], move, atol=1e-8)


def test_what_a_run_says_of_itself_is_read_with_and_without_a_verdict(commands: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    start = {"step": "bootstrap", "start": 1, "held_out_likelihood": 5.0, "agreement": 1.0}
    result: dict[str, Any] = {"step": "result", "resolution_angstrom": 9.0, "seconds": {"bootstrap": 3.0}}
    path.write_text("\n".join(json.dumps(entry) for entry in (start, result)))
    assert commands.read_metrics(path)["verdict"] is None and commands.read_metrics(path)["starts"] == [5.0]
    path.write_text(json.dumps({**result, "verdict": "not found"}))
    assert commands.read_metrics(path)["verdict"] == "not found" and commands.read_metrics(path)["starts"] == []


def test_likelihoods_tell_the_true_map_whatever_its_scale(truth: ModuleType, scene: Scene, tmp_path: Path) -> None:
    density, pose = scene.true_map.density, scene.true_pose
    ball = np.exp(-np.square(np.indices(density.shape) - density.shape[0] // 2).sum(0) / 18).astype(np.float32)
    maps = {"truth": (density, pose), "scaled": (-7 * density, pose), "ball": (ball, pose)}
    found = truth.measure_likelihoods(scene.particles, maps, 0, tmp_path)
    assert found["truth"] == pytest.approx(found["scaled"], rel=1e-3)
    assert found["truth"] > found["ball"] + 1


# Tables


def test_lines_of_one_version_are_chosen_with_limits_from_others(summary: ModuleType) -> None:
    limit, first, again = line("limit", version="a"), line(version="b"), line(version="b", px=3.0)
    wide = line(version="b", extra={"seeds": 6})
    lines = [limit, line(version="a"), first, again]
    assert summary.choose_lines(lines) == [again, limit]
    assert summary.choose_lines([*lines, wide], "b seeds=6") == [wide, limit]
    assert summary.choose_lines(lines, "a") == [lines[1], limit]
    with pytest.raises(SystemExit, match="'c'; there are a, b"):
        summary.choose_lines(lines, "c")


def test_the_newest_are_of_all_commits_but_of_no_other_name(summary: ModuleType) -> None:
    old, new = line(version="a", commit="a"), line(version="b", commit="b")
    elsewhere = line(version="a", commit="a", seed=1)
    others = [line(version="before", commit="0"), line(version="b", commit="b", extra={"seeds": 6})]
    assert summary.choose_lines([old, elsewhere, new, *others], "newest") == [new, elsewhere]


def test_tables_count_what_is_right(summary: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    lost: dict[str, Any] = {"px": 9.0, "rotation_error_median": 6.0, "verdict": "found", "rotation_inside": [0, 0]}
    lines = [
        line("limit"), line("limit", -13.0), line(), line(seed=1), line(snr=-13.0), line(snr=-13.0, seed=1, **lost),
        line(snr=-13.0, seed=2, **lost),
    ]  # fmt: skip
    before = [line("limit"), line("limit", -13.0), line(seconds=150.0, **lost), line(snr=-13.0, **lost)]
    summary.print_tables(lines, before)
    out = capsys.readouterr().out
    assert "Of a, on abacus, 2 threads." in out
    assert "| 70S | -10 dB | 20,000 | 2.50 | 1.0e-03 | 2 of 2 | 2.50 | 1.0e-03 | 1.0% | 1.50 | 0.25 |" in out
    assert "| 70S | -13 dB | 20,000 | 2.50 | 1.0e-03 | 1 of 3 | 9.00 |" in out
    assert "| 70S | 20,000 | -12.2 | < -13.0 | > +0.8 | > -10.0 | < -2.2 | 100 | 150 |" in out
    assert "| right | 3 | 0.010 | 100.0% | 68.0% | 70.0% |" in out
    assert "| wrong | 2 | 0.010 | 100.0% | 0.0% | 70.0% |" in out
    assert "| 0.9 to 1.0 | 500 | 0.990 | 0.980 |" in out
    assert "| right | 3 | 0 | 0 |" in out and "| wrong | 2 | 0 | 0 |" in out
