"""How much a map is its own mirror image: the mark of a reconstruction that is stuck in a spurious symmetry.

With one pose per image part of the images can settle on the poses of the mirror image, and the volume becomes the
sum of the molecule and of its reflection through a plane (Levy et al. 2022, section 3.5). Correlations
are those of the maps inside a sphere, whitened (each shell has the same power) within the same few shells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from cryoai.geometry.fourier import fft3, ifft3
from cryoai.geometry.rotations import rotation_angle
from cryoai.geometry.shells import half_space_radius, mean_per_shell, radial_distance

_NORMALS, _SHELLS = 600, 6
_OFFSETS = (-2.0, -1.0, 0.0, 1.0, 2.0)
_WRONG_DEGREES, _AT_MATE_DEGREES = 10.0, 20.0


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


def explain_wrong_poses(found: np.ndarray, true: np.ndarray, plane: MirrorPlane) -> dict[str, float]:
    """Whether wrong poses are those of a map's spurious mirror image, and which images have them.

    A map that is its own mirror image through a plane with the normal n looks the same from ``R`` and from
    ``R_n(π) R R_z(π)``: reflecting it is inverting it and turning it about n by π, and the projection of an
    inverted map is the projection turned by π.

    Parameters
    ----------
    found, true
        (particles, 3, 3), in the map's frame.
    plane
        Of the map.

    Returns
    -------
    dict
        ``wrong``, the share of poses that are off by over 10°; of them, those within 20° of the true pose's mate
        (``at_mates``); how many images a half space of viewing directions sorts into wrong and right
        (``half_space``), and the cosine between its normal and the mirror's (``cosine``).
    """
    wrong = degrees_between(found, true) > _WRONG_DEGREES
    turn_about_normal = 2 * np.outer(plane.normal, plane.normal) - np.eye(3)
    mates = turn_about_normal @ true @ np.diag([-1.0, -1.0, 1.0])
    at_mates = degrees_between(found[wrong], mates[wrong]) < _AT_MATE_DEGREES
    direction = np.column_stack((true[:, :, 2], np.ones(len(true))))
    weight = np.linalg.lstsq(direction, np.where(wrong, 1.0, -1.0), rcond=None)[0]
    return {
        "wrong": float(wrong.mean()),
        "at_mates": float(at_mates.mean()),
        "half_space": float(((direction @ weight > 0) == wrong).mean()),
        "cosine": float(abs(weight[:3] @ plane.normal) / np.linalg.norm(weight[:3])),
    }


def degrees_between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.degrees(rotation_angle(torch.from_numpy(first), torch.from_numpy(second)).numpy())


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
    spectrum = fft3(density.float())
    shell = half_space_radius(spectrum.shape).round().long()
    amplitude = mean_per_shell(spectrum.abs().square().flatten(), shell.flatten()).sqrt()[shell]
    whitened = (spectrum / amplitude.clamp(min=1e-20)).masked_fill((shell > shells) | (shell == 0), 0)
    return ifft3(whitened, box).numpy(), np.argwhere(inside)[:, ::-1] - box // 2
