"""From a volume and a pose to an image: the one image model."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.physics.insertion import slice_quickly
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume, slice_volume
from cryoai.physics.translation import compute_shift
from cryoai.tensors import ParticleBatch


def form_images(
    volume: FourierVolume,
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
    ctf: Float[Tensor, "batch n"] | None,
    disk: FourierDisk,
    pixel_size: float,
) -> Complex[Tensor, "batch n"]:
    """Noise-free images: CTF · translation · slice (Levy et al. 2022, eq. 1 to 5); differentiable.

    Parameters
    ----------
    volume
        What is imaged.
    rotation, translation
        The poses; the translation in Å, positive towards +x, +y.
    ctf
        From `cryoai.physics.ctf.compute_ctf`, or None for a perfect microscope.
    disk
        The coefficients wanted.
    pixel_size
        Å.
    """
    return image_slices(slice_volume(volume, rotation, disk), translation, ctf, disk, pixel_size)


@torch.no_grad()
def form_images_quickly(
    volume: FourierVolume,
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
    ctf: Float[Tensor, "batch n"] | None,
    disk: FourierDisk,
    pixel_size: float,
) -> Complex[Tensor, "batch n"]:
    """`form_images` without gradients, fused on the CPU; the volume may be on another device than the rest.

    Parameters are as in `form_images`; the images are where the disk is.
    """
    slices = slice_quickly(volume, rotation, disk).to(disk.kx.device)
    return image_slices(slices, translation, ctf, disk, pixel_size)


def image_slices(
    slices: Complex[Tensor, "*batch n"],
    translation: Float[Tensor, "*batch 2"],
    ctf: Float[Tensor, "*#batch n"] | None,
    disk: FourierDisk,
    pixel_size: float,
) -> Complex[Tensor, "*batch n"]:
    """What the microscope makes of slices: `form_images` from the second step on, parameters as there."""
    images = slices * compute_shift(translation, disk, pixel_size)
    return images if ctf is None else images * ctf


def residual_power(batch: ParticleBatch, model: Complex[Tensor, "batch n"]) -> Float[Tensor, " shells"]:
    """Mean of ``|image - model|²`` over the particles and each ring: at the right poses the noise's power."""
    return estimate_shell_power(batch.images - model, batch.disk)
