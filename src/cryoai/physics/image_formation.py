"""From a volume and a pose to an image, as one function."""

from __future__ import annotations

from jaxtyping import Complex, Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.physics.slicing import FourierVolume, slice_volume
from cryoai.physics.translation import compute_shift


def form_images(
    volume: FourierVolume,
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
    ctf: Float[Tensor, "batch n"] | None,
    disk: FourierDisk,
    pixel_size: float,
) -> Complex[Tensor, "batch n"]:
    """Noise-free images: CTF · translation · slice (Levy et al. 2022, eq. 1 to 5).

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
    image = slice_volume(volume, rotation, disk) * compute_shift(translation, disk, pixel_size)
    return image if ctf is None else image * ctf
