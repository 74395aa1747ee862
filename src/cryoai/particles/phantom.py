"""A built-in test molecule that needs no file: chiral, asymmetric, and textured like a protein."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoai.geometry.fourier import crop_or_pad, fft3, ifft3
from cryoai.geometry.shells import half_space_axes
from cryoai.types import Map

_HELIX_RISE, _HELIX_RADIUS, _HELIX_TURN_DEG = 1.5, 2.3, 100.0  # Å per residue, Å, per residue: an α-helix
_RESIDUES_PER_CUBIC_ANGSTROM = 1 / 135
_RESIDUE_SIGMA = 2.0  # Å
# Molecules of other sizes are built within these limits and scaled: below a few helices there is no texture,
# and above some 14,000 residues nothing but time is gained.
_SMALLEST_RADIUS, _LARGEST_RADIUS = 30.0, 120.0  # Å
# Lobes of the envelope as (centre xyz, radius), in units of the molecule's radius; no symmetry, one hand.
_LOBES = (
    ((0.05, -0.10, 0.00), 0.52),
    ((0.48, 0.22, -0.18), 0.34),
    ((-0.38, 0.40, 0.26), 0.32),
    ((-0.20, -0.48, 0.46), 0.28),
    ((0.18, 0.08, 0.66), 0.22),
    ((-0.52, -0.20, -0.34), 0.24),
)
# Above this box the residues are spread on the map's own grid: a finer one would need gigabytes.
_LARGEST_DOUBLED_BOX = 160


def make_phantom(box_size: int, voxel_size: float, seed: int = 2022) -> Map:
    """A bundle of right-handed α-helices in a lopsided envelope that spans about half of the box.

    The number of residues follows from the envelope's volume and the density of a protein, so that the
    texture has the right scale for envelopes of 30 to 120 Å radius; smaller and larger ones are scaled copies
    of these.

    Parameters
    ----------
    box_size
        px; even or odd.
    voxel_size
        Å.
    seed
        Of the helices' places; the envelope is always the same.

    Returns
    -------
    Map
        Protein positive with its largest voxel 1, solvent near 0 (the band limit makes it ring by 4 to 11 per
        cent), centre of mass at ``box_size // 2``.
    """
    radius = 0.28 * box_size * voxel_size
    built_radius = min(max(radius, _SMALLEST_RADIUS), _LARGEST_RADIUS)
    residues = _place_residues(built_radius, np.random.default_rng(seed))
    scale = radius / (built_radius * voxel_size)
    positions = (residues - residues.mean(0)) * scale
    density = _gaussians_on_grid(positions, _RESIDUE_SIGMA * scale, box_size)
    return Map((density / density.max()).numpy(), voxel_size)


def _place_residues(radius: float, rng: np.random.Generator) -> Float[np.ndarray, "residues 3"]:
    """Residue positions, Å xyz: pieces of helices of 8 to 24 residues, placed at random in the lobes."""
    centres = radius * np.array([c for c, _ in _LOBES])
    radii = radius * np.array([r for _, r in _LOBES])
    wanted = int((4 / 3 * np.pi * radii**3).sum() * _RESIDUES_PER_CUBIC_ANGSTROM)
    placed: list[np.ndarray] = []
    count = 0
    while count < wanted:
        lobe = rng.choice(len(radii), p=radii**3 / (radii**3).sum())
        length = int(rng.integers(8, 25))
        direction = rng.normal(size=3)
        distance = radii[lobe] * rng.uniform() ** (1 / 3)
        start = centres[lobe] + distance * direction / np.linalg.norm(direction)
        helix = _make_helix(length) @ Rotation.random(rng=rng).as_matrix().T + start
        inside = (np.linalg.norm(helix[:, None] - centres, axis=2) < radii).any(1)
        placed.append(helix[inside])
        count += int(inside.sum())
    return np.concatenate(placed)


def _make_helix(residues: int) -> Float[np.ndarray, "residues 3"]:
    """A right-handed α-helix along z, Å."""
    k = np.arange(residues) - residues / 2
    angle = np.deg2rad(_HELIX_TURN_DEG) * k
    return np.stack((_HELIX_RADIUS * np.cos(angle), _HELIX_RADIUS * np.sin(angle), _HELIX_RISE * k), -1)


def _gaussians_on_grid(
    positions: Float[np.ndarray, "residues 3"], sigma: float, box_size: int
) -> Float[Tensor, "box box box"]:
    """A Gaussian at each position (xyz, px from the centre), band-limited to the grid.

    The points are spread on a finer grid and cropped in Fourier space; there they also get their width, which
    may be below a voxel.
    """
    fine = 2 * box_size if box_size <= _LARGEST_DOUBLED_BOX else box_size
    transform = fft3(_spread(positions[:, ::-1] * (fine / box_size) + fine // 2, fine))
    transform = crop_or_pad(transform, box_size, (0, 1))[:, :, : box_size // 2 + 1].clone()
    decay = -2 * (math.pi * sigma / box_size) ** 2
    for frequency in half_space_axes(transform.shape):
        transform *= torch.exp(decay * frequency**2)
    if box_size % 2 == 0:
        # The Nyquist plane of an even box has no partner of the opposite sign, so it could not be real.
        transform[0], transform[:, 0], transform[:, :, -1] = 0, 0, 0
    return ifft3(transform, box_size)


def _spread(positions: Float[np.ndarray, "residues 3"], size: int) -> Float[Tensor, "size size size"]:
    """Unit masses at positions (zyx, px), each shared between the eight voxels around it."""
    grid = np.zeros((size,) * 3, np.float32)
    below = np.floor(positions).astype(int)
    fraction = positions - below
    for corner in range(8):
        step = np.array([(corner >> 2) & 1, (corner >> 1) & 1, corner & 1])
        weight = np.prod(np.where(step, fraction, 1 - fraction), axis=1)
        np.add.at(grid, tuple((below + step).T), weight)
    return torch.from_numpy(grid)
