"""Whether an image shows its particle alone, or another one that overlaps it.

What is left of an image when the map at its pose is taken away is compared with a featureless particle, the map's
average over all views, at every place where another one could overlap: a matched filter. What that gains over
nothing, averaged over the places, is how much likelier a second particle is.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk, disk_to_images, full_radius
from cryoai.geometry.rotations import random_rotations
from cryoai.geometry.shells import mean_per_shell, radial_distance
from cryoai.particles.dataset import ParticleData
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.insertion import slice_quickly
from cryoai.physics.slicing import FourierVolume
from cryoai.physics.translation import compute_shift
from cryoai.refinement.map_particles import OnChunk, Portion, References, map_particles
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig
from cryoai.tensors import ParticleBatch

# Shells, for a particle of usual size.
_SHELLS = 8
# Distances of another particle, in radii of this one (as measured, which is a little more than it has), and in box
# lengths at most. Nearer than that is the particle itself; farther out they do not overlap.
_NEAREST, _FARTHEST, _IN_BOX = 0.9, 1.6, 0.5
# Images, of all, that are held to show a second particle before they are looked at.
_PRIOR = 0.05
# Contrast by which the map may differ from a particle.
_LEAST_CONTRAST, _MOST_CONTRAST = 0.3, 2.0
_VIEWS = 300


def measure_alone(
    data: ParticleData,
    state: RefinementState,
    references: References,
    config: ReconstructConfig,
    on_chunk: OnChunk = lambda done: None,
) -> Float[Tensor, " n"]:
    """Probability that each particle is alone in its image; 1 for those left out.

    Parameters
    ----------
    data, state
        The particles and their poses.
    references
        Each with a map that it is not in.
    config
        How far the particle reaches.
    on_chunk
        Called with the particles done so far.
    """
    support = data.support(config.particle_diameter)
    nearest, farthest = _NEAREST * support, min(_FARTHEST * support, _IN_BOX)
    alone = torch.ones(len(data))
    if nearest >= farthest:
        return alone
    radius = min(config.bootstrap.scaled_to(_SHELLS, support), full_radius(data.disk.box_size))
    views = [_average_view(volume, data.disk.prefix(radius)) for volume in references.volumes]

    def compare(portion: Portion) -> None:
        at = portion.rows
        rest = _without_particle(portion, state)
        gain = _second_particle_gain(rest, views[portion.map_index], state.noise_power, nearest, farthest)
        alone[at] = 1 - (gain + math.log(_PRIOR / (1 - _PRIOR))).sigmoid()

    map_particles(data, references, compare, radius=radius, on_chunk=on_chunk)
    return alone


def _average_view(volume: FourierVolume, disk: FourierDisk) -> Float[Tensor, " n"]:
    """Mean of the map's slices: a real number in each shell."""
    rotation = random_rotations(_VIEWS, torch.Generator().manual_seed(0))
    mean = slice_quickly(volume, rotation, disk).real.mean(0, keepdim=True)
    return mean_per_shell(mean, disk.shell, disk.shell_count)[0][disk.shell]


def _without_particle(portion: Portion, state: RefinementState) -> ParticleBatch:
    """Images about their particles, which the map takes away at the contrast that fits best."""
    batch, at = portion.own_batch, portion.rows
    rotation, translation = state.rotation[at], state.translation[at]
    model = form_images_quickly(portion.volume, rotation, translation, batch.ctf, batch.disk, batch.pixel_size)
    precision = 1 / state.noise_power[batch.disk.shell]
    product = ((batch.images * model.conj()).real * precision).sum(1)
    power = ((model.real**2 + model.imag**2) * precision).sum(1).clamp(min=1e-9)
    contrast = (product / power).clamp(_LEAST_CONTRAST, _MOST_CONTRAST)[:, None]
    rest = (batch.images - contrast * model) * compute_shift(-translation, batch.disk, batch.pixel_size)
    return ParticleBatch(rest, batch.ctf, batch.disk, batch.pixel_size)


def _second_particle_gain(
    rest: ParticleBatch,
    view: Float[Tensor, " n"],
    noise_power: Float[Tensor, " shells"],
    nearest: float,
    farthest: float,
) -> Float[Tensor, " batch"]:
    """Log-likelihood gain of a second particle anywhere between two distances, box lengths; nats."""
    small = rest.disk.in_smallest_box()
    box, precision = small.box_size, 1 / noise_power[rest.disk.shell]
    # Orthonormal and over half of the plane: the sum over the disk is half of that, times the box.
    product = disk_to_images(rest.images * rest.ctf * view * precision, small) * box / 2
    power = (rest.ctf**2 * view**2 * precision).sum(1)
    distance = radial_distance(box, 2) / box
    gain = 2 * product - power[:, None, None]
    places = ((distance >= nearest) & (distance <= farthest)).flatten()
    return gain.flatten(1)[:, places].logsumexp(1) - math.log(max(1, int(places.sum())))
