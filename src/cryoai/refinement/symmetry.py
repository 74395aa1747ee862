"""Which point group a map has that was given none, and how surely.

A rotation is a symmetry where it leaves each half-map as like itself as the half-maps' noise allows, and where
images prefer it: those of one half are compared with the map of the other, as it is and made symmetric. A true
symmetry takes noise out of that map; one that only nearly holds takes out what makes the molecule differ from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.geometry.fourier import fft3, full_radius, ifft3, largest_radius, resample
from cryoai.geometry.point_groups import identify_group
from cryoai.geometry.shells import half_space_radius
from cryoai.metrics.alignment import MapAlignment, apply_alignment
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.local import fit_poses, refine_poses
from cryoai.refinement.break_symmetry import can_ask, is_better, try_to_break
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.map_particles import Portion, References, map_particles
from cryoai.refinement.mates import (
    SHELLS_FOR_SYMMETRY,
    TRUE_SYMMETRY_DEFICIT,
    Mates,
    complete_group,
    group_about_one_point,
)
from cryoai.refinement.state import RefinementState

# Images of each half that are asked; maps are made symmetric in a box of at most so many px.
_ASKED, _LARGEST_BOX = 500, 64
# Standard errors of what images gain by a symmetry that may count for nothing.
_SURE = 3.0
# A true symmetry may cost so large a share of what images gain by the map: turned maps are interpolated.
_INTERPOLATION = 0.002
_ITERATIONS = 3
# Groups that half-maps fall so far short of are not told of, mean FSC.
_NEARLY = 0.3


@dataclass(frozen=True)
class SymmetryTest:
    """What speaks for or against a point group.

    Attributes
    ----------
    name
        Of the group.
    deficits
        Of each half-map: how much less it is like its turned copies than its noise allows, mean FSC, worst element.
    gain, gain_error
        What images of one half gain by making the other's map symmetric, nats per image, and its standard error.
    share
        The same by what they gain by the map at all.
    broken_gain, broken_error
        What images gain where particles are put at other mates so that the map loses the symmetry, if it will; nats
        per image, and its standard error.
    """

    name: str
    deficits: tuple[float, float]
    gain: float
    gain_error: float
    share: float
    broken_gain: float = 0.0
    broken_error: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether both half-maps have it and images speak neither against it nor for the map without it."""
        return not self.is_by_chance and self.holds_as_it_is

    @property
    def holds_as_it_is(self) -> bool:
        """The same of the map alone, wherever particles lie."""
        lost = self.gain + _SURE * self.gain_error < 0 and self.share < -_INTERPOLATION
        return max(self.deficits) < TRUE_SYMMETRY_DEFICIT and not lost

    @property
    def is_by_chance(self) -> bool:
        """Whether particles at their mates have made the map symmetric, and need not have."""
        return is_better(self.broken_gain, self.broken_error)

    @property
    def nearly_holds(self) -> bool:
        """Whether it is worth telling of."""
        return not self.holds and (self.is_by_chance or max(self.deficits) < _NEARLY)

    @property
    def is_sure(self) -> bool:
        """Whether images speak for it."""
        return self.holds and self.gain > _SURE * self.gain_error


@dataclass(frozen=True)
class FoundSymmetry:
    """The point group of a map, imposed or found.

    Attributes
    ----------
    name
        Of the group.
    is_imposed
        Whether the map was given it.
    tests
        Of the groups that were looked at, the one that holds, if one does, first.
    """

    name: str
    is_imposed: bool = False
    tests: tuple[SymmetryTest, ...] = ()

    @property
    def pseudo(self) -> str:
        """A larger group that nearly holds, ``"C1"`` if there is none."""
        return next((test.name for test in self.tests if test.nearly_holds), "C1")

    def sentence(self) -> str:
        """What was found, and how surely; without a full stop."""
        if self.is_imposed:
            return f"{self.name}, as asked for"
        said = [_tell(test) for test in self.tests if test.holds or test.nearly_holds]
        if not said:
            return "C1: no rotation leaves the map nearly as it is"
        return "; ".join(said if self.name != "C1" else ["C1", *said])


NO_SYMMETRY = FoundSymmetry("C1")
"""That of a map in which nothing was found."""


def _tell(test: SymmetryTest) -> str:
    if test.is_by_chance:
        gain = f"{test.broken_gain:+.2f} ± {test.broken_error:.2f}"
        return f"pseudo-{test.name}: particles at mates of their poses make the map symmetric ({gain} nats without)"
    short = max(0.0, *test.deficits)
    alike = f"half-maps agree with their turned copies to within {short:.2f} of what noise allows"
    said = f"{test.name}: {alike}, images gain {test.gain:+.2f} ± {test.gain_error:.2f} nats each by it"
    if not test.holds:
        return f"pseudo-{said}"
    sure = "" if test.is_sure else ", which is too little to be sure"
    return f"{said}{sure} (--symmetry {test.name} would use it)"


def find_symmetry(
    data: ParticleData, state: RefinementState, halves: HalfMaps, mates: Mates, radius: float, seed: int
) -> FoundSymmetry:
    """The largest point group that both half-maps have and that images prefer, and what nearly holds.

    Parameters
    ----------
    data, state
        The particles and their final poses.
    halves
        Their half-maps, without symmetry.
    mates
        Rotations under which those look nearly the same.
    radius
        Shells that poses were refined against.
    seed
        Of what is drawn.
    """
    if not can_ask(state):
        return NO_SYMMETRY
    tests: list[SymmetryTest] = []
    maps = _Maps.of(halves)
    for elements in _candidates(mates):
        rotations = [torch.eye(3).double(), *(torch.from_numpy(one.rotation) for one in elements)]
        group = complete_group(torch.stack(rotations)).numpy()
        name = identify_group(group)
        if name is None or name in [test.name for test in tests]:
            continue
        turns = group_about_one_point(group, elements)
        test = _test(name, turns, maps, data, state)
        if test.holds_as_it_is:
            broken = try_to_break(data, state, halves, turns, radius, seed)
            test = replace(test, broken_gain=broken.gain, broken_error=broken.gain_error)
        tests.append(test)
        if test.holds:
            break
    held = [test for test in tests if test.holds]
    return FoundSymmetry(held[0].name if held else "C1", False, (*held, *(t for t in tests if not t.holds)))


def _candidates(mates: Mates) -> list[tuple[MapAlignment, ...]]:
    """Rotations that may make a group: all that nearly hold, all that hold, and each of these by itself."""
    together = [(*mates.elements, *mates.near), mates.elements]
    alone = [(one,) for one in (*mates.elements, *mates.near[:1])]
    return [one for one in (*together, *alone) if one]


@dataclass(frozen=True, eq=False)
class _Maps:
    """Half-maps, their mask, and what is known of their noise, in a box that is quick to turn."""

    halves: tuple[Tensor, Tensor]
    mask: Float[Tensor, "box box box"]
    ssnr: Float[Tensor, " shells"]
    shells: int
    scale: float

    @classmethod
    def of(cls, halves: HalfMaps) -> _Maps:
        box = halves.mask.shape[-1]
        small = min(box, _LARGEST_BOX)
        first, second, mask = (resample(one.cpu(), small, 3) for one in (*halves.unfiltered, halves.mask))
        shells = max(SHELLS_FOR_SYMMETRY, int(min(halves.fsc.crossing(0.5), largest_radius(small))))
        return cls((first, second), mask.clamp(0, 1), halves.ssnr().cpu(), shells, small / box)

    def turned(self, element: MapAlignment) -> tuple[Tensor, Tensor, Tensor]:
        """Both half-maps and their mask."""
        scaled = replace(element, shift=element.shift * self.scale)
        first, second, mask = (apply_alignment(one, scaled) for one in (*self.halves, self.mask))
        return first, second, mask.clamp(0, 1)

    def filtered(self, density: Tensor, mask: Tensor, copies: int) -> Tensor:
        """The best estimate from a half-map that is the mean of so many copies, independent in their noise."""
        shell = half_space_radius(fft3(density).shape).round().long()
        ssnr = torch.nn.functional.pad(self.ssnr, (0, max(0, int(shell.max()) + 1 - len(self.ssnr))))
        ssnr = copies * ssnr[shell]
        ssnr[shell > largest_radius(len(density))] = 0
        return ifft3(fft3(density) * ssnr / (1 + ssnr), len(density)) * mask


def _test(
    name: str, elements: Sequence[MapAlignment], maps: _Maps, data: ParticleData, state: RefinementState
) -> SymmetryTest:
    """A group by its elements: how well each half-map has it, and whether images prefer it."""
    sums, union, deficits = [one.clone() for one in maps.halves], maps.mask, [0.0, 0.0]
    for element in elements:
        *copies, mask = maps.turned(element)
        union = torch.maximum(union, mask)
        of_halves = compute_fsc(*maps.halves, torch.maximum(maps.mask, mask)).correlation
        for half, copy in enumerate(copies):
            sums[half] += copy
            alike = compute_fsc(copy, maps.halves[half], torch.maximum(maps.mask, mask)).correlation
            deficits[half] = max(deficits[half], float((of_halves - alike)[2 : maps.shells].mean()))
    order = len(elements) + 1
    without = [maps.filtered(half, union, 1) for half in maps.halves]
    made_symmetric = [maps.filtered(total / order, union, order) for total in sums]
    before, after = _gains(without, data, state), _gains(made_symmetric, data, state)
    more = after - before
    error = float(more.std() / math.sqrt(len(more)))
    return SymmetryTest(
        name, (deficits[0], deficits[1]), float(more.mean()), error, float(more.mean() / before.mean().abs())
    )


def _gains(maps: list[Tensor], data: ParticleData, state: RefinementState) -> Float[Tensor, " asked"]:
    """What images of each half gain by the other half's map, at the poses near theirs that fit it best; nats."""
    box, small = data.disk.box_size, maps[0].shape[-1]
    radius = min(full_radius(box), largest_radius(small))
    volumes = tuple(volume_from_map(resample(one, box, 3) * (small / box), radius).to(data.device) for one in maps)
    references = References(state.half, volumes).swapped()
    rows = np.sort(
        np.concatenate([sample_rows(np.intersect1d(state.present, state.rows(h)), _ASKED) for h in (0, 1)])
    )
    gains = torch.zeros(len(data))

    def fit(portion: Portion) -> None:
        batch, at = portion.own_batch, portion.rows
        local = refine_poses(
            batch, portion.volume, state.noise_power, state.rotation[at], state.translation[at],
            iterations=_ITERATIONS,
        )  # fmt: skip
        gains[at], _ = fit_poses(batch, portion.volume, state.noise_power, local.rotation, local.translation)

    map_particles(data, references, fit, rows, radius)
    return gains[rows].double()
