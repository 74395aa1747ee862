"""What a run says of itself, from the evidence alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from cryoai import Evidence
from cryoai.reconstruction.verdict import judge
from cryoai.refinement.confidence import CONFIDENT

GOOD = Evidence(
    poses="bootstrap", particles=10_000, box_size=64, voxel_size=5.0, starts=3, starts_agreeing=3,
    best_agreement=0.97, lowest_agreement=0.9, held_out_likelihood=30.0, start_likelihoods=(30.0, 29.0, 28.0),
    start_agreements=(1.0, 0.97, 0.95), fsc_shells=31.0, resolution_angstrom=10.3, shared_shells=10.0,
    own_shells=21.0, view_share=0.95, halves_kept_apart=True,
    views_filled_share=1.0, views_scf=0.98, views_evenness=0.97,
    views_emptiest_cone_deg=3.0, views_emptiest_axis=(0.6, 0.0, 0.8), views_expected_cone_deg=3.0,
    views_are_lacking=False, fraction_confident=0.99, fraction_present=1.0,
    fit_quality=0.0, fit_ratio=1.0, fit_expected=60.0,
    fit_noise_quality=-6.2, rotation_std_deg=0.3, translation_std_angstrom=0.5, mask_diameter_angstrom=200.0,
    mask_share=0.2,
)  # fmt: skip
NO_OWN = {"fsc_shells": 11.0, "own_shells": 1.0, "resolution_angstrom": 29.1, "fraction_confident": 0.0}
DISAGREE = {"starts_agreeing": 1, "best_agreement": 0.42, "start_agreements": (1.0, 0.42, 0.3)}
GIVEN = {
    "poses": "given", "starts": 0, "starts_agreeing": 0, "best_agreement": math.nan, "start_likelihoods": (),
    "start_agreements": (), "held_out_likelihood": math.nan, "shared_shells": 0.0, "own_shells": 31.0,
}  # fmt: skip


def test_a_map_that_everything_speaks_for_is_found_and_says_why() -> None:
    verdict = judge(GOOD)
    assert verdict.call == "found" and not verdict.advice
    said = "; ".join(verdict.reasons)
    assert "10.3 Å, 21.0 shells beyond the 32 Å" in said and "all 3 starts" in said and "SCF* 0.98" in said
    assert "99 % of the poses" in said
    assert verdict.confidence_factor == 1


@pytest.mark.parametrize(
    ("changes", "call", "reason", "advice"),
    [
        (NO_OWN, "not found", "hardly beyond 32 Å", "more particles"),
        ({"view_share": 0.15}, "not found", "looks alike from all sides", "more particles"),
        ({"view_share": 0.4}, "uncertain", "only 40 % of what the half-maps", "more particles"),
        ({"fsc_shells": 12.5, "own_shells": 2.5}, "uncertain", "may be chance", "--seeds 6"),
        ({"box_size": 24, "fsc_shells": 12.0, "own_shells": 2.0}, "uncertain", "box of 24 px", "--box-size"),
        (DISAGREE, "uncertain", "different maps", "--seeds 6"),
        (DISAGREE | {"fsc_shells": 12.5, "own_shells": 2.5}, "not found", "at most 0.42", "--seeds 6"),
        ({"starts_agreeing": 2}, "found", "2 of 3 starts", None),
        ({"lowest_agreement": 0.4}, "found", "all 3 starts", None),
        ({"lowest_agreement": 0.4, "fsc_shells": 14.5, "own_shells": 4.5}, "uncertain", "not in every shell",
         "--seeds 6"),
        ({"starts": 1, "starts_agreeing": 1, "best_agreement": math.nan}, "uncertain", "single start", "--seeds 3"),
        ({"poses": "scratch", "starts": 1, "starts_agreeing": 1}, "uncertain", "trained once", "another --seed"),
        ({"held_out_likelihood": 0.0}, "not found", "no better than no map", "more particles"),
        ({"views_are_lacking": True, "views_scf": 0.05, "views_emptiest_cone_deg": 62.0}, "not found",
         "views are missing: the emptiest cone is at (0.60, 0.00, 0.80), 62° wide", "other sides"),
        ({"views_scf": 0.17, "views_emptiest_cone_deg": 24.0}, "not found", "views are missing", "other sides"),
        ({"views_scf": 0.15}, "uncertain", "uneven", "rare views"),
        ({"views_scf": 0.45, "views_emptiest_cone_deg": 40.0}, "found", "views fill", None),
        ({"fit_ratio": 0.3}, "uncertain", "30 %", "more particles"),
        ({"fit_ratio": -0.5}, "not found", "do not fit", "more particles"),
        ({"fit_ratio": math.nan}, "not found", "do not fit", "more particles"),
        ({"fraction_confident": 0.01}, "not found", "hardly any particle", "cleaner"),
        ({"fraction_confident": 0.2}, "uncertain", "only 20 %", "cleaner"),
        ({"fraction_present": 0.5, "fraction_confident": 0.48}, "found", "50 % of the images fit",
         None),
        ({"fraction_present": 0.25}, "uncertain", "75 % of the images fit the map no better", "cleaner"),
        # Where noise would fit as well, right poses are not confident either.
        ({"fraction_confident": 0.01, "fit_noise_quality": -1.0}, "found", "half-maps", None),
        ({"rotation_std_deg": 10.0}, "uncertain", "hardly be told apart", "more particles"),
        ({"rotation_std_deg": math.inf}, "not found", "cannot be told apart", "more particles"),
        ({"rotation_std_deg": math.nan}, "not found", "cannot be told apart", "more particles"),
        ({"particles": 100}, "uncertain", "only 100 particles", "more particles"),
        ({"particles": 17}, "not found", "only 17 particles", "more particles"),
        ({"mask_share": 1.0}, "uncertain", "nothing stands out", "larger box"),
        (GIVEN, "found", "half-maps agree to 10.3 Å", None),
        (GIVEN | {"halves_kept_apart": False}, "uncertain", "given poses may come from one map", "rlnRandomSubset"),
        (GIVEN | {"own_shells": 1.0}, "not found", "hardly beyond the size of the box", "more particles"),
        ({"halves_kept_apart": False}, "uncertain", "one map of both", "max_rounds"),
    ],
)  # fmt: skip
def test_every_kind_of_evidence_is_heard(changes: dict, call: str, reason: str, advice: str | None) -> None:
    verdict = judge(replace(GOOD, **changes))
    assert verdict.call == call
    assert any(reason in said for said in verdict.reasons)
    assert (not verdict.advice) if advice is None else any(advice in text for text in verdict.advice)
    assert (verdict.confidence_factor < CONFIDENT) == (call == "not found")


def test_no_pose_is_confident_where_starts_found_different_maps() -> None:
    assert judge(replace(GOOD, **DISAGREE)).confidence_factor == CONFIDENT
    # One start, or none, says nothing against the map.
    for changes in ({"starts": 1, "starts_agreeing": 1}, GIVEN | {"halves_kept_apart": False}):
        verdict = judge(replace(GOOD, **changes))
        assert verdict.call != "not found" and verdict.confidence_factor == 1


def test_starts_are_not_spoken_of_with_given_poses() -> None:
    for changes in (GIVEN, GIVEN | {"own_shells": 1.0}):
        verdict = judge(replace(GOOD, **changes))
        assert not any("start" in text or "--seeds" in text for text in (*verdict.reasons, *verdict.advice))


def test_what_is_against_a_map_comes_before_what_is_doubtful_and_advice_is_given_once() -> None:
    verdict = judge(replace(GOOD, **DISAGREE, **NO_OWN, particles=100, views_scf=0.15))
    assert "hardly beyond" in verdict.reasons[0] and "different maps" in verdict.reasons[1]
    assert len(verdict.reasons) == 4
    assert len(set(verdict.advice)) == len(verdict.advice)


def test_a_smaller_box_is_advised_only_where_the_map_is_small() -> None:
    small = judge(replace(GOOD, **NO_OWN, mask_diameter_angstrom=100.0))
    assert any("200 Å wide" in text for text in small.advice)
    assert not any("smaller box" in text for text in judge(replace(GOOD, **NO_OWN)).advice)


def test_evidence_is_written_as_json_has_it() -> None:
    record = replace(GOOD, best_agreement=math.nan, views_emptiest_axis=(math.nan,) * 3).record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["best_agreement"] is None and record["views_emptiest_axis"] == [None, None, None]
    assert record["own_shells"] == 21.0 and record["start_likelihoods"] == [30.0, 29.0, 28.0]
