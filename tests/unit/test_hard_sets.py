"""What the hard sets are made of and what is concluded from them (benchmarks/hard_sets.py); the runs take hours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cryoai.io import read_map

BOX = 48


@pytest.fixture
def shapes(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("shapes")


@pytest.fixture
def roundness(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("roundness")


@pytest.fixture
def sets(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("hard_sets_plan")


@pytest.fixture
def summary(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("hard_sets_summary")


def turned(density: np.ndarray, axis: str) -> np.ndarray:
    """Half a turn about an axis; the first planes of an even box, which have no partners, are left out."""
    planes = {"x": (0, 1), "y": (0, 2), "z": (1, 2)}[axis]
    return np.flip(density[1:, 1:, 1:], planes)


# Shapes


def test_shapes_are_as_large_as_they_should_be_inside_half_of_the_box(shapes: ModuleType) -> None:
    volumes = {
        "hollow sphere": 4 / 3 * np.pi * (0.25**3 - 0.16**3), "tube": np.pi * (0.14**2 - 0.07**2) * 0.5,
        "dimer": 2 * 4 / 3 * np.pi * 0.125**3, "ball": 4 / 3 * np.pi * 0.2**3,
    }  # fmt: skip
    assert set(volumes) == set(shapes.SHAPES)
    for name, volume in volumes.items():
        density = shapes.make_shape(name, BOX)
        assert density.dtype == np.float32 and density.min() == 0 and density.max() == 1
        assert density.sum() / BOX**3 == pytest.approx(volume, rel=0.03), name
        reach = np.abs(np.argwhere(density > 0.5) - BOX // 2).max() / BOX
        assert 0.18 <= reach <= 0.26, name
        for axis in "xyz":
            np.testing.assert_allclose(turned(density, axis), density[1:, 1:, 1:], atol=1e-5)


def test_a_tube_is_long_and_open_and_a_dimer_has_two_balls(shapes: ModuleType) -> None:
    middle, tube, dimer = BOX // 2, shapes.make_shape("tube", BOX), shapes.make_shape("dimer", BOX)
    assert not tube[:, middle, middle].any()
    wall = round(0.105 * BOX)
    assert tube[middle - 10 : middle + 11, middle, middle + wall].all()
    np.testing.assert_allclose(tube, tube.transpose(0, 2, 1), atol=1e-6)
    assert (dimer[middle, middle, middle + np.array([-6, 6])] == 1).all()
    assert not dimer[middle, middle - 8 : middle + 9 : 16, middle].any()
    assert not dimer[middle - 8 : middle + 9 : 16, middle, middle].any()


def test_a_shape_is_written_at_its_voxel_size(shapes: ModuleType, tmp_path: Path) -> None:
    shapes.write_shape("hollow sphere", 24, 10.0, tmp_path / "new" / "shape.mrc")
    written = read_map(tmp_path / "new" / "shape.mrc")
    assert written.voxel_size == pytest.approx(10.0)
    np.testing.assert_array_equal(written.density, shapes.make_shape("hollow sphere", 24))


# Roundness


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -4, 2)])
def test_a_hollow_sphere_is_measured_wherever_it_is_and_whatever_its_sign(
    shapes: ModuleType, roundness: ModuleType, sign: int, shift: tuple[int, int, int]
) -> None:
    density = np.roll(shapes.make_shape("hollow sphere", BOX), shift, (0, 1, 2))
    noise = np.random.default_rng(1).normal(0, 0.05, density.shape)
    found = roundness.measure_roundness(sign * density + noise + 0.3, 5.0)
    assert found.outer_diameter == pytest.approx(0.5 * BOX * 5.0, abs=5.0)
    assert found.centre == pytest.approx(0, abs=0.1)
    assert found.positive is (sign == 1)


def test_a_ball_is_not_hollow_and_an_empty_map_has_no_size(shapes: ModuleType, roundness: ModuleType) -> None:
    ball = roundness.measure_roundness(shapes.make_shape("ball", BOX), 4.0)
    assert ball.outer_diameter == pytest.approx(0.4 * BOX * 4.0, abs=4.0)
    assert ball.centre == pytest.approx(1)
    assert roundness.measure_roundness(np.zeros((24,) * 3), 1.0).outer_diameter is None


# What is run


def test_every_set_has_its_own_name_and_runs_part_by_part_seed_by_seed(sets: ModuleType) -> None:
    everything = sets.plan()
    assert len({(planned.hard_set.name, planned.seed) for planned in everything}) == len(everything)
    assert len({planned.hard_set.folder(planned.seed) for planned in everything}) == len(everything)
    assert list(dict.fromkeys(planned.hard_set.part for planned in everything)) == list(sets.PARTS)
    apoferritin = [planned for planned in everything if planned.hard_set.part == "apoferritin"]
    assert [planned.seed for planned in apoferritin] == [0, 1, 2, 3, 4]
    views = [(p.hard_set.name, p.seed, p.kinds) for p in everything if p.hard_set.part == "views"]
    assert views == [
        (sets.MOST_PREFERRED, 0, ("limit", "run")), (sets.ONLY_PREFERRED, 0, ("run",)),
        (sets.MOST_PREFERRED, 1, ("run",)), (sets.MOST_PREFERRED, 2, ("run",)),
    ]  # fmt: skip


def test_a_part_can_be_run_with_other_seeds(sets: ModuleType) -> None:
    part = sets.plan(["junk"], [3, 0])
    assert [(p.hard_set.name, p.seed) for p in part] == [
        (sets.junk_name(share), seed) for seed in (3, 0) for share in (0.0, 0.15, 0.5)
    ]


def test_lines_of_real_particles_do_not_depend_on_what_is_simulated(sets: ModuleType) -> None:
    real, simulated = sets.SETS[0], next(s for s in sets.SETS if s.part == "junk")
    assert real.key("run", 0, "a", {}, 32, 500) == real.key("run", 0, "a", {})
    assert simulated.key("run", 0, "a", {}, 32, 500) != simulated.key("run", 0, "a", {})


def test_the_real_sets_are_where_they_are_said_to_be(sets: ModuleType, shared_data: Path) -> None:
    for source in (hard_set.source for hard_set in sets.SETS if isinstance(hard_set.source, sets.Real)):
        particles = shared_data / "particles" / source.particles
        assert particles.exists()
        assert source.model is None or (shared_data / source.model).exists()
        if source.stack is not None:
            there, named = source.stack
            assert (particles.parent / there).exists() and named in particles.read_text()


# What is concluded


def line(part: str, name: str, seed: Any = 0, kind: Any = "run", **figures: Any) -> dict[str, Any]:
    """A line of the results, of a run that went well and was found."""
    return {
        "part": part, "set": name, "kind": kind, "seed": seed, "version": "a", "extra": {}, "status": 0,
        "processor": "abacus", "threads": 2, "seconds": 60.0, "peak_gib": 1.5, "verdict": "found", "reasons": [],
        "warnings": [], "half_map_angstrom": 15.0, "fraction_confident": 0.9, "fsc_0.5_px": 2.5,
        "fsc_0.5_angstrom": 17.0, "fsc_0.143_angstrom": 15.0, "rotation_error_median": 0.001, "correlation": 0.9,
        "views": {"emptiest_cone_deg": 12.0, "scf": 0.8, "evenness": 0.6, "filled_share": 1.0},
        "roundness": {"outer_diameter": 122.0, "centre": 0.1, "positive": True}, **figures,
    }  # fmt: skip


def passed(summary: ModuleType, *lines: dict[str, Any]) -> dict[str, bool | None]:
    return {outcome.what: outcome.passed for outcome in summary.judge(list(lines))}


def test_apoferritin_passes_with_four_of_five_and_a_fifth_that_is_not_called_found(summary: ModuleType) -> None:
    good = [line("apoferritin", "apoferritin", seed) for seed in range(4)]
    poor = line("apoferritin", "apoferritin", 4, **{"fsc_0.5_angstrom": 25.0, "verdict": "uncertain"})
    rows = ("real apoferritin", "real apoferritin, runs that are not right")
    assert passed(summary, *good, poor) == {rows[0]: True, rows[1]: True}
    assert passed(summary, *good, {**poor, "verdict": "found"}) == {rows[0]: True, rows[1]: False}
    assert passed(summary, *good, {**poor, "verdict": None}) == {rows[0]: True, rows[1]: None}
    assert passed(summary, *good[:3], {**good[3], "failed": "no memory"}, poor)[rows[1]] is False
    assert passed(summary, *good[:3], {**poor, "seed": 3}, poor)[rows[0]] is False
    assert passed(summary, *good)[rows[0]] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"fsc_0.5_angstrom": 18.5},
        {"roundness": {"outer_diameter": 129.0, "centre": 0.1, "positive": True}},
        {"roundness": {"outer_diameter": None, "centre": None, "positive": True}},
        {"roundness": {"outer_diameter": 120.0, "centre": 0.9, "positive": True}},
        {"roundness": {"outer_diameter": 120.0, "centre": 0.1, "positive": False}},
        {"views": {"emptiest_cone_deg": 60.0, "scf": 0.1, "evenness": 0.02, "filled_share": 0.5}},
    ],
)
def test_a_tube_or_an_inside_out_map_is_no_apoferritin(summary: ModuleType, wrong: dict[str, Any]) -> None:
    assert summary.is_apoferritin(line("apoferritin", "apoferritin"))
    assert not summary.is_apoferritin(line("apoferritin", "apoferritin", **wrong))


def test_few_particles_may_be_refused_but_not_called_found(summary: ModuleType) -> None:
    refused = {"refused": "17 particles are too few", "status": 2, "verdict": None}
    assert passed(summary, line("real", "17 particles", **refused)) == {"17 particles": True}
    assert passed(summary, line("real", "17 particles")) == {"17 particles": False}
    assert passed(summary, line("real", "17 particles", failed="out of memory")) == {"17 particles": False}
    assert passed(summary, line("real", "17 particles", verdict=None)) == {"17 particles": None}


def test_preferred_views_are_right_near_the_limit_and_missing_ones_are_named(
    summary: ModuleType, sets: ModuleType
) -> None:
    most, only = sets.MOST_PREFERRED, sets.ONLY_PREFERRED
    limit, runs = line("views", most, kind="limit"), [line("views", most, seed) for seed in range(3)]
    assert passed(summary, limit, *runs)[f"70S, {most}"] is True
    assert passed(summary, limit, *runs[:2], {**runs[2], "fsc_0.5_px": 4.0})[f"70S, {most}"] is False
    assert passed(summary, *runs)[f"70S, {most}"] is None
    assert passed(summary, limit, *runs[:2])[f"70S, {most}"] is None
    sentence = "views are missing: hardly any particle is seen within 66° of (0.00, 0.00, 1.00)"
    silent = line("views", only, verdict="not found")
    for told, expected in (
        ({**silent, "reasons": [sentence]}, True), ({**silent, "warnings": [sentence]}, True), (silent, False),
        ({**silent, "verdict": "found", "reasons": [sentence]}, False), ({**silent, "verdict": None}, None),
    ):  # fmt: skip
        assert passed(summary, told)[f"70S, {only}"] is expected


def test_shapes_must_be_right_where_views_differ_and_else_not_called_found(summary: ModuleType) -> None:
    limit = line("shapes", "tube", kind="limit")
    outcomes = passed(
        summary, limit, line("shapes", "tube"), line("shapes", "dimer"), line("shapes", "ball"),
        line("shapes", "hollow sphere", verdict="uncertain"), line("shapes", "pure noise", verdict="not found"),
    )  # fmt: skip
    assert outcomes == {"tube": True, "dimer": None, "ball": False, "hollow sphere": True, "pure noise": True}
    assert passed(summary, limit, line("shapes", "tube", **{"fsc_0.5_px": 3.4}))["tube"] is False


def test_junk_is_compared_with_the_clean_set_of_the_same_seed_and_machine(
    summary: ModuleType, sets: ModuleType
) -> None:
    clean, some, much = (sets.junk_name(share) for share in sets.JUNK)
    lines = [
        line("junk", clean), line("junk", clean, 1, seconds=100.0), line("junk", some, seconds=75.0),
        line("junk", some, 1, seconds=140.0), line("junk", much, **{"fsc_0.5_px": 2.7}),
    ]  # fmt: skip
    assert summary.ratios_of(summary.pairs_with_clean(lines, 0.15), "seconds") == [1.25, 1.4]
    outcomes = passed(summary, *lines)
    assert outcomes[f"{some}, time"] is False and outcomes[f"{some}, FSC 0.5"] is True
    assert outcomes[f"{much}, time"] is True and outcomes[f"{much}, FSC 0.5"] is False
    assert passed(summary, line("junk", clean, threads=1), *lines[2:])[f"{some}, time"] is None


def test_the_last_line_of_a_run_counts_and_limits_come_from_other_versions(summary: ModuleType) -> None:
    limit, old = line("shapes", "tube", kind="limit"), line("shapes", "tube")
    first, again = ({**old, "version": "b", "fsc_0.5_px": px} for px in (2.6, 2.7))
    assert summary.choose_lines([limit, old, first, again]) == [limit, again]
    assert summary.choose_lines([limit, old, first], "a") == [limit, old]
    with pytest.raises(SystemExit, match="'c'; there are a, b"):
        summary.choose_lines([limit, first], "c")


def test_tables_hold_the_criteria_and_the_figures(summary: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    refused = line("real", "7 particles", refused="7 | too few", status=2, verdict=None, half_map_angstrom=None)
    tilts = line("real", "220 ribosome tilts", reasons=["no evidence", "few particles"])
    lines = [line("apoferritin", "apoferritin"), refused, tilts, line("shapes", "ball"), line("junk", "50 % junk")]
    summary.print_tables(lines, [line("shapes", "ball", verdict="uncertain")])
    out = capsys.readouterr().out
    assert "Of a, on abacus, 2 threads." in out
    assert "| ball | not called found | found | falls short | uncertain | pass |" in out
    assert (
        "| 0 | 17.0 Å | 15.0 Å | 122 Å | 0.10 | white | 12° | 0.80 | 0.60 | 15.0 Å | 90% | found | 60 | 1.5 GiB |"
        in out
    )
    assert "| 7 particles | 2 | not found | 7 \\| too few |" in out
    assert "| 220 ribosome tilts | 0 | found | no evidence; few particles |" in out
