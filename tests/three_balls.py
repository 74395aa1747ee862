"""A density of three unequal balls, and noisy images of it."""

import torch

from cryoai.geometry.fourier import make_fourier_disk
from cryoai.geometry.rotations import random_rotations
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.noise import make_shell_noise
from cryoai.physics.slicing import volume_from_map
from cryoai.tensors import ParticleBatch

SHELLS, SUPPORT, PIXEL_SIZE = 6, 0.22, 5.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_density(box: int) -> torch.Tensor:
    """Three unequal balls within 0.2 of the box from its centre."""
    axis = (torch.arange(box) - box // 2) / box
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    density = torch.zeros(box, box, box)
    for height, (a, b, c) in ((1.0, (0.1, 0.0, 0.05)), (0.8, (-0.08, 0.1, 0.0)), (0.6, (0.0, -0.1, -0.1))):
        density += height * torch.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * 0.035**2))
    return density


def make_batch(
    box: int, count: int, noise: float, seed: int = 0, reach: float = 9.0
) -> tuple[ParticleBatch, torch.Tensor, torch.Tensor]:
    """Images of the balls within ``reach`` shells, with a CTF of rings, their rotations and their translations."""
    disk = make_fourier_disk(box, reach)
    volume = volume_from_map(make_density(box))
    rotation = random_rotations(count, generator(seed))
    translation = 0.03 * box * PIXEL_SIZE * torch.randn(count, 2, generator=generator(seed + 1))
    ctf = torch.cos(disk.radius * torch.linspace(0.05, 0.15, count)[:, None])
    clean = form_images_quickly(volume, rotation, translation, ctf, disk, PIXEL_SIZE)
    images = clean + make_shell_noise(count, torch.full((20,), noise), disk, generator(seed + 2))
    return ParticleBatch(images, ctf, disk, PIXEL_SIZE), rotation, translation
