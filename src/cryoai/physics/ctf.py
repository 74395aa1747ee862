"""The contrast transfer function."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk
from cryoai.types import CtfParameters


def electron_wavelength(voltage_kv: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Relativistic wavelength in Å (de Broglie, with the electron's rest energy of 511 keV)."""
    volts = 1e3 * np.asarray(voltage_kv, dtype=np.float64)
    return 12.2643247 / np.sqrt(volts * (1 + 0.978466e-6 * volts))


def compute_ctf(parameters: CtfParameters, disk: FourierDisk, pixel_size: float) -> Float[Tensor, "batch n"]:
    """CTF of each particle on a Fourier disk, with RELION's sign: the amplitude contrast at zero frequency.

    ``sin(π λ Δf(α) k² - π/2 Cs λ³ k⁴ + φ + asin(w)) · exp(-B k²/4)``, where
    ``Δf(α) = (Δf_u + Δf_v)/2 + (Δf_u - Δf_v)/2 · cos 2(α - α_u)``, k in 1/Å, w the amplitude contrast and φ the
    phase shift (Rohou & Grigorieff, J. Struct. Biol. 2015, eq. 3 to 5, with the sign turned).

    Parameters
    ----------
    parameters
        One entry per particle.
    disk
        Where the CTF is wanted.
    pixel_size
        Å, of the images that the disk belongs to.

    Returns
    -------
    Float[Tensor, "batch n"]
        On the disk's device; positive at low frequencies for underfocus.
    """
    wavelength = electron_wavelength(parameters.voltage_kv)
    cs_angstrom = 1e7 * parameters.spherical_aberration_mm.astype(np.float64)
    mean = 0.5 * (parameters.defocus_u_angstrom + parameters.defocus_v_angstrom).astype(np.float64)
    half_difference = 0.5 * (parameters.defocus_u_angstrom - parameters.defocus_v_angstrom)
    # The phase is linear in four functions of the frequency, so a batch of CTFs is one small matrix product.
    coefficients = np.stack(
        (
            math.pi * wavelength * mean,
            math.pi * wavelength * half_difference * np.cos(2 * parameters.defocus_angle),
            math.pi * wavelength * half_difference * np.sin(2 * parameters.defocus_angle),
            -0.5 * math.pi * cs_angstrom * wavelength**3,
            parameters.phase_shift + np.arcsin(parameters.amplitude_contrast),
        ),
        axis=-1,
    )
    device = disk.kx.device
    phase = torch.from_numpy(coefficients.astype(np.float32)).to(device) @ _phase_basis(disk, pixel_size)
    ctf = torch.sin(phase)
    if np.any(parameters.b_factor):
        damping = torch.from_numpy(parameters.b_factor.astype(np.float32)).to(device) / 4
        ctf = ctf * torch.exp(-damping[:, None] * (disk.radius / (disk.box_size * pixel_size)) ** 2)
    return ctf


def _phase_basis(disk: FourierDisk, pixel_size: float) -> Float[Tensor, "5 n"]:
    """k², k² cos 2α, k² sin 2α, k⁴ and 1 at each coefficient; k in 1/Å."""
    scale = 1 / (disk.box_size * pixel_size)
    kx, ky = disk.kx * scale, disk.ky * scale
    squared = kx**2 + ky**2
    return torch.stack((squared, kx**2 - ky**2, 2 * kx * ky, squared**2, torch.ones_like(kx)))
