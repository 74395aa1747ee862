"""A built-in test molecule that needs no file: chiral, asymmetric, and textured like a protein."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from cryoai.geometry.fourier import crop_or_pad, resample
from cryoai.types import Map

_HELIX_RISE, _HELIX_RADIUS, _HELIX_TURN_DEG = 1.5, 2.3, 100.0  # Å per residue, Å, per residue: an α-helix
_RESIDUES_PER_CUBIC_ANGSTROM = 1 / 135
# Lobes of the envelope as (centre xyz, radius), in units of the molecule's radius; no symmetry, one hand.
_LOBES = (
    ((0.05, -0.10, 0.00), 0.52),
    ((0.48, 0.22, -0.18), 0.34),
    ((-0.38, 0.40, 0.26), 0.32),
    ((-0.20, -0.48, 0.46), 0.28),
    ((0.18, 0.08, 0.66), 0.22),
    ((-0.52, -0.20, -0.34), 0.24),
)
_MAX_RESIDUES = 20_000


def make_phantom(box_size: int, voxel_size: float, seed: int = 2022) -> Map:
    """A bundle of right-handed α-helices in a lopsided envelope that fills about half of the box.

    The number of residues follows from the envelope's volume and the density of a protein, so its texture has the
    right scale at any voxel size.

    Parameters
    ----------
    box_size
        px.
    voxel_size
        Å.
    seed
        Of the helices' places; the envelope is always the same.
    """
    radius = 0.28 * box_size * voxel_size
    residues = _place_residues(radius, np.random.default_rng(seed))
    residues = residues - residues.mean(0)
    return Map(_gaussians_on_grid(residues, box_size, voxel_size), voxel_size)


def _place_residues(radius: float, rng: np.random.Generator) -> np.ndarray:
    """Residue positions, (n, 3) Å xyz: helices of 8 to 24 residues, placed at random in the lobes."""
    centres = radius * np.array([c for c, _ in _LOBES])
    radii = radius * np.array([r for _, r in _LOBES])
    volume = float((4 / 3 * np.pi * radii**3).sum())
    wanted = min(int(volume * _RESIDUES_PER_CUBIC_ANGSTROM), _MAX_RESIDUES)
    placed: list[np.ndarray] = []
    count = 0
    while count < wanted:
        lobe = rng.choice(len(radii), p=radii**3 / (radii**3).sum())
        length = int(rng.integers(8, 25))
        direction = rng.normal(size=3)
        start = centres[lobe] + radii[lobe] * rng.uniform() ** (1 / 3) * direction / np.linalg.norm(direction)
        k = np.arange(length) - length / 2
        angle = np.deg2rad(_HELIX_TURN_DEG) * k
        helix = np.stack(
            (_HELIX_RADIUS * np.cos(angle), _HELIX_RADIUS * np.sin(angle), _HELIX_RISE * k), -1
        )
        helix = helix @ Rotation.random(rng=rng).as_matrix().T + start
        inside = (np.linalg.norm(helix[:, None] - centres, axis=2) < radii).any(1)
        placed.append(helix[inside])
        count += int(inside.sum())
    return np.concatenate(placed)


def _gaussians_on_grid(points: np.ndarray, box_size: int, voxel_size: float) -> np.ndarray:
    """One Gaussian per residue, band-limited to the grid: points are spread on a finer grid, blurred, cropped."""
    oversampling = 2 if box_size <= 160 else 1
    fine = box_size * oversampling
    spacing = voxel_size / oversampling
    grid = np.zeros((fine,) * 3, np.float32)
    position = points[:, ::-1] / spacing + fine // 2
    below = np.floor(position).astype(int)
    fraction = position - below
    for corner in range(8):
        step = np.array([(corner >> 2) & 1, (corner >> 1) & 1, corner & 1])
        weight = np.prod(np.where(step, fraction, 1 - fraction), axis=1)
        np.add.at(grid, tuple((below + step).T), weight)
    density = resample(torch.from_numpy(grid), box_size, 3)
    # A residue's own size: σ of 2 Å, applied in Fourier space so that it may be below the voxel size.
    from cryoai.geometry.fourier import fft3, ifft3

    transform = fft3(density)
    axis = torch.arange(box_size) - box_size // 2
    half = torch.arange(transform.shape[2])
    squared = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + half**2) / (box_size * voxel_size) ** 2
    density = ifft3(transform * torch.exp(-2 * (np.pi * 2.0) ** 2 * squared), box_size)
    return crop_or_pad(density, box_size, (0, 1, 2)).numpy().astype(np.float32)
