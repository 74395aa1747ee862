"""Directions and rotations that a symmetric volume does not repeat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# The unit is what lies nearest to this direction, among its mates: any will do that is on no axis or mirror plane.
_CENTRE = (0.36, 0.16, 0.92)


def depth_in_unit(
    direction: Float[Tensor, "n 3"], group: Float[Tensor, "g 3 3"], opposites_alike: bool = False
) -> Float[Tensor, " n"]:
    """How far inside the asymmetric unit directions lie: of all mates of one, the largest is above 0.

    A direction is in the unit where none of its mates is closer to the unit's centre (a Dirichlet domain).

    Parameters
    ----------
    direction
        Unit vectors, xyz.
    group
        As `cryoai.geometry.point_groups.point_group` has it, the identity first.
    opposites_alike
        d and -d are mates, too.
    """
    near = direction @ (torch.tensor(_CENTRE).to(group) @ group).T.to(direction)
    own, mates = near[:, 0], near[:, 1:]
    if opposites_alike:
        mates = torch.cat((mates.abs(), -own[:, None]), 1)
    if mates.shape[1] == 0:
        return torch.ones_like(own)
    return own - mates.amax(1)


def unit_directions(
    direction: Float[Tensor, "n 3"], group: Float[Tensor, "g 3 3"], count: int
) -> Float[Tensor, "count 3"]:
    """So many of some directions on a half sphere, or their opposites, that are deepest in the asymmetric unit.

    Parameters
    ----------
    direction
        Unit vectors, evenly spread; about ``count`` for each element of the group.
    group
        Of the symmetry, the identity first.
    count
        How many.
    """
    upwards = direction * torch.where(direction @ torch.tensor(_CENTRE).to(direction) < 0, -1.0, 1.0)[:, None]
    deepest = depth_in_unit(upwards, group, opposites_alike=True).topk(count).indices
    return upwards[deepest.sort().values]
