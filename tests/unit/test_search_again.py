"""Which particles are searched again, and that a search finds them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scenes import PARTICLES, Scene

from cryoai.geometry.rotations import random_rotations, rotation_angle
from cryoai.particles.sampling import sample_rows
from cryoai.refinement.global_search import GlobalSearch
from cryoai.refinement.search_again import search_again
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig, RefineSettings, SearchRound
from cryoai.run.progress import Progress

CONFIG = ReconstructConfig(refine=RefineSettings(search_radius=7))


def lose(state: RefinementState, rows: np.ndarray) -> RefinementState:
    """The same with the rotations of some particles at random."""
    rotation = state.rotation.clone()
    rotation[rows] = random_rotations(len(rows), torch.Generator().manual_seed(2))
    return replace(state, rotation=rotation)


def search(scene: Scene, state: RefinementState, chosen: SearchRound) -> tuple[RefinementState, int, int]:
    return search_again(scene.data, state, scene.references(state), chosen, scene.radius, CONFIG, Progress())


def off(scene: Scene, state: RefinementState, rows: np.ndarray) -> torch.Tensor:
    return rotation_angle(state.rotation[rows], scene.state.rotation[rows])


def test_lost_particles_are_found_and_the_others_stay(scene: Scene) -> None:
    rows = np.arange(0, PARTICLES, 12)
    before = lose(scene.state, rows)
    after, searched, moved = search(scene, before, SearchRound(round=1, doubt=3.0))
    assert searched < PARTICLES // 2 and moved >= 0.8 * len(rows)
    assert (off(scene, after, rows) < 0.2).float().mean() > 0.8
    others = np.setdiff1d(np.arange(PARTICLES), rows)
    assert (off(scene, after, others) < 0.2).all()
    # What has moved has not been confirmed, and what was not searched keeps its certainty.
    assert not after.is_confirmed[rows[(off(scene, after, rows) < 0.2).numpy()]].any()
    assert (after.certainty >= 0).all() and (after.certainty <= 1 + 1e-5).all()
    assert int((after.certainty != 1).sum()) <= searched


def test_where_a_good_fit_does_not_tell_all_are_searched_until_they_are_confirmed(scene: Scene) -> None:
    """So much noise that the best of many poses would fit an image of nothing as well."""
    state, chosen = replace(scene.state, noise_power=100 * scene.noise_power), SearchRound(round=1, doubt=50.0)
    after, searched, _ = search(scene, state, chosen)
    assert searched == PARTICLES
    confirmed = replace(after, is_confirmed=np.ones(PARTICLES, bool))
    assert search(scene, confirmed, chosen)[1] == 0


def test_junk_is_searched_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits like those of images of nothing, in a tenth of the set and in a hundredth."""
    for share, searched_later in ((10, 0), (100, PARTICLES // 100 + 1)):
        junk = np.arange(0, PARTICLES, share)
        quality, expected = torch.zeros(PARTICLES), torch.full((PARTICLES,), 200.0)
        quality[junk] = -18.0
        monkeypatch.setattr(
            "cryoai.refinement.search_again.measure_quality", lambda *a, q=quality, e=expected: (q, e)
        )
        for number, count in ((1, len(junk)), (2, searched_later)):
            _, searched, _ = search(scene, scene.state, SearchRound(round=number, doubt=3.0))
            assert searched == count


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
