"""A map that climbs: one step for each mini-batch, with momentum, and nothing outside the particle."""

from __future__ import annotations

import torch
from torch import Tensor

from cryoai.geometry.shells import half_space_radius, mean_per_shell
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.physics.slicing import FourierVolume, VolumeAccumulator, map_from_volume, volume_from_map
from cryoai.poses.posterior import PADDING

RATE = 0.2
"""Share of a new mini-batch in whatever is a running mean."""

# The power a map may have beyond what the data support, as a share of the mean weight per shell.
_RIDGE = 1e-3
# Steps are shortened where a frequency has been seen less than this share of its shell's mean.
_SHORTENED = 0.3
# Width of the map's soft edge, box lengths; the whole edge lies outside the measured radius.
_EDGE = 0.1


class MapAscent:
    """A map that climbs towards the likelihood's maximum, mini-batch by mini-batch.

    Parameters
    ----------
    first
        Sums of images at random poses.
    share
        How many images a mini-batch has for each of theirs.
    support
        Radius of the particle, box lengths; nothing is kept outside.
    shells
        Radius of the map.
    """

    def __init__(self, first: VolumeAccumulator, share: float, support: float, shells: int) -> None:
        self._box_size, self._shells = first.box_size, shells
        self._radius = half_space_radius(first.weight.shape, PADDING)
        self._weight = first.weight * share
        mean = self._mean_weight(first.weight)
        self._small_box = 2 * (shells + 3)
        outer = min((support + _EDGE) * self._small_box, self._small_box / 2 - 1)
        self._mask = make_soft_sphere(self._small_box, outer, _EDGE * self._small_box)
        self._values = self._masked(first.numerator / (first.weight + _RIDGE * mean + 1e-9)[..., None])
        self._velocity = torch.zeros_like(self._values)

    def begin_at(self, volume: FourierVolume) -> None:
        """Take another map, on the same grid, for the first."""
        self._values = self._masked(volume.values)

    def volume(self, radius: float) -> FourierVolume:
        """The map inside a radius."""
        values = self._values.clone()
        values[self._radius > radius + 1] = 0
        return FourierVolume(values, self._box_size, PADDING)

    def step(self, new: VolumeAccumulator, size: float, momentum: float) -> None:
        """Move towards the map that a mini-batch would make.

        Parameters
        ----------
        new
            The mini-batch's sums.
        size
            1 would be the whole way, for that mini-batch alone.
        momentum
            Share of the last step that is gone on with.
        """
        self._weight = self._weight + RATE * (new.weight - self._weight)
        mean = self._mean_weight(self._weight)
        pull = new.numerator - (new.weight + _RIDGE * mean)[..., None] * self._values
        pull = pull / (self._weight + _SHORTENED * mean + 1e-9)[..., None]
        self._velocity = momentum * self._velocity + size * pull
        self._values = self._masked(self._values + self._velocity)

    def _mean_weight(self, weight: Tensor) -> Tensor:
        """Every frequency's shell mean."""
        shell = self._radius.round().long()
        return mean_per_shell(weight.flatten(), shell.flatten())[shell]

    def _masked(self, values: Tensor) -> Tensor:
        """What is left inside the particle's radius, in real space, and inside the map's, in Fourier space."""
        values = torch.where((self._radius > self._shells + 0.5)[..., None], 0.0, values)
        density = map_from_volume(FourierVolume(values, self._small_box, PADDING)) * self._mask
        values = volume_from_map(density, self._shells + 2, PADDING).values
        return torch.where((self._radius > self._shells + 1)[..., None], 0.0, values)
