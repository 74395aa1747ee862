"""How much a map is its own mirror image: the mark of a reconstruction that is stuck in a spurious symmetry.

With one pose per image and the plain L2 loss, part of the images settle on poses turned by 180°, and the volume
becomes the sum of the molecule and of its reflection through a plane (Levy et al. 2022, section 3.5). Correlations
are those of the maps inside a sphere, whitened (each shell has the same power) within the same few shells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from cryoai.geometry.fourier import fft3, ifft3, radial_distance
from cryoai.metrics.fsc import half_space_radius

_NORMALS, _SHELLS = 600, 8
_OFFSETS = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True, eq=False)
class MirrorPlane:
    """The plane through which a map resembles itself most.

    Attributes
    ----------
    correlation
        Of the map with its reflection.
    normal
        xyz.
    offset
        px, of the plane from the box's centre.
    """

    correlation: float
    normal: np.ndarray
    offset: float


def find_mirror_plane(density: torch.Tensor, shells: int = _SHELLS) -> MirrorPlane:
    """The best plane of a grid of normals and offsets, refined."""
    feature, points = _prepare(density, shells)
    values = feature[*(points + feature.shape[0] // 2).T[::-1]]

    def correlation(normal: np.ndarray, offset: float, order: int) -> float:
        mirrored = points - 2 * ((points @ normal) - offset)[:, None] * normal
        read = map_coordinates(feature, mirrored.T[::-1] + feature.shape[0] // 2, order=order)
        return float(np.corrcoef(values, read)[0, 1])

    def cost(parameters: np.ndarray) -> float:
        return -correlation(parameters[:3] / np.linalg.norm(parameters[:3]), parameters[3], 3)

    tried = [(correlation(n, offset, 1), *n, offset) for n in hemisphere(_NORMALS) for offset in _OFFSETS]
    best = max(tried)
    found = minimize(cost, best[1:], method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4, "maxiter": 200})
    normal = found.x[:3] / np.linalg.norm(found.x[:3])
    return MirrorPlane(-float(found.fun), normal, float(found.x[3]))


def hemisphere(count: int) -> np.ndarray:
    """Directions spread evenly over half a sphere (Fibonacci's spiral)."""
    place = np.arange(count) + 0.5
    z, turn = 1 - place / count, np.pi * (1 + 5**0.5) * place
    radius = np.sqrt(1 - z**2)
    return np.stack((radius * np.cos(turn), radius * np.sin(turn), z), 1)


def project_beside_plane(density: torch.Tensor, plane: MirrorPlane) -> np.ndarray:
    """A projection in which the plane is the image's vertical middle line."""
    box = density.shape[-1]
    across = np.eye(3)[np.abs(plane.normal).argmin()]
    up = np.cross(plane.normal, across)
    up /= np.linalg.norm(up)
    frame = np.stack((plane.normal, up, np.cross(plane.normal, up)))
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    points = np.stack((x, y, z), -1) @ frame + plane.offset * plane.normal
    places = points.reshape(-1, 3).T[::-1] + box // 2
    return map_coordinates(density.numpy(), places, order=1).reshape(box, box, box).sum(0)


def _prepare(density: torch.Tensor, shells: int) -> tuple[np.ndarray, np.ndarray]:
    """The whitened map within a few shells, without its mean, and the points (xyz) that are compared."""
    box = density.shape[-1]
    distance = radial_distance(box, 3)
    inside = (distance <= box // 2 - 1).numpy()
    spectrum, shell = fft3(density.float()), half_space_radius(box).round().long()
    power = torch.zeros(int(shell.max()) + 1).index_add_(0, shell.flatten(), spectrum.abs().square().flatten())
    amplitude = (power / torch.bincount(shell.flatten())).sqrt()[shell]
    whitened = (spectrum / amplitude.clamp(min=1e-20)).masked_fill((shell > shells) | (shell == 0), 0)
    return ifft3(whitened, box).numpy(), np.argwhere(inside)[:, ::-1] - box // 2
