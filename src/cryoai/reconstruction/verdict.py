"""Whether a run found the molecule: one word, the reasons for it, and what would help."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from cryoai.ab_initio.agreement import AGREEMENT_OF_SHELLS
from cryoai.reconstruction.evidence import Evidence
from cryoai.refinement.confidence import CONFIDENT
from cryoai.refinement.rounds import SHELLS_OF_EVIDENCE

Call = Literal["found", "uncertain", "not found"]

# The thresholds come from small simulated sets (32 px, 600 particles) and single larger ones.
# Half-maps of pure noise reach 0.5 to 3 shells beyond those they share, of a ball 1.6, of right maps 3.6 and more.
_CLEAR_SHELLS_OF_EVIDENCE = 3.0
# Real ferritin reached 4.4 of them with starts that agreed in the mean only, and a map that was right in 7 shells.
_PLENTY_OF_EVIDENCE = 6.0
# SCF* is above 0.9 for evenly seen sets and real ferritin, 0.81 for side views alone, 0.7 for 220 real tilts.
_UNEVEN_SCF = 0.2
# Of a molecule seen from within 20° of one axis alone some particles are posed wrongly, into views that nobody saw:
# SCF* is 0.17, and a cone of 24° is left empty. With 30 % of the views from elsewhere it is 0.44, with 4°.
_ONE_SIDED_SCF, _ONE_SIDED_CONE_DEG = 0.25, 20.0
# The gain is 1.0 of the expected one in right maps, -1 where the other half's map has nothing in common with the
# images. Filtered maps of pure noise have little to contradict: they were seen at 1.2.
_NO_FIT, _POOR_FIT = 0.1, 0.5
# Single fits count where images of nothing would lie so many standard deviations below a right fit.
_FITS_TELL = -4.0
# Shares of the poses; right maps of clean sets have 0.8 and more.
_NONE_CONFIDENT, _FEW_CONFIDENT = 0.02, 0.3
# Shares of images that are not what the map holds, from which they are told of, and from which it may be the map
# that is not what they show.
_SOME_JUNK, _MUCH_JUNK = 0.05, 0.7
# Nats per unseen image: pure noise has 0.0, sets at -16 dB of which a right map can be made about 5.
_NO_GAIN = 0.2
# Right poses at -10 dB are known to 0.3 to 3 degrees; the bootstrap's grid has 15 degrees.
_VAGUE_POSES_DEG, _UNKNOWN_POSES_DEG = 8.0, 20.0
# Of what half-maps agree on by themselves, the share that tells views apart: 1.00 of the 70S, 0.15 of a ball.
_ROUND, _NEARLY_ROUND = 0.3, 0.5
# A bootstrap takes mini-batches of 250 images; a half of 15 particles is a map of single images.
_FEW_PARTICLES, _FEWEST_PARTICLES = 200, 30
# Where nothing stands out from the noise the mask is a sphere as wide as the box.
_FILLED_MASK = 0.95
# A mask narrower than this share of the box leaves most of it to noise and neighbours.
_NARROW_MASK = 0.4
# What is left of the confidences, in the same order: well below `CONFIDENT` where the molecule was not found; where
# starts found different maps, of which one at most is right, not above it.
_LOWERED, _HALVED = 0.25, 0.5


@dataclass(frozen=True)
class Verdict:
    """Whether the molecule was found.

    Attributes
    ----------
    call
        ``"found"``: everything that was measured speaks for the map. ``"not found"``: something speaks so clearly
        against it that it must not be used. ``"uncertain"``: between the two.
    reasons
        A sentence each, without a full stop: what spoke against the map, or for it where it was found.
    advice
        What would help, for these reasons.
    confidence_factor
        What confidences are multiplied by: in a wrong map no pose is right, however well it fits.
    """

    call: Call
    reasons: tuple[str, ...]
    advice: tuple[str, ...] = ()
    confidence_factor: float = 1.0


class _Says(IntEnum):
    """What one kind of evidence says of the map."""

    AGAINST = 0
    DOUBTFUL = 1
    FOR = 2


_CALLS: dict[_Says, Call] = {_Says.AGAINST: "not found", _Says.DOUBTFUL: "uncertain", _Says.FOR: "found"}


@dataclass(frozen=True)
class _Finding:
    says: _Says
    reason: str
    advice: tuple[str, ...] = ()


def judge(evidence: Evidence) -> Verdict:
    """Found where all evidence is for the map, not found where any is against it, uncertain otherwise.

    Starts that disagree are against a map whose half-maps do not clearly speak for it; where they do, it is
    uncertain.

    Parameters
    ----------
    evidence
        Of a finished run.
    """
    findings = [finding for look in _LOOKS if (finding := look(evidence)) is not None]
    call = _CALLS[min(finding.says for finding in findings)]
    # What is against the map comes first, then what is doubtful.
    told = sorted((f for f in findings if f.says < _Says.FOR or call == "found"), key=lambda finding: finding.says)
    advice = dict.fromkeys(text for finding in told for text in finding.advice)
    factor = _LOWERED if call == "not found" else _HALVED if _starts_disagree(evidence) else 1.0
    return Verdict(call, tuple(finding.reason for finding in told), tuple(advice), factor)


def _starts_disagree(e: Evidence) -> bool:
    return e.poses == "bootstrap" and e.starts > 1 and e.starts_agreeing <= 1


def _look_at_half_maps(e: Evidence) -> _Finding:
    agree = f"the half-maps agree to {e.resolution_angstrom:.1f} Å"
    if not e.halves_kept_apart:
        return _halves_that_met(e, agree)
    if e.shared_shells > 0:
        shared = f"{e.box_length / e.shared_shells:.0f} Å, to which both were aligned by one map"
        agree += f", {e.own_shells:.1f} shells beyond the {shared}"
    else:
        shared = "the size of the box"
    if e.own_shells >= _CLEAR_SHELLS_OF_EVIDENCE:
        return _Finding(_Says.FOR, agree)
    if e.shared_shells > 0 and e.fsc_shells >= e.box_size / 2 - 1:
        reason = f"the box of {e.box_size} px leaves the half-maps hardly a shell beyond the {shared}"
        return _Finding(_Says.DOUBTFUL, reason, ("a larger --box-size, or finer pixels",))
    if e.own_shells >= SHELLS_OF_EVIDENCE:
        return _Finding(_Says.DOUBTFUL, f"{agree}, which may be chance", _more_signal(e))
    return _Finding(_Says.AGAINST, f"the half-maps agree hardly beyond {shared}", _more_signal(e))


def _halves_that_met(e: Evidence, agree: str) -> _Finding:
    if e.poses == "given":
        reason, advice = (
            "the given poses may come from one map of both",
            "an input with half-sets (rlnRandomSubset)",
        )
    else:
        reason, advice = "their poses come from one map of both", "refinement in halves (refine.max_rounds above 0)"
    return _Finding(_Says.DOUBTFUL, f"{agree}, which need not be evidence: {reason}", (advice,))


def _look_at_starts(e: Evidence) -> _Finding | None:
    if e.poses == "given":
        return None
    if e.poses == "scratch":
        reason = "encoder and volume were trained once: whether another training finds the same map is not known"
        return _Finding(_Says.DOUBTFUL, reason, ("a run with another --seed, to compare",))
    if e.starts == 1:
        reason = "there was a single start: whether another one finds the same map is not known"
        return _Finding(_Says.DOUBTFUL, reason, ("more starts (the same command with --seeds 3 and --resume)",))
    if e.starts_agreeing > 1:
        agreeing = f"all {e.starts}" if e.starts_agreeing == e.starts else f"{e.starts_agreeing} of {e.starts}"
        if e.lowest_agreement < AGREEMENT_OF_SHELLS and e.own_shells < _PLENTY_OF_EVIDENCE:
            reason = (
                f"{agreeing} starts found the same map, but not in every shell (FSC {e.lowest_agreement:.2f} in "
                "one), and the half-maps do not agree much further"
            )
            return _Finding(_Says.DOUBTFUL, reason, (_MORE_PARTICLES, _more_starts(e)))
        return _Finding(_Says.FOR, f"{agreeing} starts found the same map")
    clear = e.halves_kept_apart and e.own_shells >= _CLEAR_SHELLS_OF_EVIDENCE
    reason = (
        f"the {e.starts} starts found different maps (mean FSC with the best one at most {e.best_agreement:.2f})"
    )
    return _Finding(_Says.DOUBTFUL if clear else _Says.AGAINST, reason, (_more_starts(e),))


def _look_at_likelihood(e: Evidence) -> _Finding | None:
    # A gain is no reason for a map: wrong ones explain something too.
    if not e.held_out_likelihood <= _NO_GAIN:
        return None
    reason = "images that the starts have not seen fit the best map no better than no map at all"
    return _Finding(_Says.AGAINST, reason, _more_signal(e))


def _look_at_views(e: Evidence) -> _Finding:
    axis = ", ".join(f"{round(value, 2) + 0.0:.2f}" for value in e.views_emptiest_axis)
    gap = f"the emptiest cone is at ({axis}), {e.views_emptiest_cone_deg:.0f}° wide to each side"
    is_one_sided = e.views_scf < _ONE_SIDED_SCF and e.views_emptiest_cone_deg > _ONE_SIDED_CONE_DEG
    if e.views_are_lacking or is_one_sided or math.isnan(e.views_scf):
        advice = "particles seen from other sides (another grid or additive, tilted data)"
        return _Finding(_Says.AGAINST, f"views are missing: {gap} (SCF* {e.views_scf:.2f})", (advice,))
    if e.views_scf < _UNEVEN_SCF:
        reason = f"views are very uneven: SCF* is {e.views_scf:.2f}, {gap}"
        return _Finding(_Says.DOUBTFUL, reason, ("more particles of the rare views",))
    filled = math.floor(100 * e.views_filled_share + 1e-9)
    return _Finding(_Says.FOR, f"views fill {filled} % of Fourier space (SCF* {e.views_scf:.2f})")


def _look_at_roundness(e: Evidence) -> _Finding | None:
    if not e.halves_kept_apart or not e.view_share < _NEARLY_ROUND:
        return None
    if e.view_share < _ROUND:
        reason = "views cannot be told apart: what the half-maps agree on looks alike from all sides"
        return _Finding(_Says.AGAINST, reason, _more_signal(e))
    share = f"only {100 * e.view_share:.0f} % of what the half-maps agree on"
    reason = f"views can hardly be told apart: {share} is not alike from all sides"
    return _Finding(_Says.DOUBTFUL, reason, _more_signal(e))


def _look_at_fits(e: Evidence) -> _Finding:
    gain = f"particles gain {100 * e.fit_ratio:.0f} % of what they should, in the other half's map (median)"
    if e.fit_ratio >= _POOR_FIT:
        return _Finding(_Says.FOR, gain)
    if e.fit_ratio >= _NO_FIT:
        return _Finding(_Says.DOUBTFUL, f"{gain}, which is poor", _more_signal(e))
    return _Finding(_Says.AGAINST, "particles do not fit the map of the half that they are not in", _more_signal(e))


def _look_at_confidence(e: Evidence) -> _Finding | None:
    # In much noise right poses are not confident either; half-maps without evidence leave none, as is said there.
    if not e.fit_noise_quality < _FITS_TELL or e.own_shells < SHELLS_OF_EVIDENCE:
        return None
    share = f"{100 * e.fraction_confident:.0f} % of the poses are confident (above {CONFIDENT:g})"
    if e.fraction_confident >= _FEW_CONFIDENT:
        return _Finding(_Says.FOR, share)
    advice = ("a cleaner set (2D classification), where much of it may be junk",)
    if e.fraction_confident >= _NONE_CONFIDENT:
        return _Finding(_Says.DOUBTFUL, f"only {share}", advice)
    return _Finding(_Says.AGAINST, f"hardly any particle has a pose that is clearly right: {share}", advice)


def _look_at_presence(e: Evidence) -> _Finding | None:
    junk = 1 - e.fraction_present
    if junk < _SOME_JUNK:
        return None
    reason = (
        f"{100 * junk:.0f} % of the images fit the map no better than something without features would: junk, or "
        "particles whose poses were not found"
    )
    if junk < _MUCH_JUNK:
        return _Finding(_Says.FOR, reason)
    advice = ("a cleaner set (2D classification)",)
    return _Finding(_Says.DOUBTFUL, reason, advice)


def _look_at_poses(e: Evidence) -> _Finding:
    known = f"rotations are known to {e.rotation_std_deg:.2g}° (median standard deviation)"
    if e.rotation_std_deg < _VAGUE_POSES_DEG:
        return _Finding(_Says.FOR, known)
    if e.rotation_std_deg < _UNKNOWN_POSES_DEG:
        return _Finding(_Says.DOUBTFUL, f"views can hardly be told apart: {known}", _more_signal(e))
    return _Finding(
        _Says.AGAINST, "views cannot be told apart: the map looks alike from all sides", _more_signal(e)
    )


def _look_at_particles(e: Evidence) -> _Finding | None:
    if e.particles >= _FEW_PARTICLES:
        return None
    says = _Says.DOUBTFUL if e.particles >= _FEWEST_PARTICLES else _Says.AGAINST
    return _Finding(says, f"there are only {e.particles} particles", (_MORE_PARTICLES,))


def _look_at_mask(e: Evidence) -> _Finding | None:
    if 0 < e.mask_share < _FILLED_MASK:
        return None
    reason = "nothing stands out from the map's noise: the mask is as wide as the box"
    return _Finding(_Says.DOUBTFUL, reason, ("a larger box, should the particle fill this one",))


# In the order in which they are told.
_LOOKS: tuple[Callable[[Evidence], _Finding | None], ...] = (
    _look_at_half_maps, _look_at_starts, _look_at_likelihood, _look_at_views, _look_at_roundness, _look_at_fits,
    _look_at_confidence, _look_at_presence, _look_at_poses, _look_at_particles, _look_at_mask,
)  # fmt: skip


_MORE_PARTICLES = "more particles"


def _more_starts(e: Evidence) -> str:
    return f"more starts (the same command with --seeds {2 * e.starts} and --resume)"


def _more_signal(e: Evidence) -> tuple[str, ...]:
    """What helps where the images show too little."""
    advice = [_MORE_PARTICLES]
    if e.poses == "bootstrap":
        advice.append(_more_starts(e))
    if 0 < e.mask_diameter_angstrom < _NARROW_MASK * e.box_length:
        advice.append(f"a smaller box: images some {2 * e.mask_diameter_angstrom:.0f} Å wide would hold this map")
    return tuple(advice)
