"""``cryoai evaluate``: maps, poses, classes or all of them against the truth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from jaxtyping import Bool, Float, Int

    from cryoai.metrics.class_evaluation import ClassEvaluation, Labels
    from cryoai.types import Map, ParticleSet, Pose

_CLASS, _JUNK, _CONFIDENCE = "rlnClassNumber", "cryoaiJunk", "cryoaiConfidence"
# A confidence of 1 in single precision may be a little more.
_ROUNDING = 1e-5


def evaluate(
    *,
    map_: Annotated[list[Path] | None, Parameter(name="--map", consume_multiple=True, negative="")] = None,
    true_map: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    poses: Path | None = None,
    true_poses: Path | None = None,
    pixel_size: float | None = None,
    voxel_size: float | None = None,
    true_voxel_size: float | None = None,
    symmetry: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    json: Path | None = None,
) -> None:
    """Compare maps, poses or both with the truth, over both hands; and classes, where there are several.

    Images that the true poses' file marks as junk (cryoaiJunk 1, of a simulation) have no pose and are left out.
    Classes are rlnClassNumber of both files, 0 for junk and for what was taken for it. Each found class is compared
    with the true one that most of its particles have.

    Parameters
    ----------
    map_
        The reconstructed map (MRC); of several classes all of them, in the order of their numbers.
    true_map
        The true map, of the same box in Å; or all of them.
    poses
        The estimated poses (STAR or .cs).
    true_poses
        The true poses of the same images, in any order.
    pixel_size
        Å, of the images; default: as the poses' files say.
    voxel_size, true_voxel_size
        Å, of the two maps; default: as their headers say.
    symmetry
        The molecule's point group, named as in RELION: Cn, Dn, T, O or I; or one for each true class. Poses that it
        makes equal count as equal. Its axes are found in the true map; without one they are where RELION has them.
        Default C1.
    json
        Write the figures to this JSON file.
    """
    from cryoai.errors import InputError
    from cryoai.geometry.point_groups import point_group_name

    map_, true_map = map_ or [], true_map or []
    for name, given, other in (("map", map_, true_map), ("poses", poses, true_poses)):
        if bool(given) != bool(other):
            lacking = f"--true-{name}" if not other else f"--{name}"
            raise InputError(f"{lacking} is missing", advice=f"--{name} and --true-{name} go together")
    symmetries = [point_group_name(name) for name in symmetry or ["C1"]]
    sizes = {"--pixel-size": pixel_size, "--voxel-size": voxel_size, "--true-voxel-size": true_voxel_size}
    for option, size in sizes.items():
        if size is not None and not (size > 0 and math.isfinite(size)):
            raise InputError(f"{option} {size:g} is not a positive length", advice="give it in Å")
    particles = None
    if poses is not None and true_poses is not None:
        particles = _read_particles(poses, true_poses, pixel_size, len(map_))
    maps = [_read_map(path, voxel_size, "--voxel-size") for path in map_]
    true_maps = [_read_map(path, true_voxel_size, "--true-voxel-size") for path in true_map]
    figures = _compare(maps, true_maps, particles, symmetries)
    if json is not None:
        from json import dumps

        from cryoai.io import write_text_atomic

        write_text_atomic(json, dumps(figures, indent=2) + "\n")


@dataclass(frozen=True)
class _Particles:
    """The same particles, in the same order, as they were found and as they are.

    Attributes
    ----------
    found, true
        Their poses.
    labels
        Their classes.
    pixel_size
        Å; None where the files do not say.
    """

    found: Pose
    true: Pose
    labels: Labels
    pixel_size: float | None


def _compare(
    maps: list[Map], true_maps: list[Map], particles: _Particles | None, symmetries: list[str]
) -> Mapping[str, object]:
    """Print the figures, and return them under their public names."""
    from cryoai.metrics.class_evaluation import describe_agreement, evaluate_classes
    from cryoai.metrics.classes import compare_classes
    from cryoai.metrics.evaluation import evaluate_reconstruction

    labels = None if particles is None else particles.labels
    pixel_size = None if particles is None else particles.pixel_size
    if max(len(maps), len(true_maps)) > 1 or (not maps and labels is not None and labels.classes_found > 1):
        evaluation = evaluate_classes(
            maps=maps,
            true_maps=true_maps,
            poses=None if particles is None else (particles.found, particles.true),
            labels=labels,
            pixel_size=pixel_size,
            symmetries=symmetries,
        )
        _print_classes(evaluation)
        return evaluation.to_json_dict()
    shown = None if particles is None else _without_junk(particles)
    figures: dict[str, object] = {
        **evaluate_reconstruction(
            estimated_map=maps[0] if maps else None,
            true_map=true_maps[0] if true_maps else None,
            estimated_pose=None if particles is None else particles.found[shown],
            true_pose=None if particles is None else particles.true[shown],
            pixel_size=pixel_size,
            symmetry=symmetries[0],
        ).to_json_dict()
    }
    if labels is not None and labels.are_several:
        figures |= describe_agreement(compare_classes(labels.found, labels.true, labels.confidence))
    _print_table(figures)
    return figures


def _without_junk(particles: _Particles) -> Bool[np.ndarray, " n"]:
    from cryoai.errors import InputError

    shown = particles.labels.true > 0
    if not shown.any():
        raise InputError("all of the images are junk in the true poses' file", advice="give others")
    if not shown.all():
        print(f"{(~shown).sum()} of {len(shown)} images show no particle ({_JUNK}) and are left out")
    return shown


def _read_map(path: Path, voxel_size: float | None, option: str) -> Map:
    from cryoai.errors import InputError
    from cryoai.io import read_map

    try:
        return read_map(path, voxel_size=voxel_size)
    except InputError as error:
        if "no voxel size" not in error.why:
            raise
        raise InputError(error.why, file=path, advice=f"give it with {option} (Å)") from error


def _read_particles(estimated: Path, true: Path, pixel_size: float | None, n_maps: int) -> _Particles:
    from cryoai.errors import InputError
    from cryoai.io import read_particles
    from cryoai.metrics.class_evaluation import Labels
    from cryoai.metrics.evaluation import match_particles

    particles, names, found = [], [], []
    for path in (estimated, true):
        particle_set = read_particles(path, check_stacks=False, pixel_size=pixel_size)
        if particle_set.pose is None:
            raise InputError("the file holds no poses", file=path, advice="give the output of a refinement")
        if not particle_set.pixel_sizes and _origins_are_in_px(particle_set):
            raise InputError(
                "its origins are in pixels and the pixel size is unknown", file=path, advice="give --pixel-size (Å)"
            )
        particles.append(particle_set)
        found.append(particle_set.pose)
        names.append([str(name) for name in particle_set.source.particles["rlnImageName"]])
    try:
        rows = match_particles(*names)
    except InputError as error:
        raise InputError(error.why, file=estimated, row=error.row, advice=error.advice) from error
    if n_maps > 1 and _CLASS not in particles[0].source.particles:
        raise InputError(f"there are {n_maps} maps and no {_CLASS}", file=estimated, advice="give one map")
    if pixel_size is None:
        pixel_size = particles[0].pixel_size or particles[1].pixel_size
    true_class = _read_classes(particles[1], true)
    true_class[_read_junk(particles[1], true)] = 0
    labels = Labels(
        _read_classes(particles[0], estimated), true_class[rows], _read_confidence(particles[0], estimated)
    )
    return _Particles(found[0], found[1][rows], labels, pixel_size)


def _read_classes(particles: ParticleSet, path: Path) -> Int[np.ndarray, " n"]:
    """Class of each image; 1 where the file has none."""
    import numpy as np

    return _read_numbers(
        particles, path, _CLASS, lambda value: (value >= 0) & (value == np.round(value)), 1.0
    ).astype(int)


def _read_confidence(particles: ParticleSet, path: Path) -> Float[np.ndarray, " n"]:
    """Confidence of each image; 1 where the file has none."""
    return _read_numbers(particles, path, _CONFIDENCE, lambda value: (value >= 0) & (value <= 1 + _ROUNDING), 1.0)


def _read_junk(particles: ParticleSet, path: Path) -> Bool[np.ndarray, " n"]:
    """Which images a simulation has marked as junk."""
    return _read_numbers(particles, path, _JUNK, lambda value: (value == 0) | (value == 1), 0.0) > 0


def _read_numbers(
    particles: ParticleSet,
    path: Path,
    column: str,
    is_right: Callable[[Float[np.ndarray, " n"]], Bool[np.ndarray, " n"]],
    otherwise: float,
) -> Float[np.ndarray, " n"]:
    """A column that may be lacking; a value that cannot be is refused with its row."""
    import numpy as np
    import pandas as pd

    from cryoai.errors import InputError

    table = particles.source.particles
    if column not in table:
        return np.full(len(particles), otherwise)
    values = np.asarray(pd.to_numeric(table[column], errors="coerce"), dtype=float)
    wrong = np.flatnonzero(~is_right(values))
    if len(wrong):
        allowed = {_CLASS: "a whole number, 0 or more", _CONFIDENCE: "0 to 1", _JUNK: "0 or 1"}[column]
        raise InputError(
            f"{column} is {str(table[column].iloc[wrong[0]])!r}",
            file=path,
            row=int(wrong[0]) + 1,
            advice=f"it must be {allowed}",
        )
    return values


def _origins_are_in_px(particles: ParticleSet) -> bool:
    table = particles.source.particles
    return "rlnOriginX" in table and "rlnOriginXAngst" not in table


_LABELS = {
    "fsc_0.5_px": "Resolution against the truth, FSC = 0.5 (px)",
    "fsc_0.5_angstrom": "Resolution against the truth, FSC = 0.5 (Å)",
    "fsc_0.143_px": "Resolution against the truth, FSC = 0.143 (px)",
    "fsc_0.5_px_masked": "The same inside the true map's mask, FSC = 0.5 (px)",
    "rotation_error_median": "Rotation error, median (squared Frobenius)",
    "rotation_error_mean": "Rotation error, mean (squared Frobenius)",
    "fraction_rotation_above_10deg": "Share of rotations off by more than 10°",
    "translation_error_median_px2": "Translation error, median (px²)",
    "translation_error_mean_px2": "Translation error, mean (px²)",
    "hand": "Hand, compared with the truth",
    "symmetry": "Symmetry, up to which poses are compared",
    "class_accuracy": "Particles in the right class (that of most of its own)",
    "class_ari": "Agreement of the classes, adjusted Rand index",
    "particles_in_sink": "Particles taken for junk",
    "junk_told_apart": "Junk in class 0, or with a confidence of at most 0.5",
    "class": "Class found",
    "true_class": "True class, that of most of its particles",
    "particles": "Images in it",
    "purity": "Share of them of that true class",
}


def _print_table(figures: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("Figure", "Value")
    for key, value in figures.items():
        table.add_row(_LABELS.get(key, key), _show(value))
    Console().print(table)


def _print_classes(evaluation: ClassEvaluation) -> None:
    """The figures of all classes side by side, below those of the labels."""
    from rich.console import Console
    from rich.table import Table

    figures = evaluation.to_json_dict()
    del figures["classes"]
    if figures:
        _print_table(figures)
    columns = [one.to_json_dict() for one in evaluation.classes]
    rows = [key for key in _LABELS if any(key in column for column in columns) and key != "class"]
    table = Table("Figure", *(f"Class {column['class']}" for column in columns))
    for key in rows:
        table.add_row(_LABELS[key], *(_show(column.get(key, "–")) for column in columns))
    Console().print(table)


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else str(value)
