"""What an image leaves open about its pose: how wide its posterior is there, and how much of it lies elsewhere.

Where images are noisy the posterior is wider than the parabola at its peak, and other poses explain an image as
well. Both are measured by likelihoods: poses are drawn about the particle's own and weighed, and what they add up
to is compared with the whole posterior over a grid. The grid ends at few shells. What the further ones say of a
wrong pose is a factor with a mean of one; so the grid's mass stands for the whole of what lies elsewhere, and only
the mass about the pose itself is measured in all shells. Mates under a symmetry of the map are the same pose, and
what lies about them counts for it; between mates under a near-symmetry all shells have decided before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.quasirandom import SobolEngine

from cryoai.geometry.fourier import full_radius
from cryoai.geometry.rotations import rotation_from_vector
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.physics.translation import compute_shift
from cryoai.poses.local import refine_poses, score_poses
from cryoai.poses.posterior import MASK_MARGIN, PosteriorSearch
from cryoai.poses.search import translation_step
from cryoai.refinement.global_search import BASIN_RADIANS
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.mates import Mates, apply_mate
from cryoai.refinement.state import RefinementState
from cryoai.tensors import ParticleBatch

# Poses are drawn from Gaussians of the Hessian's covariance, widened so often; as many from each.
_WIDENED, _DRAWN_FROM_EACH = (1.0, 2.0), 16
# Draws from two Gaussians, of which the posterior is the narrower one, have an effective share of 0.6.
_GAUSSIAN = 0.45
# Share of the Hessian's diagonal that keeps flat directions finite.
_RIDGE = 1e-3
# Of the mass within few shells at least this share is taken to lie elsewhere: neither measure of it is exact.
_LEAST_ELSEWHERE = 0.1


@dataclass(frozen=True, eq=False)
class Surroundings:
    """The posterior about some poses.

    Attributes
    ----------
    log_mass
        (m,) log of the integral of the likelihood ratio over no particle at all, rad³ Å², within `BASIN_RADIANS`.
    rotation_std, translation_std
        (m,) root mean square distance from the pose per axis; radians and Å.
    """

    log_mass: Float[Tensor, " m"]
    rotation_std: Float[Tensor, " m"]
    translation_std: Float[Tensor, " m"]


def look_about(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
) -> Surroundings:
    """Weigh poses drawn about each particle's own by their likelihood (importance sampling).

    Parameters
    ----------
    batch
        The particles.
    volume
        A map that they are not in: in their own they fit better where they were put.
    noise_power
        ``E|noise|²`` per shell.
    rotation, translation
        Their poses; Å.
    """
    hessian = refine_poses(batch, volume, noise_power, rotation, translation, iterations=0).hessian
    factor = _covariance_factor(hessian)
    unit, log_density = _draws()
    offset = unit @ factor.transpose(1, 2)
    log_density = log_density - factor.diagonal(dim1=1, dim2=2).log().sum(1)[:, None]
    log_weight = _weigh(batch, volume, noise_power, rotation, translation, offset) - log_density
    count = log_weight.isfinite().sum(1).clamp(min=1)
    variance = (log_weight.softmax(1)[..., None] * offset**2).sum(1)
    log_weight[offset[..., :3].norm(dim=2) > BASIN_RADIANS] = -math.inf
    return Surroundings(
        log_weight.logsumexp(1) - count.log(),
        variance[:, :3].mean(1).sqrt().float(),
        variance[:, 3:].mean(1).sqrt().float(),
    )


def _weigh(
    batch: ParticleBatch,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    rotation: Float[Tensor, "batch 3 3"],
    translation: Float[Tensor, "batch 2"],
    offset: Float[Tensor, "batch draws 5"],
) -> Float[Tensor, "batch draws"]:
    """Log-likelihood ratios over no particle at all of draws about each pose; -inf where none was needed."""
    precision = 1 / noise_power[batch.disk.shell]
    without = ((batch.images.real**2 + batch.images.imag**2) * precision).sum(1).double()
    ratio = torch.full(offset.shape[:2], -math.inf, dtype=torch.float64)
    half = offset.shape[1] // 2
    image_of = torch.arange(len(batch))
    for some in (slice(0, half), slice(half, None)):
        drawn = offset[image_of, some]
        turned = rotation_from_vector(drawn[..., :3].to(rotation.dtype)) @ rotation[image_of, None]
        moved = translation[image_of, None] + drawn[..., 3:].to(translation.dtype)
        repeated = image_of.repeat_interleave(drawn.shape[1])
        cost = score_poses(batch, volume, noise_power, turned.flatten(0, 1), moved.flatten(0, 1), repeated)
        ratio[image_of, some] = without[image_of, None] - cost.view(drawn.shape[:2])
        # Where the first half tells that the posterior is the parabola's Gaussian, no more are needed.
        is_open = _effective_share(ratio[:, :half] - _draws()[1][:half]) < _GAUSSIAN
        image_of = torch.nonzero(is_open)[:, 0]
        if not len(image_of):
            break
    return ratio


def _effective_share(log_weight: Float[Tensor, "m draws"]) -> Float[Tensor, " m"]:
    """Of draws, the share that as good an estimate would need if all had the same weight (Kish, 1965)."""
    weight = log_weight.softmax(1)
    return 1 / (weight**2).sum(1) / log_weight.shape[1]


def measure_surroundings(
    data: ParticleData,
    state: RefinementState,
    references: References,
    radius: float,
    on_chunk: OnChunk = lambda done: None,
) -> Surroundings:
    """`look_about` for every particle of a set; NaN for those that ``references`` leave out.

    Parameters
    ----------
    data, state
        The particles and their poses.
    references
        Which map is whose.
    radius
        Shells that are compared.
    on_chunk
        Called with the particles done so far.
    """
    mass, rotation_std, translation_std = (torch.full((len(data),), math.nan) for _ in range(3))
    mass = mass.double()

    def look(portion: Portion) -> None:
        at = portion.rows
        found = look_about(
            portion.own_batch, portion.volume, state.noise_power, state.rotation[at], state.translation[at]
        )
        mass[at], rotation_std[at], translation_std[at] = found.log_mass, found.rotation_std, found.translation_std

    map_particles(data, references, look, radius=radius, on_chunk=on_chunk, views=state.rotation)
    return Surroundings(mass, rotation_std, translation_std)


def measure_share(
    data: ParticleData,
    state: RefinementState,
    references: References,
    about: Surroundings,
    search: PosteriorSearch,
    mates: Mates | None = None,
    on_chunk: OnChunk = lambda done: None,
) -> Float[Tensor, " n"]:
    """Share of each particle's posterior over all poses that lies about its own; 0 for particles left out.

    Parameters
    ----------
    data, state, references
        As in `measure_surroundings`.
    about
        What that found within all shells.
    search
        Over all poses, within fewer; translations are about the particle's own, since other poses that explain an
        image put the particle about where it is.
    mates
        Poses that count as the particle's own, or between which has been decided; None for none.
    on_chunk
        Called with the particles done so far.
    """
    share = torch.zeros(len(data))
    shells = search.grid.shells
    step = translation_step(shells, search.box_size * search.pixel_size)
    volume = math.log(8 * math.pi**2 * len(search.shifts) * step**2)
    mates = mates or Mates()
    copies = math.log(len(mates.same))

    def compare(portion: Portion) -> None:
        at, batch = portion.rows, _centre(portion.own_batch, state.translation[portion.rows])
        everywhere = search(batch, portion.volume, state.noise_power).gain.double() + volume
        few, unmoved = batch.prefix(shells + 0.01), torch.zeros(len(at), 2)
        own = state.rotation[at]
        poses = [(own, unmoved), *(apply_mate(mate, own, unmoved, data.pixel_size) for mate in mates.near)]
        near = [look_about(few, portion.volume, state.noise_power, *pose).log_mass for pose in poses]
        near[0] = near[0] + copies
        known = torch.stack(near).logsumexp(0)
        elsewhere = everywhere + (1 - (known - everywhere).exp()).clamp(min=_LEAST_ELSEWHERE).log()
        share[at] = (about.log_mass[at] + copies - elsewhere).sigmoid().float()

    radius = min(shells + MASK_MARGIN, full_radius(data.disk.box_size))
    map_particles(data, references, compare, radius=radius, on_chunk=on_chunk)
    return share


def _centre(batch: ParticleBatch, translation: Float[Tensor, "batch 2"]) -> ParticleBatch:
    """The images moved back by their translations, Å."""
    return replace(batch, images=batch.images * compute_shift(-translation, batch.disk, batch.pixel_size))


@lru_cache(maxsize=1)
def _draws() -> tuple[Float[Tensor, "draws 5"], Float[Tensor, " draws"]]:
    """Draws in units of a Gaussian of covariance one, low-discrepancy, and the log of their density."""
    count = len(_WIDENED) * _DRAWN_FROM_EACH
    uniform = SobolEngine(5, scramble=True, seed=0).draw(count, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    widened = torch.tensor(_WIDENED, dtype=torch.float64)
    unit = math.sqrt(2) * torch.erfinv(2 * uniform - 1) * widened.repeat(_DRAWN_FROM_EACH)[:, None]
    squares = (unit**2).sum(1)[:, None]
    each = -0.5 * squares / widened**2 - 5 * widened.log()
    return unit, each.logsumexp(1) - math.log(len(widened)) - 2.5 * math.log(2 * math.pi)


def _covariance_factor(hessian: Float[Tensor, "m 5 5"]) -> Float[Tensor, "m 5 5"]:
    """Lower triangular, of ``(2 H)⁻¹``; radians and Å differ by orders of magnitude, so that H is scaled first."""
    scale = (2 * hessian.diagonal(dim1=1, dim2=2)).clamp(min=1e-30).rsqrt()
    scaled = 2 * hessian * scale[:, :, None] * scale[:, None, :]
    inverse = torch.linalg.inv(scaled + _RIDGE * torch.eye(5, dtype=hessian.dtype))
    # Unlike `cholesky`, what is not a number stays one: there is no error for one bad image among millions.
    return scale[:, :, None] * torch.linalg.cholesky_ex(inverse).L
