"""A reconstruction against the truth: the map by FSC, the poses by their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.ndimage import binary_dilation, gaussian_filter
from torch import Tensor

from cryoai.errors import InputError
from cryoai.geometry.fourier import resample
from cryoai.geometry.soft_masks import make_soft_sphere, soften_mask
from cryoai.metrics.alignment import MapAlignment, align_maps, apply_alignment
from cryoai.metrics.fsc import FscCurve, compute_fsc
from cryoai.metrics.pose_error import PoseErrors, compute_pose_errors
from cryoai.metrics.symmetry import MapSymmetry, standard_symmetry, symmetry_of_map
from cryoai.types import Map, Pose

_BOX_TOLERANCE = 0.01


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_reconstruction` found; parts that were not asked for are None.

    Attributes
    ----------
    alignment
        Of the estimated map on the true one.
    fsc
        Of the aligned map with the true map inside a soft sphere inscribed in the box.
    fsc_masked
        The same inside a soft mask around the true map's density.
    poses
        Pose errors.
    symmetry
        Of the true map, up to which poses were compared.
    """

    alignment: MapAlignment | None = None
    fsc: FscCurve | None = None
    fsc_masked: FscCurve | None = None
    poses: PoseErrors | None = None
    symmetry: MapSymmetry = field(default_factory=lambda: standard_symmetry("C1"))

    @property
    def hand(self) -> str:
        """``"same"`` or ``"mirrored"``; by the maps if there were maps."""
        if self.alignment is not None:
            return "mirrored" if self.alignment.mirrored else "same"
        return "same" if self.poses is None else self.poses.hand

    def to_json_dict(self) -> dict[str, float | str]:
        """Return the figures under their public names; only those that apply."""
        result: dict[str, float | str] = {}
        if self.fsc is not None:
            result["fsc_0.5_px"] = self.fsc.resolution_px(0.5)
            result["fsc_0.5_angstrom"] = self.fsc.resolution_angstrom(0.5)
            result["fsc_0.143_px"] = self.fsc.resolution_px(0.143)
        if self.fsc_masked is not None:
            result["fsc_0.5_px_masked"] = self.fsc_masked.resolution_px(0.5)
        if self.poses is not None:
            for name in (
                "rotation_error_median",
                "rotation_error_mean",
                "fraction_rotation_above_10deg",
                "translation_error_median_px2",
                "translation_error_mean_px2",
            ):
                result[name] = getattr(self.poses, name)
        result["hand"] = self.hand
        if self.symmetry.name != "C1":
            result["symmetry"] = self.symmetry.name
        return result


def evaluate_reconstruction(
    *,
    estimated_map: Map | None = None,
    true_map: Map | None = None,
    estimated_pose: Pose | None = None,
    true_pose: Pose | None = None,
    pixel_size: float | None = None,
    symmetry: str = "C1",
) -> Evaluation:
    """Compare a map, poses or both with the truth, over both hands.

    Parameters
    ----------
    estimated_map, true_map
        Given together. Boxes may differ in px if they agree in Å: the finer map is Fourier cropped to the
        coarser grid, whose pixels the figures in px then mean.
    estimated_pose, true_pose
        Given together, of the same particles in the same order. With maps, the global rotation and the hand
        come from the maps; alone, from the poses.
    pixel_size
        Å, of the images; default: the estimated map's voxel size.
    symmetry
        Point group of the molecule (`point_group_name`): poses that it makes equal count as equal. Its axes
        are found in the true map; without maps they are where RELION has them, in the frame of the true poses.

    Raises
    ------
    InputError
        Nothing to compare, half a pair, boxes of different size in Å, poses without a pixel size, or a true
        map that does not have the symmetry.
    """
    _require_pair("map", estimated_map, true_map)
    _require_pair("poses", estimated_pose, true_pose)
    alignment = fsc = masked = poses = None
    axes = standard_symmetry(symmetry) if true_map is None else symmetry_of_map(true_map, symmetry)
    if estimated_map is not None and true_map is not None:
        alignment, fsc, masked = _compare_maps(estimated_map, true_map)
    if estimated_pose is not None and true_pose is not None:
        if pixel_size is None and estimated_map is not None:
            pixel_size = estimated_map.voxel_size
        if pixel_size is None:
            raise InputError(
                "the images have no pixel size, or several", advice="give the one to count in with --pixel-size (Å)"
            )
        poses = compute_pose_errors(estimated_pose, true_pose, alignment, pixel_size=pixel_size, symmetry=axes)
    if alignment is None and poses is None:
        raise InputError(
            "there is nothing to evaluate", advice="give --map and --true-map, or --poses and --true-poses"
        )
    return Evaluation(alignment, fsc, masked, poses, axes)


def match_particles(names: Sequence[str], true_names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Rows of the true table in the order of the estimated one, matched by image name.

    The true table may hold more particles than were reconstructed.

    Images are the same if their index and their stack's file name are (``000012@some/folder/stack.mrcs``);
    folders may differ, unless file names alone are ambiguous.

    Parameters
    ----------
    names, true_names
        RELION image names (``rlnImageName``) of the estimated and of the true table.

    Raises
    ------
    InputError
        An estimated image is not among the true ones, or occurs twice.
    """
    if len(names) > len(true_names):
        raise InputError(
            f"{len(names)} particles cannot be matched to {len(true_names)} true ones",
            advice="give poses of the same particles",
        )
    estimated, true = ([_image_key(name) for name in table] for table in (names, true_names))
    if len(set(true)) < len(true):
        # File names alone are ambiguous: whole names decide, or else the order, if the files share it.
        if estimated == true and set(names) != set(true_names):
            return np.arange(len(names))
        estimated, true = list(names), list(true_names)
    rows = {key: row for row, key in enumerate(true)}
    missing = [row for row, key in enumerate(estimated) if key not in rows]
    if missing:
        raise InputError(
            f"image {names[missing[0]]!r} ({len(missing)} in all) is not among the true poses",
            row=missing[0] + 1,
            advice="both files must name the same images",
        )
    matched = np.array([rows[key] for key in estimated])
    if len(set(matched.tolist())) < len(matched):
        raise InputError("image names occur more than once", advice="remove the duplicates from both files")
    return matched


def make_density_mask(
    density: Float[Tensor, "box box box"],
    *,
    threshold: float = 0.1,
    dilation_px: int = 3,
    edge_px: float = 5.0,
) -> Float[Tensor, "box box box"]:
    """Make a soft mask around a map's density, 0 to 1.

    The map is smoothed (σ = 1 px), cut at ``threshold`` times its 99.9th percentile, widened by
    ``dilation_px`` and given a cosine edge of ``edge_px``.
    """
    smooth = gaussian_filter(density.detach().cpu().numpy().astype(np.float64), 1.0)
    inside = binary_dilation(smooth > threshold * np.percentile(smooth, 99.9), iterations=dilation_px)
    return soften_mask(np.asarray(inside), 0.0, edge_px).to(density)


def _require_pair(what: str, estimated: object, true: object) -> None:
    if (estimated is None) != (true is None):
        given, lacking = ("estimated", "true") if true is None else ("true", "estimated")
        raise InputError(
            f"the {given} {what} came without the {lacking} one to compare with",
            advice=f"give both --{what} and --true-{what}",
        )


def _image_key(name: str) -> tuple[int, str]:
    """Index and stack file name of a RELION image name; a bare file name is its first image."""
    index, at, stack = name.rpartition("@")
    if at and not index.strip().isdigit():
        return 0, name
    return int(index) if at else 1, PurePosixPath(stack.replace("\\", "/")).name


def _compare_maps(estimated: Map, true: Map) -> tuple[MapAlignment, FscCurve, FscCurve]:
    """Align, then correlate."""
    size, true_size = (m.box_size * m.voxel_size for m in (estimated, true))
    if not math.isclose(size, true_size, rel_tol=_BOX_TOLERANCE):
        raise InputError(
            f"the maps' boxes differ: {estimated.box_size} px × {estimated.voxel_size:g} Å = {size:g} Å, and "
            f"{true.box_size} px × {true.voxel_size:g} Å = {true_size:g} Å",
            advice="crop or pad the true map to the same size in Å",
        )
    box = min(estimated.box_size, true.box_size)
    voxel_size = size / box
    density, reference = (
        resample(torch.from_numpy(np.array(m.density, dtype=np.float32)), box, 3) for m in (estimated, true)
    )
    alignment = align_maps(density, reference)
    aligned = apply_alignment(density, alignment)
    fsc = compute_fsc(aligned, reference, make_soft_sphere(box), voxel_size=voxel_size)
    masked = compute_fsc(aligned, reference, make_density_mask(reference), voxel_size=voxel_size)
    return alignment, fsc, masked
