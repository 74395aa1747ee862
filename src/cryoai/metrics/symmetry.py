"""Where the axes of a symmetric map lie.

With x measured from the box centre, a map of the symmetry has ``V(A G Aᵀ (x − c) + c) = V(x)`` for each G of
the point group (`cryoai.geometry.point_groups`). For poses it means that the image at ``(R, t)`` is also the
image at ``R' = A G Aᵀ R`` and ``t' = t − P R'ᵀ (c − A G Aᵀ c)``, where P keeps x and y
(`cryoai.metrics.alignment` with both maps the same).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoai.errors import InputError
from cryoai.geometry.fourier import fft3, largest_radius, resample
from cryoai.geometry.point_groups import point_group, point_group_name
from cryoai.geometry.rotations import nearest_rotation, rotation_from_vector
from cryoai.geometry.shells import half_space_radius, mean_per_shell
from cryoai.geometry.so3_grid import make_so3_grid
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.map_fit import Candidates, Target, make_target, padded_spectrum, refine_candidates
from cryoai.types import Map

_LARGEST_BOX = 96
# Turned by the point group itself (and by what turns the group into itself) these lie 4 to 8° apart.
_ORIENTATIONS = 2000
_SEARCH_RADIUS = 8
_KEPT = 6
# (Fourier radius in shells, Gauss-Newton steps) of each round of refinement: of all that are kept, and of the best.
_FIRST_ROUNDS = ((8, 3), (12, 3))
_LAST_ROUNDS = ((16, 3), (24, 3))
_JUDGED_RADIUS = 16
_LEAST_CORRELATION = 0.9
# No need to look for better axes than these.
_SURE = 0.98
# Shells of less power than this, to the strongest, are empty: the map was filtered.
_EMPTY = 1e-5
# Axes so nearly as good as the best found are taken as they stand.
_AS_GOOD = 2e-3


@dataclass(frozen=True)
class MapSymmetry:
    """The rotations that leave a map as it is, in its own frame.

    Attributes
    ----------
    name
        Of the point group.
    rotations
        (n, 3, 3), A G Aᵀ, xyz; the identity first.
    centre
        c, (3,), Å from the box centre, xyz: a point on all the axes.
    correlation
        Mean FSC of the map with its turned copies within 16 shells; 1 where there is no map.
    """

    name: str
    rotations: Float[np.ndarray, "n 3 3"]
    centre: Float[np.ndarray, " 3"]
    correlation: float = 1.0


def standard_symmetry(name: str) -> MapSymmetry:
    """A point group with its axes where RELION has them, through the box centre."""
    return MapSymmetry(point_group_name(name), point_group(name), np.zeros(3))


def symmetry_of_map(symmetric: Map, name: str) -> MapSymmetry:
    """Find the axes of a map that is known to be symmetric.

    RELION's axes are kept where they are as good as any. Else every orientation A of an even grid is scored by
    the mean FSC of the map with two turned copies of itself that generate the group, with the centre of mass for
    c; the best are refined: Gauss–Newton lays each copy on the map, and the A and c that explain all of these
    rotations and shifts best follow by least squares.

    Parameters
    ----------
    symmetric
        The map, protein positive.
    name
        Of a point group (`point_group_name`).

    Raises
    ------
    InputError
        There is no such point group, or the map does not have that symmetry.
    """
    standard = standard_symmetry(name)
    if len(standard.rotations) == 1:
        return standard
    density = torch.from_numpy(np.array(symmetric.density, dtype=np.float32))
    if symmetric.box_size > _LARGEST_BOX:
        density = resample(density, _LARGEST_BOX, 3)
    density = density * make_soft_sphere(density.shape[-1]).to(density)
    group = torch.from_numpy(standard.rotations)
    search = _Search(padded_spectrum(density), make_target(density), group, _reach(density))
    at_rest = _Frame(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    as_it_stands = search.correlation(at_rest)
    correlation, best = search.refine(at_rest, _FIRST_ROUNDS)
    if correlation < _SURE:
        for frame in search.orientations(_centre_of_mass(density)):
            found = search.refine(frame, _FIRST_ROUNDS)
            correlation, best = max((correlation, best), found, key=lambda found: found[0])
            if correlation >= _SURE:
                break
    correlation, best = search.refine(best, _LAST_ROUNDS)
    if as_it_stands >= correlation - _AS_GOOD:
        correlation, best = as_it_stands, at_rest
    if correlation < _LEAST_CORRELATION:
        raise InputError(
            f"the map does not have the symmetry {standard.name}: its turned copies correlate with it by "
            f"{correlation:.2f} at most",
            advice="check --symmetry, and that the true map is the whole molecule",
        )
    voxel_size = symmetric.voxel_size * symmetric.box_size / density.shape[-1]
    rotations = (best.orientation @ search.group @ best.orientation.mT).numpy()
    return MapSymmetry(standard.name, rotations, best.centre.numpy() * voxel_size, correlation)


@dataclass(frozen=True, eq=False)
class _Frame:
    """A and c (px)."""

    orientation: Float[Tensor, "3 3"]
    centre: Float[Tensor, " 3"]


@dataclass(frozen=True, eq=False)
class _Search:
    """A map as it is turned, and as it is turned onto; its last shell that is not empty."""

    spectrum: Complex[Tensor, "z y half"]
    target: Target
    group: Float[Tensor, "n 3 3"]
    reach: int

    def correlation(self, frame: _Frame) -> float:
        """Mean FSC of the map with its copies."""
        return float(self._laid(self._copies(frame), _JUDGED_RADIUS, 0).score.mean())

    def orientations(self, centre: Float[Tensor, " 3"]) -> list[_Frame]:
        """The best of an even grid of orientations."""
        grid = nearest_rotation(make_so3_grid(_ORIENTATIONS).double())
        score = torch.zeros(len(grid), dtype=torch.float64)
        for element in _generators(self.group):
            rotation = grid @ element @ grid.mT
            shift = centre - rotation @ centre
            score += self._laid(_candidates(rotation, shift), _SEARCH_RADIUS, 0).score
        found = Candidates(grid, torch.zeros(len(grid), 3).double(), torch.zeros(len(grid)).long(), score)
        return [_Frame(orientation, centre) for orientation in found.distinct(_KEPT).rotation]

    def refine(self, frame: _Frame, rounds: tuple[tuple[int, int], ...]) -> tuple[float, _Frame]:
        """The best frame on the way, and its correlation."""
        best = self.correlation(frame), frame
        for radius, steps in rounds:
            copies = self._copies(frame)
            frame = _explain(frame, copies, self._laid(copies, radius, steps))
            best = max(best, (self.correlation(frame), frame), key=lambda found: found[0])
        return best

    def _copies(self, frame: _Frame) -> Candidates:
        rotation = frame.orientation @ self.group[1:] @ frame.orientation.mT
        return _candidates(rotation, frame.centre - rotation @ frame.centre)

    def _laid(self, copies: Candidates, radius: int, steps: int) -> Candidates:
        return refine_candidates(self.spectrum, [self.target], copies, min(radius, self.reach), steps)


def _reach(density: Float[Tensor, "box box box"]) -> int:
    """The last shell before the first empty one; 1 at least."""
    spectrum = fft3(density)
    shell = half_space_radius(spectrum.shape).round().long()
    power = mean_per_shell(spectrum.abs().square().flatten(), shell.flatten())[1 : largest_radius(len(density)) + 1]
    empty = (power < _EMPTY * power.max()).nonzero()[:, 0]
    return max(1, int(empty[0])) if len(empty) else len(power)


def _candidates(rotation: Float[Tensor, "n 3 3"], shift: Float[Tensor, "n 3"]) -> Candidates:
    count = len(rotation)
    return Candidates(rotation, shift, torch.zeros(count).long(), torch.zeros(count, dtype=torch.float64))


def _explain(frame: _Frame, copies: Candidates, laid: Candidates) -> _Frame:
    """The frame whose copies come closest to where the copies were laid.

    Turning the axes by δ turns a copy P into ``exp(δ) P exp(−δ)``, by ``(I − P) δ`` more than before; and c
    gives the shift ``(I − P) c``. What neither can tell (the angle about the axis of Cn, the place along it)
    stays as it is.
    """
    more = Rotation.from_matrix((laid.rotation @ copies.rotation.mT).numpy()).as_rotvec()
    lever = (torch.eye(3, dtype=torch.float64) - laid.rotation).flatten(0, 1).numpy()
    turn = np.linalg.lstsq(lever, more.ravel(), rcond=1e-6)[0]
    left = laid.shift.flatten().numpy() - lever @ frame.centre.numpy()
    move = np.linalg.lstsq(lever, left, rcond=1e-6)[0]
    orientation = rotation_from_vector(torch.from_numpy(turn)) @ frame.orientation
    return _Frame(orientation, frame.centre + torch.from_numpy(move))


def _generators(group: Float[Tensor, "n 3 3"]) -> list[Float[Tensor, "3 3"]]:
    """One rotation about an axis of the highest fold, and where there is one, the next about another axis."""
    rotation = Rotation.from_matrix(group[1:].numpy())
    axis = rotation.as_rotvec() / rotation.magnitude()[:, None]
    order = np.argsort(rotation.magnitude().round(6), kind="stable")
    other = [i for i in order if abs(axis[i] @ axis[order[0]]) < 0.999]
    return [group[1 + i] for i in (order[0], *other[:1])]


def _centre_of_mass(density: Float[Tensor, "box box box"]) -> Float[Tensor, " 3"]:
    """Px from the box centre, xyz, of what stands out: every axis passes through it."""
    mass = (density - 0.2 * torch.quantile(density.flatten()[::4], 0.999)).clamp(min=0).double()
    axis = torch.arange(density.shape[-1], dtype=torch.float64) - density.shape[-1] // 2
    total = mass.sum().clamp(min=1e-30)
    x, y, z = ((mass.sum(dims) * axis).sum() / total for dims in ((0, 1), (0, 2), (1, 2)))
    return torch.stack((x, y, z))
