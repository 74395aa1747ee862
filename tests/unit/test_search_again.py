"""Which particles are searched again, and that a search finds them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import PARTICLES, Scene, make_scene

from cryoai.geometry.rotations import random_rotations, rotation_angle
from cryoai.particles.sampling import sample_rows
from cryoai.physics.slicing import volume_from_map
from cryoai.refinement.fits import Fits
from cryoai.refinement.global_search import GlobalSearch
from cryoai.refinement.search_again import SearchSummary, search_again
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig, RefineSettings, SearchRound
from cryoai.run.progress import Progress

CONFIG = ReconstructConfig(refine=RefineSettings(search_radius=7))


def lose(state: RefinementState, rows: np.ndarray) -> RefinementState:
    """The same with the rotations of some particles at random."""
    rotation = state.rotation.clone()
    rotation[rows] = random_rotations(len(rows), torch.Generator().manual_seed(2))
    return replace(state, rotation=rotation)


def search(scene: Scene, state: RefinementState, chosen: SearchRound) -> tuple[RefinementState, SearchSummary]:
    references = scene.references(state)
    return search_again(scene.data, state, references, chosen, scene.radius, CONFIG, Progress())


def off(scene: Scene, state: RefinementState, rows: np.ndarray) -> torch.Tensor:
    return rotation_angle(state.rotation[rows], scene.state.rotation[rows])


def test_lost_particles_are_found_and_the_others_stay(scene: Scene) -> None:
    rows = np.arange(0, PARTICLES, 12)
    before = lose(scene.state, rows)
    after, done = search(scene, before, SearchRound(round=1, doubt=3.0))
    assert done.searched < PARTICLES // 2 and done.moved >= 0.8 * len(rows)
    assert 0.8 * done.absent < done.placed
    assert (off(scene, after, rows) < 0.2).float().mean() > 0.8
    others = np.setdiff1d(np.arange(PARTICLES), rows)
    assert (off(scene, after, others) < 0.2).all()
    # What has moved has not been confirmed, and what was not searched keeps its certainty.
    assert not after.is_confirmed[rows[(off(scene, after, rows) < 0.2).numpy()]].any()
    assert (after.certainty >= 0).all() and (after.certainty <= 1 + 1e-5).all()
    assert int((after.certainty != 1).sum()) <= done.searched
    assert (after.presence > 0.5).float().mean() > 0.95


def test_where_a_good_fit_does_not_tell_all_are_searched_until_they_are_confirmed(scene: Scene) -> None:
    """So much noise that the best of many poses would fit an image of nothing as well."""
    state, chosen = replace(scene.state, noise_power=100 * scene.noise_power), SearchRound(round=1, doubt=50.0)
    after, done = search(scene, state, chosen)
    assert done.searched == PARTICLES
    confirmed = replace(after, is_confirmed=np.ones(PARTICLES, bool))
    assert search(scene, confirmed, chosen)[1].searched == 0


def test_junk_is_not_searched_and_what_is_posed_wrongly_is_found(tmp_path: Path) -> None:
    """Both fit nothing where they are; only the ones would elsewhere."""
    scene = make_scene(tmp_path, junk=0.3)
    junk = np.flatnonzero(scene.is_junk)
    lost = np.flatnonzero(~scene.is_junk)[::8]
    after, done = search(scene, lose(scene.state, lost), SearchRound(round=1, doubt=3.0))
    assert done.left_out > 0.9 * len(junk) and done.absent > 0.8 * len(lost)
    assert done.searched < 1.3 * len(lost) + 0.1 * len(junk)
    assert (off(scene, after, lost) < 0.2).float().mean() > 0.8
    assert (after.presence[junk] < 0.5).float().mean() > 0.9
    assert (after.presence[~scene.is_junk] > 0.5).float().mean() > 0.95
    scene.data.close()


def test_where_all_that_fits_nothing_is_junk_nothing_is_searched(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, junk=0.3)
    state, done = search(scene, scene.state, SearchRound(round=3, doubt=4.0))
    assert done.left_out > 0.9 * scene.is_junk.sum() and done.searched < 0.1 * scene.is_junk.sum()
    assert (off(scene, state, np.flatnonzero(~scene.is_junk)) < 0.2).all()
    scene.data.close()


def test_next_to_no_junk_is_searched_with_the_rest(tmp_path: Path) -> None:
    """It may as well be particles of little contrast."""
    scene = make_scene(tmp_path, junk=0.01)
    _, done = search(scene, scene.state, SearchRound(round=1, doubt=3.0))
    assert 0 < scene.is_junk.sum() < 0.02 * PARTICLES
    assert done.left_out == 0 and done.absent == scene.is_junk.sum()
    scene.data.close()


def test_mates_under_a_symmetry_are_one_pose(scene: Scene) -> None:
    """What a search finds is as certain as if there were no mates."""
    density = torch.from_numpy(scene.true_map.density.copy())
    scale = scene.volume.values.norm() / volume_from_map(density).values.norm()
    turned = density.flip(1, 2).roll((1, 1), (1, 2))
    twofold = replace(scene, volume=volume_from_map(scale * (density + turned) / 2))
    chosen, state = SearchRound(round=1, doubt=50.0), replace(scene.state, noise_power=100 * scene.noise_power)
    same = torch.stack((torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))))
    references = twofold.references(state)
    certain = []
    for symmetries in (None, same):
        after, done = search_again(
            scene.data, state, references, chosen, scene.radius, CONFIG, Progress(), symmetries
        )
        assert done.searched == PARTICLES
        certain.append(after.certainty)
    apart, together = certain
    assert (together >= apart - 1e-5).all() and (together / apart).median() == pytest.approx(2, rel=0.1)


def test_where_no_map_tells_every_particle_is_present() -> None:
    nothing = Fits(torch.zeros(50), torch.ones(50), torch.linspace(-30.0, 4.0, 50))
    assert (nothing.presence() == 1).all()
    half = Fits(torch.zeros(50), torch.ones(50), torch.tensor([-12.0, 12.0]).repeat(25))
    torch.testing.assert_close(half.presence(), torch.tensor([0.0, 1.0]).repeat(25), atol=1e-3, rtol=0)


def test_the_plain_product_finds_what_angular_modes_find(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU would run."""
    rows = sample_rows(np.arange(PARTICLES), 40)
    global_search = GlobalSearch(7, 0.2, scene.data.support(), 16, ((scene.radius, 1),), finer=1.3, seed=4)
    batch = scene.data.batch(rows)
    found = []
    for kernels in (True, False):
        monkeypatch.setattr("cryoai.refinement.global_search.runs_kernels", lambda device, k=kernels: k)
        hypotheses = global_search.candidates(batch, scene.volume, scene.noise_power)
        true = scene.state.rotation[rows][:, None].expand_as(hypotheses.rotation)
        near = rotation_angle(hypotheses.rotation, true).amin(1)
        found.append(float((near < 0.35).float().mean()))
    assert min(found) > 0.9
