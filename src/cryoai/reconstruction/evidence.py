"""Every number of a finished run that speaks for or against its map."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cryoai.geometry.shells import radial_distance
from cryoai.metrics.round_part import compute_fsc_of_views
from cryoai.metrics.views import Axis
from cryoai.refinement.rounds import SHELLS_OF_EVIDENCE

if TYPE_CHECKING:
    from cryoai.reconstruction.result import ReconstructionResult

# Inside the mask, where it is above this.
_MASK_EDGE = 0.5


@dataclass(frozen=True)
class Evidence:
    """What speaks for or against a map; NaN (None in a list or tuple) where something was not measured.

    Attributes
    ----------
    poses
        Where the first poses come from: the ``"bootstrap"``, an encoder trained from ``"scratch"``, or the input
        (``"given"``).
    particles
        Particles that take part.
    box_size, voxel_size
        Of the map; px and Å.
    starts
        Independent beginnings from nothing; 0 with given poses.
    starts_agreeing
        How many found the best one's map, itself included.
    best_agreement
        Highest mean FSC, after alignment, of any other start with the best.
    lowest_agreement
        Lowest FSC of any shell with the best start, of the start for which that is highest.
    held_out_likelihood
        The best start's log-likelihood gain per image that it has not seen, nats.
    start_likelihoods, start_agreements
        Of each start.
    fsc_shells
        Shell at which the corrected half-map FSC falls below 0.143.
    resolution_angstrom
        The same in Å.
    shared_shells
        Shells within which both halves have been aligned to one map.
    own_shells
        Shells of half-map agreement beyond those: the halves' own evidence.
    view_share
        How much of that agreement, from two shells further on, tells views apart: mean FSC without what looks alike
        from all sides, by mean FSC. NaN without such shells.
    halves_kept_apart
        Whether the halves were apart from then on. Not so where poses were not refined in halves, or are the
        input's without its half-sets.
    views_filled_share, views_scf, views_evenness, views_emptiest_cone_deg, views_emptiest_axis
        See `ViewCoverage`; degrees, and xyz in the map.
    views_expected_cone_deg
        Emptiest cone that as many uniform views would leave, degrees.
    views_are_lacking
        Whether views leave much of Fourier space empty.
    fraction_confident
        Share of the poses that are confident, by the fits alone.
    fraction_present
        Share of the images that fit the map better than something without features would.
    fit_quality, fit_ratio, fit_expected, fit_noise_quality
        Medians over the set against the other half's map, see `FitSummary`; standard deviations, by expected gain,
        nats, standard deviations.
    rotation_std_deg, translation_std_angstrom
        Median standard deviation of the poses; degrees and Å.
    mask_diameter_angstrom
        Twice the distance from the centre within which 98 % of the mask lies.
    mask_share
        Volume of the mask by that of the largest sphere in the box; near 1 where nothing stands out from the noise.
    """

    poses: Literal["bootstrap", "scratch", "given"]
    particles: int
    box_size: int
    voxel_size: float
    starts: int
    starts_agreeing: int
    best_agreement: float
    lowest_agreement: float
    held_out_likelihood: float
    start_likelihoods: tuple[float, ...]
    start_agreements: tuple[float, ...]
    fsc_shells: float
    resolution_angstrom: float
    shared_shells: float
    own_shells: float
    view_share: float
    halves_kept_apart: bool
    views_filled_share: float
    views_scf: float
    views_evenness: float
    views_emptiest_cone_deg: float
    views_emptiest_axis: Axis
    views_expected_cone_deg: float
    views_are_lacking: bool
    fraction_confident: float
    fraction_present: float
    fit_quality: float
    fit_ratio: float
    fit_expected: float
    fit_noise_quality: float
    rotation_std_deg: float
    translation_std_angstrom: float
    mask_diameter_angstrom: float
    mask_share: float

    @property
    def box_length(self) -> float:
        """Å."""
        return self.box_size * self.voxel_size

    def record(self) -> dict[str, Any]:
        """Every number as JSON has it, which has no NaN: None stands for it."""
        return {name: _json_value(value) for name, value in asdict(self).items()}


def gather_evidence(result: ReconstructionResult) -> Evidence:
    """Collect it from a result.

    Parameters
    ----------
    result
        Of which ``fits`` were measured before any confidence was lowered.
    """
    views, fits, state = result.views, result.fits, result.state
    crossing = result.fsc.corrected.crossing(0.143)
    diameter, share = _measure_mask(result)
    return Evidence(
        **_beginnings(result),
        particles=len(state.used),
        box_size=result.fsc.corrected.box_size,
        voxel_size=result.voxel_size,
        fsc_shells=crossing,
        resolution_angstrom=result.resolution,
        shared_shells=result.shared_shells,
        own_shells=crossing - result.shared_shells,
        view_share=_measure_view_share(result),
        halves_kept_apart=_were_kept_apart(result),
        views_filled_share=views.filled_share,
        views_scf=views.scf_star,
        views_evenness=views.evenness,
        views_emptiest_cone_deg=views.emptiest_cone_deg,
        views_emptiest_axis=views.emptiest_axis,
        views_expected_cone_deg=views.expected_cone_deg,
        views_are_lacking=views.is_lacking,
        fraction_confident=fits.fraction_confident,
        fraction_present=fits.fraction_present,
        fit_quality=fits.median_quality,
        fit_ratio=fits.median_ratio,
        fit_expected=fits.median_expected,
        fit_noise_quality=fits.median_noise_quality,
        rotation_std_deg=float(state.rotation_std[state.used].median().rad2deg()),
        translation_std_angstrom=float(state.translation_std[state.used].median()),
        mask_diameter_angstrom=diameter,
        mask_share=share,
    )


def _beginnings(result: ReconstructionResult) -> dict[str, Any]:
    """What is known of how the first poses were found."""
    ab_initio = result.ab_initio
    if ab_initio is None:
        given = result.config.has_poses
        return {
            "poses": "given" if given else "scratch", "starts": 0 if given else 1,
            "starts_agreeing": 0 if given else 1, "best_agreement": math.nan, "lowest_agreement": math.nan,
            "held_out_likelihood": math.nan, "start_likelihoods": (), "start_agreements": (),
        }  # fmt: skip
    others = [a for i, a in enumerate(ab_initio.agreements, 1) if i != ab_initio.best_number]
    return {
        "poses": "bootstrap", "starts": len(ab_initio.agreements), "starts_agreeing": ab_initio.agreeing,
        "best_agreement": max(others, default=math.nan),
        "lowest_agreement": ab_initio.lowest_agreement if others else math.nan,
        "held_out_likelihood": max(ab_initio.likelihoods),
        "start_likelihoods": ab_initio.likelihoods, "start_agreements": ab_initio.agreements,
    }  # fmt: skip


def _were_kept_apart(result: ReconstructionResult) -> bool:
    """Poses from one map that are not refined in halves carry its noise into both; so may the input's."""
    if not result.config.has_poses:
        return bool(result.rounds)
    subset, used = result.particles.random_subset, result.state.used
    return subset is not None and bool((subset[used] - 1 == result.state.half[used]).all())


def _measure_view_share(result: ReconstructionResult) -> float:
    """See `Evidence.view_share`; every coefficient counts alike."""
    whole, views = result.fsc.corrected, compute_fsc_of_views(*result.halves.unfiltered, result.halves.mask)
    first = result.shared_shells + (SHELLS_OF_EVIDENCE if result.shared_shells else 0)
    shells = views.shell[(views.shell > first) & (views.shell <= whole.crossing(0.143))]
    if len(shells) == 0:
        return math.nan
    return float((shells**2 @ views.correlation[shells - 1]) / (shells**2 @ whole.correlation[shells - 1]))


def _measure_mask(result: ReconstructionResult) -> tuple[float, float]:
    """Diameter of the mask, Å, and its volume by that of the sphere that it is where nothing stands out."""
    mask = result.halves.mask.cpu()
    box = mask.shape[-1]
    distance = radial_distance(box, 3)[mask > _MASK_EDGE]
    if len(distance) == 0:
        return 0.0, 0.0
    diameter = 2 * float(np.quantile(distance.numpy(), 0.98)) * result.voxel_size
    return diameter, len(distance) / (math.pi / 6 * (box - 2) ** 3)


def _json_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
