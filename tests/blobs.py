"""A map of Gaussian blobs that can be turned without interpolation."""

from __future__ import annotations

import numpy as np
import torch

from cryoai.geometry.rotations import random_rotations


def make_blobs(box, matrix=None, shift=(0.0, 0.0, 0.0), seed=0, count=30, radius=0.26):
    """Gaussian blobs whose centres c lie at ``matrix c + shift``: no interpolation anywhere."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, 3))
    centres *= box * radius * rng.uniform(size=(count, 1)) ** (1 / 3) / np.linalg.norm(centres, axis=1)[:, None]
    width, height = rng.uniform(1.2, 2, count), rng.uniform(0.5, 1.5, count)
    centres = centres @ (np.eye(3) if matrix is None else matrix).T + np.asarray(shift)
    axis = np.arange(box) - box // 2
    x, y, z = (np.exp(-((axis - centres[:, i : i + 1]) ** 2) / (2 * width[:, None] ** 2)) for i in range(3))
    return torch.from_numpy(np.einsum("n,nz,ny,nx->zyx", height, z, y, x, optimize=True)).float()


def random_transform(seed):
    rotation = random_rotations(1, torch.Generator().manual_seed(seed))[0].double().numpy()
    shift = np.random.default_rng(seed).normal(size=3)
    return rotation, 3 * shift / np.linalg.norm(shift)
