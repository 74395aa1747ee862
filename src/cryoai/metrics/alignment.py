"""Rigid alignment of one map onto another, over both hands.

One equation fixes every sign. With ``S = diag(1, 1, −1)``, x measured from the box centre, and m = 1 for a
mirrored pair, 0 otherwise::

    reference(x) ≈ map(Q Sᵐ x + shift)

What it means for poses, with ``projection(u) = ∫ V(R [u, z]) dz``: particles whose rotations in the
reference are ``R`` have ``R_map = Q Sᵐ R Sᵐ`` in the map (the change of variable z → −z of the line integral
turns the mirrored volume's ``S R S`` back into ``R``), and their translations become
``t_map = t − ([R_mapᵀ shift]_x, [R_mapᵀ shift]_y)``; the mirror alone leaves translations as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor

from cryoai.geometry.fourier import fft3, ifft3, largest_radius, resample
from cryoai.geometry.shells import half_space_radius
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.map_fit import (
    Candidates,
    Target,
    compose,
    gauss_newton,
    make_target,
    padded_spectrum,
    refine_candidates,
    search_rotations,
)

MIRROR = np.diag([1.0, 1.0, -1.0])
"""S, the reflection z → −z that stands for the other hand."""

# What `apply_alignment` reads from is so much finer.
_PAD = 2
# (Fourier radius in shells, candidates kept per hand and in all, Gauss-Newton steps); then the full radius.
_STAGES = ((8, 64, 10), (14, 24, 8), (24, 10, 6))
_FINAL_CANDIDATES, _FINAL_STEPS, _POLISH_STEPS = 5, 6, 2


@dataclass(frozen=True)
class MapAlignment:
    """How a map lies on a reference: ``reference(x) ≈ map(Q Sᵐ x + shift)`` (see the module's page).

    Attributes
    ----------
    rotation
        Q, (3, 3), proper, xyz.
    shift
        (3,), xyz, px of the aligned maps; where the reference's centre lies in the map.
    mirrored
        m: whether the map has the other hand.
    correlation
        Mean FSC over all shells, −1 to 1; every shell counts the same, so that middle frequencies decide.
    """

    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, " 3"]
    mirrored: bool
    correlation: float

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """``Q Sᵐ``, from reference coordinates to map coordinates."""
        return self.rotation @ MIRROR if self.mirrored else self.rotation

    def inverse(self) -> MapAlignment:
        """How the reference lies on the map."""
        rotation = mirror_rotation(self.rotation.T) if self.mirrored else self.rotation.T
        return replace(self, rotation=rotation, shift=-np.linalg.inv(self.matrix) @ self.shift)


def mirror_volume(volume: Float[Tensor, "box box box"]) -> Float[Tensor, "box box box"]:
    """Reflect a map, ``V'(x, y, z) = V(x, y, −z)``, about its centre voxel.

    The first plane of an even box has no partner and stays where it is (it is its own image in the periodic
    box). Projections of ``V'`` at ``S R S`` equal those of ``V`` at ``R``; translations do not change.
    """
    flipped = volume.flip(0)
    return flipped.roll(1, 0) if volume.shape[0] % 2 == 0 else flipped


def mirror_rotation(rotation: Float[np.ndarray, "*batch 3 3"]) -> Float[np.ndarray, "*batch 3 3"]:
    """``S R S``: the rotations that give the mirrored volume the same projections."""
    return MIRROR @ rotation @ MIRROR


def apply_alignment(density: Float[Tensor, "box box box"], alignment: MapAlignment) -> Float[Tensor, "box box box"]:
    """Resample a map into the reference's frame: ``result(x) = map(Q Sᵐ x + shift)``.

    Cubic splines on the map oversampled twice in Fourier space. What comes from outside the box is 0, and
    what lies beyond the largest usable shell is lost.

    Parameters
    ----------
    density
        The map (z, y, x) that was aligned.
    alignment
        Its shift in px of ``density``.
    """
    box = density.shape[-1]
    # The corners of Fourier space would be turned past Nyquist and alias back into the shells that count.
    spectrum = fft3(density.detach().cpu())
    beyond = half_space_radius(spectrum.shape).round() > largest_radius(box)
    ball = ifft3(spectrum.masked_fill(beyond, 0), box)
    fine = resample(ball, _PAD * box, 3).numpy()
    axis = np.arange(box) - box // 2
    matrix = alignment.matrix[::-1, ::-1]  # arrays are zyx
    offset = alignment.shift[::-1]
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    places = (matrix @ grid + offset[:, None]) * _PAD + (_PAD * box) // 2
    values = map_coordinates(fine, places, order=3, mode="constant", output=np.float64)
    return torch.from_numpy(values.reshape(box, box, box)).to(density)


def align_maps(
    density: Float[Tensor, "box box box"],
    reference: Float[Tensor, "box box box"],
    *,
    try_mirror: bool = True,
    largest_box: int = 128,
) -> MapAlignment:
    """Find the rotation, shift and hand that lay a map on a reference.

    Every rotation of an even grid and every shift within a quarter of the box are scored at low resolution by
    the mean FSC; the best distinct ones are refined by Gauss–Newton with a growing Fourier radius, which
    keeps the mates of a nearly symmetric molecule in play until the resolution can tell them apart. The
    derivatives are those of the reference, known exactly and once (Baker and Matthews' inverse compositional
    scheme, IJCV 56, 2004), and shells are weighted by what they tell, ``FSC / (1 − FSC²)``. The last steps
    use `apply_alignment`'s accurate interpolation.

    Parameters
    ----------
    density, reference
        Maps (z, y, x) of the same box and voxel size, any scale; protein positive in both or in neither.
        Only density inside the sphere inscribed in the box counts.
    try_mirror
        Try the other hand as well.
    largest_box
        px; larger maps are Fourier cropped to this box for the alignment, to bound time and memory.

    Returns
    -------
    MapAlignment
        ``reference(x) ≈ map(Q Sᵐ x + shift)``.
    """
    box = density.shape[-1]
    if box > largest_box:
        density, reference = (resample(v, largest_box, 3) for v in (density, reference))
        small = align_maps(density, reference, try_mirror=try_mirror)
        return MapAlignment(small.rotation, small.shift * (box / largest_box), small.mirrored, small.correlation)
    sphere = make_soft_sphere(box).to(density)
    density, reference = (density * sphere).float(), (reference * sphere).float()
    spectrum = padded_spectrum(density)
    hands = (False, True) if try_mirror else (False,)
    targets = [make_target(mirror_volume(reference) if mirrored else reference) for mirrored in hands]
    candidates = search_rotations(spectrum, targets, density)
    for radius, keep, steps in _STAGES:
        candidates = refine_candidates(spectrum, targets, candidates.distinct(keep), radius, steps)
    full = largest_radius(box)
    candidates = refine_candidates(spectrum, targets, candidates.distinct(_FINAL_CANDIDATES), full, _FINAL_STEPS)
    best = candidates.distinct(1)
    return _polish(density, targets[int(best.hand[0])], best)


def _polish(density: Float[Tensor, "box box box"], target: Target, best: Candidates) -> MapAlignment:
    """Take the last Gauss–Newton steps, free of the error of trilinear interpolation."""
    rotation, shift = best.rotation[:1], best.shift[:1]
    alignments = []
    for _ in range(_POLISH_STEPS + 1):
        alignment = MapAlignment(rotation[0].numpy(), shift[0].numpy(), False, 0.0)
        values = fft3(apply_alignment(density, alignment)).flatten()[target.place]
        score, update = gauss_newton(target, values[None])
        alignments.append(MapAlignment(alignment.rotation, alignment.shift, bool(best.hand[0] == 1), float(score)))
        rotation, shift = compose(rotation, shift, update)
    return max(alignments, key=lambda alignment: alignment.correlation)
