"""A reconstruction of several classes against the truth: the labels, and each class's map and poses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.metrics.classes import SINK, ClassAgreement, compare_classes
from cryoai.metrics.evaluation import Evaluation, evaluate_reconstruction
from cryoai.types import Map, Pose


@dataclass(frozen=True)
class Labels:
    """Classes of the same particles, 0 for the sink and for junk.

    Attributes
    ----------
    found, true
        Class of each particle.
    confidence
        Of each particle, 0 to 1; None where it is not known.
    """

    found: Int[np.ndarray, " n"]
    true: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"] | None = None

    @property
    def classes_found(self) -> int:
        """How many classes were found, without the sink."""
        return len(np.unique(self.found[self.found != SINK]))

    @property
    def are_several(self) -> bool:
        """Whether there is anything to tell apart, in the truth or in what was found."""
        return len(np.unique(self.true)) > 1 or len(np.unique(self.found)) > 1


@dataclass(frozen=True)
class EvaluatedClass:
    """One class that was found.

    Attributes
    ----------
    number
        Of the found class, from 1.
    true_number
        Of the true class that it is compared with, from 1; 0 where it is mostly junk.
    particles
        How many images it holds; None without labels.
    purity
        Share of them that are of that true class; None without labels.
    evaluation
        Of its map, and of the poses of its particles of that true class; None where there is nothing to compare.
    """

    number: int
    true_number: int
    particles: int | None
    purity: float | None
    evaluation: Evaluation | None

    def to_json_dict(self) -> dict[str, float | str | int]:
        """Return the figures under their public names; only those that apply."""
        result: dict[str, float | str | int] = {"class": self.number, "true_class": self.true_number}
        if self.particles is not None and self.purity is not None:
            result |= {"particles": self.particles, "purity": self.purity}
        return result | (self.evaluation.to_json_dict() if self.evaluation is not None else {})


@dataclass(frozen=True)
class ClassEvaluation:
    """What `evaluate_classes` found.

    Attributes
    ----------
    agreement
        Of the labels; None without them.
    classes
        Each found class, in the order of their numbers.
    """

    agreement: ClassAgreement | None
    classes: tuple[EvaluatedClass, ...]

    def to_json_dict(self) -> dict[str, object]:
        """Return the figures under their public names; only those that apply."""
        result: dict[str, object] = {} if self.agreement is None else describe_agreement(self.agreement)
        return {**result, "classes": [one.to_json_dict() for one in self.classes]}


def describe_agreement(agreement: ClassAgreement) -> dict[str, object]:
    """The figures of the labels under their public names; only those that apply."""
    figures = {
        "class_accuracy": agreement.accuracy,
        "class_ari": agreement.ari,
        "particles_in_sink": agreement.particles_in_sink,
        "junk_told_apart": agreement.junk_told_apart,
    }
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def evaluate_classes(
    *,
    maps: Sequence[Map] = (),
    true_maps: Sequence[Map] = (),
    poses: tuple[Pose, Pose] | None = None,
    labels: Labels | None = None,
    pixel_size: float | None = None,
    symmetries: Sequence[str] = ("C1",),
) -> ClassEvaluation:
    """Compare several maps, and particles with their classes, with the truth; each class by itself.

    A found class is compared with the true class that most of its particles have; without labels with that of the
    true map which it correlates with best.

    Parameters
    ----------
    maps, true_maps
        In the order of the classes' numbers, from 1; none, or at least as many as there are classes.
    poses
        Estimated and true ones of the same particles.
    labels
        Their classes.
    pixel_size
        Å, of the images; default: the maps' voxel size.
    symmetries
        Point group of each true class, or one for all.

    Raises
    ------
    InputError
        Too few maps or symmetries for the classes, or as `evaluate_reconstruction`.
    """
    if bool(maps) != bool(true_maps):
        raise InputError("maps are given without true ones, or true ones alone", advice="give --map and --true-map")
    agreement = None if labels is None else compare_classes(labels.found, labels.true, labels.confidence)
    if agreement is not None:
        partners: Mapping[int, int | None] = agreement.majority
        if maps:
            _require_enough(maps, max(agreement.majority, default=0), "--map", "found")
    else:
        partners = dict.fromkeys(range(1, len(maps) + 1))
    most = len(true_maps) if labels is None else int(labels.true.max(initial=0))
    if true_maps:
        _require_enough(true_maps, most, "--true-map", "true")
    groups = list(symmetries) * max(most, 1) if len(symmetries) == 1 else list(symmetries)
    _require_enough(groups, most, "--symmetry", "true")
    classes = []
    for number, partner in sorted(partners.items()):
        own_map = maps[number - 1] if maps else None
        if partner is None:
            assert own_map is not None
            classes.append(_best_match(number, own_map, true_maps, groups))
        else:
            classes.append(_evaluate_class(number, partner, own_map, true_maps, poses, labels, pixel_size, groups))
    return ClassEvaluation(agreement, tuple(classes))


def _require_enough(given: Sequence[object], wanted: int, option: str, which: str) -> None:
    if len(given) < wanted:
        raise InputError(
            f"{option} is given {len(given)} times and there are {wanted} {which} classes",
            advice="give one for each, in the order of their numbers",
        )


def _best_match(number: int, own_map: Map, true_maps: Sequence[Map], groups: Sequence[str]) -> EvaluatedClass:
    """A class of which there is only the map, with the true map that it is most like (mean FSC inside the mask)."""
    evaluations = [
        evaluate_reconstruction(estimated_map=own_map, true_map=true_map, symmetry=group)
        for true_map, group in zip(true_maps, groups, strict=False)
    ]
    likeness = [float(np.mean(one.fsc_masked.correlation)) for one in evaluations if one.fsc_masked is not None]
    best = int(np.argmax(likeness))
    return EvaluatedClass(number, best + 1, None, None, evaluations[best])


def _evaluate_class(
    number: int,
    partner: int,
    own_map: Map | None,
    true_maps: Sequence[Map],
    poses: tuple[Pose, Pose] | None,
    labels: Labels | None,
    pixel_size: float | None,
    groups: Sequence[str],
) -> EvaluatedClass:
    """A class whose true one is known from its particles."""
    assert labels is not None
    inside = labels.found == number
    rows = np.flatnonzero(inside & (labels.true == partner))
    purity = float(np.mean(labels.true[inside] == partner))
    evaluation = None
    if partner != SINK and (own_map is not None or poses is not None):
        evaluation = evaluate_reconstruction(
            estimated_map=own_map,
            true_map=None if own_map is None else true_maps[partner - 1],
            estimated_pose=None if poses is None else poses[0][rows],
            true_pose=None if poses is None else poses[1][rows],
            pixel_size=pixel_size,
            symmetry=groups[partner - 1],
        )
    return EvaluatedClass(number, partner, int(inside.sum()), purity, evaluation)
