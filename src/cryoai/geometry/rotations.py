"""Rotations, on top of `roma`; quaternions are xyzw.

A rotation maps image coordinates to volume coordinates. RELION's Euler angles give
``R = Rz(rot) Ry(tilt) Rz(psi)`` (RELION's own matrix is the transpose).
"""

from __future__ import annotations

import roma
import torch
from jaxtyping import Float
from torch import Tensor


def euler_zyz_to_rotation(angles_deg: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation from RELION's rot, tilt, psi in degrees."""
    return roma.euler_to_rotmat("ZYZ", angles_deg, degrees=True)


def rotation_to_euler_zyz(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3"]:
    """RELION's rot, tilt (0 to 180), psi in degrees; at the poles, where only rot ± psi matters, rot is 0."""
    rotation = rotation.double()
    tilt = torch.atan2(torch.hypot(rotation[..., 0, 2], rotation[..., 1, 2]), rotation[..., 2, 2].clamp(-1, 1))
    pole = torch.sin(tilt).abs() < 1e-7
    rot = torch.atan2(rotation[..., 1, 2], rotation[..., 0, 2])
    psi = torch.atan2(rotation[..., 2, 1], -rotation[..., 2, 0])
    # At a pole R = Rz(±psi) up to a flip about y; reading psi off the first column is exact there.
    sign = torch.where(rotation[..., 2, 2] > 0, 1.0, -1.0)
    pole_psi = torch.atan2(rotation[..., 1, 0], sign * rotation[..., 0, 0])
    rot, psi = torch.where(pole, torch.zeros_like(rot), rot), torch.where(pole, pole_psi, psi)
    return torch.rad2deg(torch.stack((rot, tilt, psi), -1))


def random_rotations(count: int, generator: torch.Generator | None = None) -> Float[Tensor, "n 3 3"]:
    """Uniform on SO(3)."""
    quaternions = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return roma.unitquat_to_rotmat(roma.quat_normalize(quaternions)).float()


def rotation_from_vector(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation by ``‖vector‖`` radians about ``vector``; exact at zero."""
    return roma.rotvec_to_rotmat(vector)


def rotation_angle(a: Float[Tensor, "*batch 3 3"], b: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch"]:
    """Angle between two rotations, radians."""
    return roma.rotmat_geodesic_distance(a, b)


def nearest_rotation(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The rotation closest to a matrix (orthogonal Procrustes)."""
    return roma.special_procrustes(matrix)  # pyright: ignore[reportReturnType]
