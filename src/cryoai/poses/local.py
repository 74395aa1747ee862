"""Scoring and locally refining poses against a volume.

`refine_poses` and `score_poses` run a fused kernel on the CPU; `refine_poses_reference` is the same
Levenberg-Marquardt in plain torch, for any device and for the tests.
"""

# The kernels' arguments travel as tuples, whose lengths pyright does not follow through numba's wrapper.
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.geometry.rotations import rotation_from_vector
from cryoai.physics.bounds import check_poses, check_reach, without_nan
from cryoai.physics.image_formation import form_images
from cryoai.physics.insertion import kernel_grid, kernel_images
from cryoai.physics.kernels import run_in_threads, runs_kernels
from cryoai.physics.pose_kernels import SETTLED, refine_kernel, score_kernel
from cryoai.physics.slicing import FourierVolume, slice_with_jacobian
from cryoai.physics.translation import compute_shift
from cryoai.precision import full_precision
from cryoai.tensors import ParticleBatch, PoseHypotheses

MAX_STEP_RADIANS = 0.2
MAX_STEP_BOX_LENGTHS = 0.03
# The references keep about a hundred numbers per coefficient while they work.
_COEFFICIENTS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class RefinedPoses:
    """Poses after local refinement.

    Attributes
    ----------
    rotation
        (m, 3, 3).
    translation
        (m, 2), Å.
    cost
        (m,) ``Σ |image - model|² / σ²``: minus the log-likelihood, up to a constant.
    hessian
        (m, 5, 5) ``Jᵀ J / σ²`` over (left rotation vector in radians, translation in Å).
    """

    rotation: Float[Tensor, "m 3 3"]
    translation: Float[Tensor, "m 2"]
    cost: Float[Tensor, " m"]
    hessian: Float[Tensor, "m 5 5"]


def pose_standard_deviations(
    hessian: Float[Tensor, "m 5 5"],
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Rotation (radians) and translation (Å) standard deviations from the Gauss-Newton Hessian.

    Complex noise of power σ² makes the Fisher information ``2 Jᵀ J / σ²``; its inverse bounds the covariance
    (Cramér-Rao). The root mean square over the rotation axes and over x and y.
    """
    scale = hessian.diagonal(dim1=1, dim2=2).clamp(min=1e-30).rsqrt()
    # Unit diagonal first: radians and Å differ by orders of magnitude. A tiny ridge keeps flat directions finite.
    scaled = hessian * scale[:, :, None] * scale[:, None, :]
    inverse = torch.linalg.inv(scaled + 1e-6 * torch.eye(5, dtype=hessian.dtype, device=hessian.device))
    variance = 0.5 * inverse.diagonal(dim1=1, dim2=2) * scale**2
    return variance[:, :3].mean(1).sqrt(), variance[:, 3:].mean(1).sqrt()


def score_poses(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "m 3 3"],
    translation: Float[Tensor, "m 2"],
    image_of: Int[Tensor, " m"] | None = None,
) -> Float[Tensor, " m"]:
    """Cost of each pose: ``Σ |image - CTF · ramp · slice|² / σ²`` (minus its log-likelihood).

    Parameters
    ----------
    batch
        The particles.
    volume
        What they are compared with.
    noise_power
        ``E|noise|²`` per shell.
    rotation, translation
        m poses; Å.
    image_of
        Which particle each pose belongs to; default: one pose per particle.

    Returns
    -------
    Float[Tensor, "m"]
        In the host's memory, wherever the volume is; not a number where a pose is not one.

    Raises
    ------
    ValueError
        Poses, particles and disk do not fit together, or the disk reaches beyond the volume's grid.
    """
    return _score(batch, volume, noise_power, rotation, translation, image_of)[:, 0]


def fit_poses(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "m 3 3"],
    translation: Float[Tensor, "m 2"],
    image_of: Int[Tensor, " m"] | None = None,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Log-likelihood gain of each pose over no particle at all, and its expectation at the right pose.

    For a right pose and a perfect map the gain is Gaussian around the expectation E with variance 2 E. Parameters,
    errors and where the result lies are as in `score_poses`.
    """
    _, product, power = _score(batch, volume, noise_power, rotation, translation, image_of).float().unbind(1)
    return 2 * product - power, power


def _score(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "m 3 3"],
    translation: Float[Tensor, "m 2"],
    image_of: Int[Tensor, " m"] | None,
) -> Float[Tensor, "m 3"]:
    """Cost, product of image and model, and power of the model, all over the noise; float64."""
    if image_of is None:
        image_of = torch.arange(len(batch))
    check_poses(batch, rotation, translation, image_of)
    if not runs_kernels(volume.device):
        parts = _parts_on_device(batch, volume, noise_power, rotation, translation, image_of)
        return torch.cat([_score_reference(volume, *part) for part in parts])
    check_reach(volume.values.shape, volume.padding, rotation, batch.disk, allow_nan=True)
    rotation, unknown = without_nan(rotation)
    out = np.empty((len(rotation), 3))
    arguments = _kernel_arguments(batch, volume, noise_power, rotation, translation, image_of)

    def work(start: int, stop: int, thread: int) -> None:
        score_kernel(*arguments(start, stop), out[start:stop])

    run_in_threads(work, len(out))
    out[unknown.numpy()] = np.nan
    return torch.from_numpy(out)


def score_hypotheses(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    hypotheses: PoseHypotheses,
) -> PoseHypotheses:
    """The same hypotheses, in the same order, weighed by how well the volume explains each particle.

    Parameters are as in `score_poses`; log-weights are minus the costs, whatever they were before.
    """
    shape = hypotheses.log_weight.shape
    image_of = torch.arange(shape[0]).repeat_interleave(shape[1])
    rotation, translation = (t.flatten(0, 1).contiguous() for t in (hypotheses.rotation, hypotheses.translation))
    cost = score_poses(batch, volume, noise_power, rotation, translation, image_of)
    return PoseHypotheses(hypotheses.rotation, hypotheses.translation, -cost.float().view(shape))


def refine_poses(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "m 3 3"],
    translation: Float[Tensor, "m 2"],
    image_of: Int[Tensor, " m"] | None = None,
    iterations: int = 6,
) -> RefinedPoses:
    """Local maximum-likelihood poses: Levenberg-Marquardt over three rotation and two translation parameters.

    Parameters and errors are as in `score_poses`; a step that raises the cost is not taken. A pose that is not a
    number stays as it is. The result is in the host's memory.
    """
    if image_of is None:
        image_of = torch.arange(len(batch))
    check_poses(batch, rotation, translation, image_of)
    check_reach(volume.values.shape, volume.padding, rotation, batch.disk, allow_nan=True)
    start, unknown = without_nan(rotation)
    refine = _refine_fused if runs_kernels(volume.device) else _refine_in_parts
    found = refine(batch, volume, noise_power, start, translation, image_of, iterations)
    unknown = unknown.to(found.cost.device)
    return RefinedPoses(
        found.rotation.masked_fill(unknown[:, None, None], math.nan),
        found.translation,
        found.cost.masked_fill(unknown, math.nan),
        found.hessian.masked_fill(unknown[:, None, None], 0.0),
    )


def _refine_fused(batch, volume, noise_power, rotation, translation, image_of, iterations):
    rotations = rotation.double().contiguous().clone()
    shifts = (translation.double() / batch.box_length).contiguous().clone()
    costs, hessians = np.empty(len(rotations)), np.empty((len(rotations), 5, 5))
    arguments = _kernel_arguments(batch, volume, noise_power, rotations, translation, image_of)

    def work(start: int, stop: int, thread: int) -> None:
        grid, shape, images, ctf, root, _, _, image, *rest = arguments(start, stop)
        refine_kernel(
            grid, shape, images, ctf, root, rotations[start:stop].numpy(), shifts[start:stop].numpy(),
            image, *rest, iterations, MAX_STEP_RADIANS, MAX_STEP_BOX_LENGTHS,
            costs[start:stop], hessians[start:stop],
        )  # fmt: skip

    run_in_threads(work, len(rotations))
    unit = torch.ones(5, dtype=torch.float64)
    unit[3:] = 2 * math.pi / batch.box_length
    hessian = torch.from_numpy(hessians) * unit[:, None] * unit
    return RefinedPoses(
        rotations.to(rotation.dtype), (shifts * batch.box_length).to(translation.dtype),
        torch.from_numpy(costs), hessian,
    )  # fmt: skip


def _parts_on_device(batch, volume, noise_power, rotation, translation, image_of):
    """The arguments of a reference, a bounded number of coefficients at a time, where the volume is."""
    device = volume.device
    batch, noise_power = batch.to(device), noise_power.to(device)
    size = max(1, _COEFFICIENTS_AT_ONCE // len(batch.disk))
    for part in zip(rotation.split(size), translation.split(size), image_of.split(size), strict=True):
        yield batch, noise_power, *(t.to(device) for t in part)


def _score_reference(volume, batch, noise_power, rotation, translation, image_of):
    model = form_images(volume, rotation, translation, batch.ctf[image_of], batch.disk, batch.pixel_size)
    image, precision = batch.images[image_of], 1 / noise_power[batch.disk.shell]
    parts = (
        (model - image).abs() ** 2,
        image.real * model.real + image.imag * model.imag,
        model.real**2 + model.imag**2,
    )
    return torch.stack([(part * precision).sum(1).double() for part in parts], 1).cpu()


def _refine_in_parts(
    batch,
    volume,
    noise_power,
    rotation,
    translation,
    image_of,
    iterations,
):
    parts = _parts_on_device(batch, volume, noise_power, rotation, translation, image_of)
    found = [refine_poses_reference(b, volume, s, r, t, i, iterations) for b, s, r, t, i in parts]
    return RefinedPoses(
        *(torch.cat([getattr(f, field.name) for f in found]).cpu() for field in fields(RefinedPoses))
    )


def _kernel_arguments(batch, volume, noise_power, rotation, translation, image_of):
    """The arrays that the fused kernels share, for a range of poses."""
    shape = tuple(volume.values.shape[:3])
    grid = kernel_grid(volume)
    images, ctf = kernel_images(batch)
    rotations = rotation.float().contiguous().numpy()
    shifts = (translation.double() / batch.box_length).numpy()
    radius = math.ceil(batch.disk.reach)
    image_of = image_of.contiguous()
    root = noise_power[batch.disk.shell].rsqrt().float().numpy()

    def arguments(start: int, stop: int) -> tuple:
        return (
            grid, shape, images, ctf, root, rotations[start:stop],
            shifts[start:stop], image_of[start:stop].numpy(), batch.disk.kx.numpy(), batch.disk.ky.numpy(),
            radius, np.float32(volume.padding),
        )  # fmt: skip

    return arguments


def refine_poses_reference(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "m 3 3"],
    translation: Float[Tensor, "m 2"],
    image_of: Int[Tensor, " m"],
    iterations: int = 6,
) -> RefinedPoses:
    """`refine_poses` in plain torch, all particles at once."""
    check_poses(batch, rotation, translation, image_of)
    precision = 1 / noise_power[batch.disk.shell]
    images, ctf = batch.images[image_of], batch.ctf[image_of]
    best, gradient = _normal_equations(batch, volume, precision, images, ctf, rotation, translation)
    damping = torch.full_like(best.cost, 2e-4)
    done = torch.zeros(len(rotation), dtype=torch.bool, device=rotation.device)
    for _ in range(iterations):
        ridge = damping[:, None] * best.hessian.diagonal(dim1=1, dim2=2) + 1e-12
        step = -torch.linalg.solve(best.hessian + torch.diag_embed(ridge), gradient)
        promised = -(step * gradient).sum(1)
        angle, length = step[:, :3].norm(dim=1), step[:, 3:].norm(dim=1)
        limit = MAX_STEP_BOX_LENGTHS * batch.box_length
        turn = step[:, :3] * (MAX_STEP_RADIANS / angle.clamp(min=MAX_STEP_RADIANS))[:, None]
        move = step[:, 3:] * (limit / length.clamp(min=limit))[:, None]
        trial, its_gradient = _normal_equations(
            batch, volume, precision, images, ctf,
            _turn(best.rotation, turn), best.translation + move.to(translation.dtype),
        )  # fmt: skip
        last = ~done & (promised < SETTLED) & (angle <= MAX_STEP_RADIANS) & (length <= limit)
        better = ~done & ~last & (trial.cost <= best.cost)
        seen = _choose(better, trial, best)
        best = replace(
            seen,
            rotation=torch.where(last[:, None, None], trial.rotation, seen.rotation),
            translation=torch.where(last[:, None], trial.translation, seen.translation),
        )
        gradient = torch.where(better[:, None], its_gradient, gradient)
        damping = torch.where(better, (damping * 0.2).clamp(min=1e-6), damping * 10)
        done = done | last
    return best


def _turn(rotation: Tensor, vector: Tensor) -> Tensor:
    with full_precision(rotation.device):
        return rotation_from_vector(vector.to(rotation.dtype)) @ rotation


def _choose(first: Tensor, a: RefinedPoses, b: RefinedPoses) -> RefinedPoses:
    return RefinedPoses(
        torch.where(first[:, None, None], a.rotation, b.rotation),
        torch.where(first[:, None], a.translation, b.translation),
        torch.where(first, a.cost, b.cost),
        torch.where(first[:, None, None], a.hessian, b.hessian),
    )


def _normal_equations(batch, volume, precision, images, ctf, rotation, translation):
    """Cost, ``JᵀJ`` and ``Jᵀr`` of each pose, weighted by the precision."""
    ramp = ctf * compute_shift(translation, batch.disk, batch.pixel_size)
    value, turned = slice_with_jacobian(volume, rotation, batch.disk)
    model = value * ramp
    frequency = torch.stack((batch.disk.kx, batch.disk.ky), -1) * (-2j * math.pi / batch.box_length)
    jacobian = torch.cat((turned * ramp[..., None], model[..., None] * frequency), -1)
    residual = model - images
    weighted = (jacobian * precision[:, None]).conj().transpose(1, 2)
    cost = ((residual.real**2 + residual.imag**2) * precision).sum(1)
    hessian = (weighted @ jacobian).real
    gradient = (weighted @ residual[..., None]).real[..., 0]
    return RefinedPoses(rotation, translation, cost.double(), hessian.double()), gradient.double()
