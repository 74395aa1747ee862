"""How wide the posterior about a pose is, and how much of it lies elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import PARTICLES, Scene

from cryoai.geometry.rotations import random_rotations, rotation_angle, rotation_from_vector
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.posterior import PosteriorSearch
from cryoai.refinement.judge_poses import judge_poses
from cryoai.refinement.pose_posterior import look_about, measure_share, measure_surroundings
from cryoai.refinement.poses import refine_locally
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig
from cryoai.run.progress import Progress

SHELLS = 6


def refined(scene: Scene, noise: float = 1.0) -> RefinementState:
    """Poses at the peaks of their posteriors, with the Hessian's deviations; ``noise`` is claimed, not added."""
    state = replace(scene.state, noise_power=noise * scene.noise_power)
    return refine_locally(scene.data, state, scene.references(state), scene.radius, iterations=8)


def shares(scene: Scene, state: RefinementState) -> torch.Tensor:
    references = scene.references(state)
    about = measure_surroundings(scene.data, state, references, scene.radius)
    search = PosteriorSearch(24, scene.data.pixel_size, SHELLS, scene.data.support(), 0.1)
    return measure_share(scene.data, state, references, about, search)


def test_where_little_is_noise_the_posterior_is_as_wide_as_the_hessian_says(scene: Scene) -> None:
    state = refined(scene, 0.1)
    found = measure_surroundings(scene.data, state, scene.references(state), scene.radius)
    assert found.rotation_std.div(state.rotation_std).median() == pytest.approx(1.0, abs=0.15)
    assert found.translation_std.div(state.translation_std).median() == pytest.approx(1.0, abs=0.15)


def test_errors_of_poses_lie_inside_their_standard_deviations(scene: Scene) -> None:
    state = refined(scene)
    found = measure_surroundings(scene.data, state, scene.references(state), scene.radius)
    moved = (state.translation - scene.state.translation).abs()
    inside = (moved <= found.translation_std[:, None]).float().mean()
    assert 0.6 < inside < 0.78
    # θ² is the sum over three axes: its mean in units of σ² is 3, without the few that lie far off.
    turned = rotation_angle(state.rotation, scene.state.rotation) / found.rotation_std
    assert 1.3 < turned.median() < 1.8


def test_a_pose_off_the_peak_is_as_far_off_as_it_is(scene: Scene) -> None:
    """What the deviation is measured from is the pose, not the mean of the draws."""
    state = refined(scene)
    vector = torch.tensor([0.0, 0.0, 1.0]) * 1.5 * state.rotation_std[:, None]
    off = replace(state, rotation=rotation_from_vector(vector) @ state.rotation)
    at, about = (measure_surroundings(scene.data, s, scene.references(s), scene.radius) for s in (state, off))
    assert (about.rotation_std > at.rotation_std).float().mean() > 0.8


def test_the_mass_is_that_of_a_gaussian_at_the_peak(scene: Scene) -> None:
    state = refined(scene, 0.05)
    batch = scene.data.batch(np.arange(20))
    few = [t[:20] for t in (state.rotation, state.translation)]
    found = look_about(batch, scene.volume, state.noise_power, *few)
    sharper = look_about(batch, scene.volume, state.noise_power / 4, *few)
    # Four times the gain, and a half of each of five widths.
    gain = found.log_mass - sharper.log_mass / 4
    widths = 0.75 * 2.5 * np.log(2 * np.pi) + 5 * 0.25 * np.log(2)
    logs = 0.75 * (3 * found.rotation_std.log() + 2 * found.translation_std.log())
    assert (gain - logs - widths).abs().median() < 1.0


def test_right_poses_hold_the_posterior_and_wrong_ones_do_not(scene: Scene) -> None:
    state = refined(scene)
    assert shares(scene, state).median() > 0.95
    wrong = replace(state, rotation=random_rotations(PARTICLES, torch.Generator().manual_seed(3)))
    assert shares(scene, wrong).median() < 0.01


def test_in_much_noise_no_pose_holds_the_posterior(scene: Scene) -> None:
    share = shares(scene, refined(scene, 100.0))
    assert share.max() < 0.5 and (share >= 0).all()


def test_where_images_tell_much_the_mate_under_a_symmetry_takes_nothing_away(scene: Scene) -> None:
    """It is the same pose; what takes away is what fewer shells leave open and further ones do not confirm."""
    density = torch.from_numpy(scene.true_map.density.copy())
    scale = scene.volume.values.norm() / volume_from_map(density).values.norm()
    twofold = volume_from_map(scale * (density + density.flip(1, 2).roll((1, 1), (1, 2))) / 2)
    symmetric = replace(scene, volume=twofold)
    share = shares(symmetric, refined(symmetric))
    assert share.median() > 0.95


def test_only_those_asked_for_and_in_use_are_looked_at(scene: Scene) -> None:
    state = refined(scene)
    half = state.half.copy()
    half[:3] = -1
    out = replace(state, half=half)
    about = measure_surroundings(scene.data, out, scene.references(out), scene.radius)
    assert torch.isnan(about.rotation_std[:3]).all() and torch.isfinite(about.rotation_std[3:]).all()
    judged = judge_poses(scene.data, out, scene.references(out), scene.radius, ReconstructConfig(), Progress())
    assert len(judged.share) == len(judged.fits.quality) == PARTICLES - 3
    assert (judged.share <= 1).all() and (judged.share > 0.5).float().mean() > 0.8


def test_a_pose_that_is_not_a_number_has_no_deviations_and_leaves_the_others_theirs(scene: Scene) -> None:
    state = refined(scene)
    rotation = state.rotation.clone()
    rotation[0] = torch.nan
    found = look_about(
        scene.data.batch(np.arange(4)), scene.volume, state.noise_power, rotation[:4], state.translation[:4]
    )
    assert not torch.isfinite(found.rotation_std[0]) or found.rotation_std[0] > 3
    assert torch.isfinite(found.rotation_std[1:]).all() and (found.rotation_std[1:] < 0.3).all()
