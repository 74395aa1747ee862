"""Which poses a map cannot tell from each other: the same under a symmetry, or nearly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoai.geometry.point_groups import point_group
from cryoai.geometry.rotations import rotation_angle
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.alignment import MapAlignment, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.physics.slicing import make_accumulator
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.mates import find_mates

TURN = Rotation.from_rotvec([0.7, -0.4, 1.1]).as_matrix()


def moved(density: torch.Tensor, rotation: np.ndarray, shift: tuple[float, ...] = (0.0, 0.0, 0.0)) -> torch.Tensor:
    return apply_alignment(density, MapAlignment(rotation, np.array(shift), False, 1.0))


def make_halves(box: int, group: np.ndarray, odd_one_out: float = 0.0) -> HalfMaps:
    """Half-maps of a complex off the axes, turned; one of its subunits may be more than the others."""
    tilt = Rotation.from_rotvec([0.3, 0.5, -0.2]).as_matrix()
    one = moved(torch.from_numpy(make_phantom(box, 8.0).density.copy()), tilt, (0.12 * box, 0.05 * box, 0.08 * box))
    whole = torch.stack([moved(one, element) for element in group]).sum(0) + odd_one_out * one
    whole, generator = moved(whole, TURN), torch.Generator().manual_seed(0)
    noise = 0.2 * whole.std() * torch.randn(2, *whole.shape, generator=generator)
    first, second = whole + noise
    mask = make_soft_sphere(box)
    sums = make_accumulator(box, 3)
    return HalfMaps((sums, sums), (first, second), mask, compute_fsc(first, second, mask), box / 2 - 1)


@pytest.mark.parametrize(("name", "box"), [("C1", 33), ("C4", 32), ("D2", 33), ("O", 32)])
def test_mates_under_a_true_symmetry_are_the_same_pose(name: str, box: int) -> None:
    """All of the group, also where it is larger than what is found by correlation."""
    group = point_group(name)
    found = find_mates(make_halves(box, group))
    assert len(found.near) == 0 and len(found.same) == len(group)
    expected = torch.from_numpy(TURN.T @ group @ TURN).float()
    angles = [rotation_angle(expected, q.expand_as(expected)).amin() for q in found.same]
    assert max(angles) < np.radians(5)


def test_mates_under_a_near_symmetry_are_others() -> None:
    found = find_mates(make_halves(32, point_group("C3"), odd_one_out=0.6))
    assert len(found.near) == 2 and len(found.same) == 1
