"""``cryoai evaluate``: a map, poses or both against the truth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

    from cryoai.metrics.evaluation import Evaluation
    from cryoai.types import Map, ParticleSet, Pose


def evaluate(
    *,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    true_map: Path | None = None,
    poses: Path | None = None,
    true_poses: Path | None = None,
    pixel_size: float | None = None,
    voxel_size: float | None = None,
    true_voxel_size: float | None = None,
    symmetry: str = "C1",
    json: Path | None = None,
) -> None:
    """Compare a map, poses or both with the truth, over both hands.

    Images that the true poses' file marks as junk (cryoaiJunk 1, of a simulation) have no pose and are left out.

    Parameters
    ----------
    map_
        The reconstructed map (MRC).
    true_map
        The true map, of the same box in Å.
    poses
        The estimated poses (STAR or .cs).
    true_poses
        The true poses of the same images, in any order.
    pixel_size
        Å, of the images; default: as the poses' files say.
    voxel_size, true_voxel_size
        Å, of the two maps; default: as their headers say.
    symmetry
        The molecule's point group, named as in RELION: Cn, Dn, T, O or I. Poses that it makes equal count as
        equal. Its axes are found in the true map; without one they are where RELION has them.
    json
        Write the figures to this JSON file.
    """
    from cryoai.errors import InputError
    from cryoai.geometry.point_groups import point_group_name
    from cryoai.metrics.evaluation import evaluate_reconstruction

    for name, given, other in (("map", map_, true_map), ("poses", poses, true_poses)):
        if (given is None) != (other is None):
            lacking = f"--true-{name}" if other is None else f"--{name}"
            raise InputError(f"{lacking} is missing", advice=f"--{name} and --true-{name} go together")
    symmetry = point_group_name(symmetry)
    sizes = {"--pixel-size": pixel_size, "--voxel-size": voxel_size, "--true-voxel-size": true_voxel_size}
    for option, size in sizes.items():
        if size is not None and not (size > 0 and math.isfinite(size)):
            raise InputError(f"{option} {size:g} is not a positive length", advice="give it in Å")
    estimated_pose = true_pose = None
    if poses is not None and true_poses is not None:
        estimated_pose, true_pose, pixel_size = _read_poses(poses, true_poses, pixel_size)
    evaluation = evaluate_reconstruction(
        estimated_map=_read_map(map_, voxel_size, "--voxel-size"),
        true_map=_read_map(true_map, true_voxel_size, "--true-voxel-size"),
        estimated_pose=estimated_pose,
        true_pose=true_pose,
        pixel_size=pixel_size,
        symmetry=symmetry,
    )
    _print_table(evaluation)
    if json is not None:
        from json import dumps

        from cryoai.io import write_text_atomic

        write_text_atomic(json, dumps(evaluation.to_json_dict(), indent=2) + "\n")


def _read_map(path: Path | None, voxel_size: float | None, option: str) -> Map | None:
    from cryoai.errors import InputError
    from cryoai.io import read_map

    if path is None:
        return None
    try:
        return read_map(path, voxel_size=voxel_size)
    except InputError as error:
        if "no voxel size" not in error.why:
            raise
        raise InputError(error.why, file=path, advice=f"give it with {option} (Å)") from error


def _read_poses(estimated: Path, true: Path, pixel_size: float | None) -> tuple[Pose, Pose, float | None]:
    """Poses of the same particles in the same order, and the images' pixel size in Å."""
    from cryoai.errors import InputError
    from cryoai.io import read_particles
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
    if pixel_size is None:
        pixel_size = particles[0].pixel_size or particles[1].pixel_size
    shown = _shows_a_particle(particles[1], true)[rows]
    if not shown.any():
        raise InputError("all of its images are junk in the true file", file=estimated, advice="give others")
    if not shown.all():
        print(f"{(~shown).sum()} of {len(shown)} images show no particle (cryoaiJunk) and are left out")
    return found[0][shown], found[1][rows][shown], pixel_size


def _shows_a_particle(particles: ParticleSet, path: Path) -> Bool[np.ndarray, " n"]:
    """Which images a simulation has not marked as junk."""
    import numpy as np

    from cryoai.errors import InputError

    table = particles.source.particles
    if "cryoaiJunk" not in table:
        return np.ones(len(particles), bool)
    marks = table["cryoaiJunk"].astype(str).to_numpy()
    wrong = np.flatnonzero(~np.isin(marks, ("0", "1", "0.0", "1.0")))
    if len(wrong):
        raise InputError(
            f"cryoaiJunk is {marks[wrong[0]]!r}", file=path, row=int(wrong[0]) + 1, advice="it must be 0 or 1"
        )
    return np.isin(marks, ("0", "0.0"))


def _origins_are_in_px(particles: ParticleSet) -> bool:
    table = particles.source.particles
    return "rlnOriginX" in table and "rlnOriginXAngst" not in table


def _print_table(evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    labels = {
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
    }
    table = Table("Figure", "Value")
    for key, value in evaluation.to_json_dict().items():
        table.add_row(labels.get(key, key), value if isinstance(value, str) else f"{value:.4g}")
    Console().print(table)
