"""What the encoder looks at: small real-space images made from the particles' Fourier coefficients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import disk_to_images, full_radius, make_fourier_disk
from cryoai.tensors import ParticleBatch, PoseHypotheses

CtfTreatment = Literal["none", "flip", "multiply"]


def make_encoder_images(
    batch: ParticleBatch,
    box_size: int,
    *,
    ctf: CtfTreatment = "flip",
    weight: Float[Tensor, " shells"] | None = None,
) -> Float[Tensor, "batch box box"]:
    """Real-space images of a smaller (or larger) box, by Fourier cropping.

    A shell keeps its number, so the images span the same length with pixels of ``batch.box_length / box_size`` Å.
    The transforms are orthonormal: white noise keeps its variance per pixel.

    Parameters
    ----------
    batch
        The particles; coefficients beyond their disk are zero.
    box_size
        px, edge of the images returned.
    ctf
        ``"flip"`` multiplies the coefficients by the CTF's sign, ``"multiply"`` by the CTF.
    weight
        Factor for each shell, such as one over the noise's amplitude; at least as long as the shells kept.
    """
    cropped = batch.prefix(full_radius(box_size))
    # Both disks are sorted alike, so that the coefficients of the smaller one are a prefix in both.
    disk = make_fourier_disk(box_size, full_radius(batch.disk.box_size)).to(batch.images.device)
    n = len(cropped.disk)
    coefficients = cropped.images
    if ctf == "flip":
        coefficients = coefficients * cropped.ctf.sign()
    elif ctf == "multiply":
        coefficients = coefficients * cropped.ctf
    if weight is not None:
        coefficients = coefficients * weight.to(coefficients.device)[cropped.disk.shell]
    return disk_to_images(coefficients, disk.prefix(float(disk.radius[n - 1])))


def turn_by_pi(images: Float[Tensor, "*batch box box"]) -> Float[Tensor, "*batch box box"]:
    """The images turned by 180° about their centre ``box // 2``.

    Without the unpaired Nyquist plane of an even box this conjugates the Fourier coefficients.
    """
    turned = images.flip((-2, -1))
    # The centre of an even box is half a pixel off the centre of its pixels.
    return turned if images.shape[-1] % 2 else turned.roll((1, 1), dims=(-2, -1))


def pose_both_ways(
    encode: Callable[[Float[Tensor, "twice box box"]], PoseHypotheses], images: Float[Tensor, "batch box box"]
) -> PoseHypotheses:
    """Hypotheses from each image, then those from its copy turned by π, all of them poses of the image as it is."""
    found = encode(torch.cat((images, turn_by_pi(images))))
    return found[: len(images)].joined(undo_turn(found[len(images) :]))


def undo_turn(poses: PoseHypotheses) -> PoseHypotheses:
    """Poses of the original images from poses of the images turned by `turn_by_pi`.

    If ``(R, t)`` explains the turned image, ``(R diag(-1, -1, 1), -t)`` explains the original.
    """
    half_turn = torch.tensor([-1.0, -1.0, 1.0], device=poses.rotation.device)
    return PoseHypotheses(poses.rotation * half_turn, -poses.translation, poses.log_weight)
