"""How evenly particles see the molecule, on views whose gaps are known."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from cryoai.metrics.alignment import mirror_rotation
from cryoai.metrics.views import ViewCoverage, expected_cone_deg, make_half_sphere, measure_views

N = 4000


def looking_along(direction: Float[np.ndarray, "n 3"], seed: int = 7) -> Float[np.ndarray, "n 3 3"]:
    """Rotations at which the molecule is seen along given directions, at random in-plane angles."""
    x, y, z = (direction / np.linalg.norm(direction, axis=1, keepdims=True)).T
    in_plane = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(direction))
    return Rotation.from_euler("ZYZ", np.stack((np.arctan2(y, x), np.arccos(z), in_plane), 1)).as_matrix()


def uniform(count: int = N, seed: int = 0) -> Float[np.ndarray, "n 3"]:
    return np.random.default_rng(seed).normal(size=(count, 3))


def cap(angle_deg: float, count: int = N, seed: int = 1) -> Float[np.ndarray, "n 3"]:
    """Uniform within an angle of z."""
    rng = np.random.default_rng(seed)
    z, longitude = rng.uniform(math.cos(math.radians(angle_deg)), 1, count), rng.uniform(0, 2 * np.pi, count)
    level = np.sqrt(1 - z**2)
    return np.stack((level * np.cos(longitude), level * np.sin(longitude), z), 1)


def equator(count: int = N, seed: int = 2) -> Float[np.ndarray, "n 3"]:
    longitude = np.random.default_rng(seed).uniform(0, 2 * np.pi, count)
    return np.stack((np.cos(longitude), np.sin(longitude), np.zeros(count)), 1)


def views_of(*direction: Float[np.ndarray, "n 3"]) -> ViewCoverage:
    return measure_views(looking_along(np.concatenate(direction)))


def angle_to_z(axis: tuple[float, float, float]) -> float:
    return math.degrees(math.acos(min(1.0, abs(axis[2]))))


def assert_same(one: ViewCoverage, other: ViewCoverage) -> None:
    """Up to what the grids do."""
    assert one.evenness == pytest.approx(other.evenness, abs=1e-6)
    assert one.emptiest_cone_deg == pytest.approx(other.emptiest_cone_deg, abs=3)
    assert one.filled_share == pytest.approx(other.filled_share, abs=0.02)
    assert one.scf_star == pytest.approx(other.scf_star, rel=0.1)


def test_uniform_views() -> None:
    views = views_of(uniform())
    assert views.evenness > 0.95 and views.scf_star > 0.97 and views.filled_share == 1
    assert views.emptiest_cone_deg < 7
    assert not views.is_lacking and views.warning() == ""


def test_views_within_20_degrees_of_an_axis() -> None:
    views = views_of(cap(20))
    # Slices fill what lies within 20° of the equator, and their own thickness of 3°.
    assert views.filled_share == pytest.approx(math.sin(math.radians(23)), abs=0.02)
    assert views.scf_star < 0.02 and views.evenness < 0.15
    assert views.emptiest_cone_deg == pytest.approx(70, abs=3) and angle_to_z(views.emptiest_axis) > 85
    assert angle_to_z(views.weakest_axis) < 3
    assert views.is_lacking
    warning = views.warning()
    assert re.search(r"within 7\d° of .* 6[12] % of Fourier space is empty", warning)
    assert re.search(r"smeared along \(-?0.0., -?0.0., 1.00\)", warning)


@pytest.mark.parametrize(("angle_deg", "lacking"), [(3, True), (45, True), (57, True), (70, False), (80, False)])
def test_a_serious_missing_cone_is_told_from_a_small_one(angle_deg: float, lacking: bool) -> None:
    views = views_of(cap(angle_deg))
    assert views.filled_share == pytest.approx(math.sin(math.radians(min(angle_deg + 2.9, 90))), abs=0.02)
    assert views.is_lacking == lacking


def test_side_views_fill_fourier_space() -> None:
    """Sampling around the equator is 1/sin of the angle to the axis: SCF = 8/π²."""
    views = views_of(equator())
    assert views.filled_share == 1 and views.scf_star == pytest.approx(8 / math.pi**2, abs=0.03)
    assert views.evenness == pytest.approx(0, abs=1e-6)
    assert views.emptiest_cone_deg > 85 and angle_to_z(views.emptiest_axis) < 3
    assert not views.is_lacking


def test_preferred_views_among_others_are_uneven_but_not_lacking() -> None:
    views = views_of(cap(20, 7 * N // 10), uniform(3 * N // 10))
    assert views.filled_share > 0.99
    assert 0.3 < views.scf_star < 0.6
    assert views.emptiest_cone_deg < 15
    assert not views.is_lacking


def test_few_stray_views_do_not_hide_a_gap() -> None:
    views = views_of(cap(20, 98 * N // 100), uniform(2 * N // 100))
    assert views.is_lacking
    assert views.emptiest_cone_deg > 65 and views.filled_share < 0.6


@pytest.mark.parametrize("direction", [cap(20), np.concatenate((cap(20), uniform(N // 2))), equator()])
def test_the_frame_and_the_hand_do_not_matter(direction: Float[np.ndarray, "n 3"]) -> None:
    rotation = looking_along(direction)
    views = measure_views(rotation)
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    turned = measure_views(turn @ rotation)
    assert_same(turned, views)
    assert_same(measure_views(mirror_rotation(turn @ rotation)), views)
    assert_same(measure_views(rotation @ np.diag([1.0, -1.0, -1.0])), views)  # seen from the other side
    if views.is_lacking:
        np.testing.assert_allclose(abs(np.dot(turned.weakest_axis, turn @ views.weakest_axis)), 1, atol=0.01)


def test_in_plane_rotation_does_not_matter() -> None:
    assert_same(measure_views(looking_along(cap(40), 3)), measure_views(looking_along(cap(40), 4)))


def test_weights_count_as_copies_and_none_as_absent() -> None:
    rotation = looking_along(np.concatenate((cap(20), uniform())))
    only_cap = np.repeat([1.0, 0.0], N)
    assert measure_views(rotation, only_cap) == measure_views(rotation[:N])
    assert measure_views(rotation, only_cap).particles == pytest.approx(N)
    weighted = measure_views(rotation, np.repeat([3.0, 1.0], N))
    assert_same(weighted, measure_views(np.concatenate((np.tile(rotation[:N], (3, 1, 1)), rotation[N:]))))
    assert measure_views(rotation, np.zeros(2 * N)) == measure_views(rotation)


@pytest.mark.parametrize("weight", [np.array([1, 1, -1, 1.0]), np.array([1, 1, np.nan, 1])])
def test_weights_that_are_none_are_refused(weight: Float[np.ndarray, " n"]) -> None:
    with pytest.raises(ValueError, match="weights"):
        measure_views(looking_along(uniform(4)), weight)


@pytest.mark.parametrize("count", [10, 30, 100, 1000])
def test_few_uniform_views_are_not_lacking(count: int) -> None:
    """They leave wide cones, as wide as chance explains."""
    measured = [views_of(uniform(count, seed)) for seed in range(12)]
    assert sum(views.is_lacking for views in measured) <= 1
    cones = np.array([views.emptiest_cone_deg for views in measured])
    assert np.median(cones) == pytest.approx(expected_cone_deg(count), rel=0.1, abs=2)
    assert views_of(cap(10, count)).is_lacking
    assert views_of(cap(10, count)).emptiest_cone_deg > measured[0].expected_cone_deg + 10


def test_a_lower_shell_is_filled_by_thicker_slices() -> None:
    rotation = looking_along(cap(20))
    filled = [measure_views(rotation, radius=radius).filled_share for radius in (4, 10, 20)]
    np.testing.assert_allclose(filled, np.sin(np.radians(20 + np.degrees([1 / 8, 1 / 20, 1 / 40]))), atol=0.02)


@pytest.mark.parametrize("rotation", [np.zeros((0, 3, 3)), np.zeros((0, 3, 3), np.float32)])
def test_no_particles(rotation: Float[np.ndarray, "n 3 3"]) -> None:
    views = measure_views(rotation)
    assert views.particles == 0 and math.isnan(views.scf_star) and math.isnan(views.emptiest_cone_deg)
    assert not views.is_lacking and views.warning() == "" and views.sentence() == "views: no particles"
    assert views.expected_cone_deg == 90


def test_one_particle() -> None:
    views = views_of(cap(0, 1))
    assert views.is_lacking and views.filled_share == pytest.approx(0.5, abs=0.01)


def test_the_sentence_never_rounds_a_gap_away() -> None:
    axis = (0.0, 0.0, 1.0)
    assert ViewCoverage(9000.0, 0.9, 8.6, axis, 1.0, 0.934, axis).sentence() == (
        "views: SCF* 0.93, emptiest cone 9°, Fourier space 100 % filled"
    )
    assert "99 % filled" in ViewCoverage(9000.0, 0.9, 8.6, axis, 0.999, 0.934, axis).sentence()


def test_half_sphere_is_even() -> None:
    points = make_half_sphere(1000)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1)
    np.testing.assert_allclose(points.T @ points / 1000, np.eye(3) / 3, atol=2e-3)
