"""A finished run on a hard set: what it says, how its views are spread, and how it compares with the truth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import read_metrics
from roundness import measure_roundness

from cryoai import read_map, read_particles
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.io.structure import density_from_structure
from cryoai.metrics.alignment import apply_alignment
from cryoai.metrics.evaluation import Evaluation, evaluate_reconstruction, match_particles
from cryoai.metrics.views import measure_views
from cryoai.refinement.confidence import CONFIDENT
from cryoai.types import Map

_JUNK = "cryoaiJunk"


def describe(output: Path) -> dict[str, Any]:
    """What a run says of itself; how its views are spread, measured here, whichever code ran; its map's profile."""
    found, density = read_particles(output / "particles.star"), read_map(output / "map.mrc")
    assert found.pose is not None
    confidence = found.source.particles["cryoaiConfidence"].to_numpy(float)
    views = measure_views(found.pose.rotation, confidence)
    return {
        **read_metrics(output / "metrics.jsonl"),
        "views": {
            "emptiest_cone_deg": views.emptiest_cone_deg, "scf": views.scf_star, "evenness": views.evenness,
            "filled_share": views.filled_share,
        },
        "roundness": asdict(measure_roundness(density.density, density.voxel_size)),
    }  # fmt: skip


def compare_with_model(output: Path, model: Path) -> dict[str, Any]:
    """The map against an atomic model whose place and hand in the map are unknown."""
    found = read_map(output / "map.mrc")
    true = density_from_structure(model, found.box_size, found.voxel_size)
    evaluation = evaluate_reconstruction(estimated_map=found, true_map=true)
    return {
        **_of_maps(evaluation, found, true),
        "true_outer_diameter": measure_roundness(true.density, true.voxel_size).outer_diameter,
    }


def compare_with_truth(simulated: Path, output: Path) -> dict[str, Any]:
    """The map, and the poses of those images that show a particle, against a simulated set's; what junk became."""
    true, found = read_particles(simulated / "particles.star"), read_particles(output / "particles.star")
    maps = read_map(output / "map.mrc"), read_map(simulated / "true_map.mrc")
    assert true.pose is not None and found.pose is not None
    names = [[str(name) for name in p.source.particles["rlnImageName"]] for p in (found, true)]
    rows = match_particles(*names)
    table = true.source.particles
    is_junk = table[_JUNK].to_numpy(int)[rows] > 0 if _JUNK in table else np.zeros(len(rows), bool)
    confident = found.source.particles["cryoaiConfidence"].to_numpy(float) > CONFIDENT
    evaluation = evaluate_reconstruction(
        estimated_map=maps[0], true_map=maps[1], estimated_pose=found.pose[~is_junk],
        true_pose=true.pose[rows][~is_junk],
    )  # fmt: skip
    figures = {**_of_maps(evaluation, *maps), "confident_particles": float(confident[~is_junk].mean())}
    if is_junk.any():
        figures["confident_junk"] = float(confident[is_junk].mean())
    return figures


def _of_maps(evaluation: Evaluation, found: Map, true: Map) -> dict[str, Any]:
    """The figures of an evaluation, the FSC at 0.143 in Å, and the maps' correlation where the FSC says little.

    The FSC of a ball with its noisy copy falls in each shell where a ball has no power, however good the copy is.
    """
    assert evaluation.alignment is not None and evaluation.fsc is not None
    figures = {**evaluation.to_json_dict(), "fsc_0.143_angstrom": evaluation.fsc.resolution_angstrom(0.143)}
    if found.box_size == true.box_size:
        aligned = apply_alignment(torch.from_numpy(np.array(found.density, np.float32)), evaluation.alignment)
        inside = make_soft_sphere(found.box_size).numpy() > 0.5
        correlation = np.corrcoef(aligned.numpy()[inside], np.asarray(true.density)[inside])[0, 1]
        figures["correlation"] = float(correlation)
    return figures
