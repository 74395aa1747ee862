"""A whole run as a user starts it, judged by the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoai import ReconstructConfig, evaluate_reconstruction, read_map, read_particles, reconstruct


@pytest.mark.slow
def test_phantom_is_recovered_from_unknown_poses(simulated: Path, tmp_path: Path) -> None:
    result = reconstruct(simulated / "particles.star", tmp_path, ReconstructConfig(seeds=1))
    evaluation = evaluate_reconstruction(
        estimated_map=read_map(tmp_path / "map.mrc"),
        true_map=read_map(simulated / "true_map.mrc"),
        estimated_pose=read_particles(tmp_path / "particles.star").pose,
        true_pose=read_particles(simulated / "particles.star").pose,
        pixel_size=8.0,
    )
    assert evaluation.fsc is not None and evaluation.poses is not None
    assert evaluation.fsc.resolution_px(0.5) < 2.2
    assert evaluation.poses.rotation_error_median < 0.005
    assert evaluation.poses.fraction_rotation_above_10deg < 0.03
    assert evaluation.poses.translation_error_mean_px2 < 0.1
    # The resolution it claims is not better than the one it has.
    assert result.resolution > 0.93 * evaluation.fsc.resolution_angstrom(0.5)
    # Standard deviations are of the size of the errors: θ² per axis is ‖·‖²_F / 6.
    actual = np.sqrt(np.median(evaluation.poses.rotation_error) / 6)
    claimed = float(result.state.rotation_std.median())
    assert 0.5 < claimed / actual < 1.5
