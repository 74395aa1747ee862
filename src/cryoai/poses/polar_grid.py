"""Images and slices on rings, where turning an image in its plane is a shift along each ring.

A Hermitian transform F is held on the ring of shell k as the real function ``g = Re F + Im F`` of the angle (the
Hartley transform): Re F has the even angular modes and Im F the odd ones, so that nothing is lost, and the sum of
``Re(F conj(G))`` over a ring is the sum of the two real functions' product. The correlation with a slice over every
in-plane angle is then one product per angular mode (Barnett, Greengard, Pataki & Spivak,
SIAM J. Imaging Sci. 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from cryoai.geometry.fourier import FourierDisk

# Angular modes beyond those that a particle's radius allows: its edge is not sharp.
_MODE_MARGIN = 2
# The kernels sum over shells in groups of so many.
_GROUP = 4


@dataclass(frozen=True, eq=False)
class PolarGrid:
    """Rings of shells 1 to ``shells``, with ``angles`` samples each, and the angular modes kept of them.

    Slices are sampled at the angles ``l Δ`` and images at ``(l + ½) Δ``, Δ = 2π / angles, so that in-plane
    rotations ``(j + ½) Δ`` pair samples with samples and fall into four groups of equal cosines.

    Attributes
    ----------
    shells, angles
        How many; ``angles`` is a multiple of four.
    modes_of_shell
        (shells,) largest angular mode kept on each ring.
    """

    shells: int
    angles: int
    modes_of_shell: tuple[int, ...]

    @cached_property
    def shell(self) -> Float[Tensor, " shells"]:
        """1 to ``shells``."""
        return torch.arange(1, self.shells + 1, dtype=torch.float32)

    @cached_property
    def area(self) -> Float[Tensor, " shells"]:
        """What a sample of a whole ring counts for in a sum over a half-plane of Fourier coefficients."""
        return math.pi * self.shell / self.angles

    @property
    def modes(self) -> int:
        """Angular modes kept on the outermost ring, the zeroth included."""
        return self.modes_of_shell[-1] + 1

    @cached_property
    def term(self) -> Int[Tensor, "terms 2"]:
        """(mode, shell) of each term of a spectrum, by mode; shell 0 stands for padding."""
        terms = []
        for mode in range(self.modes):
            shells = [k for k in range(1, self.shells + 1) if mode <= self.modes_of_shell[k - 1]]
            shells += [0] * (-len(shells) % _GROUP)
            terms += [(mode, k) for k in shells]
        return torch.tensor(terms)

    @cached_property
    def first_term(self) -> Int[Tensor, " modes_and_end"]:
        """Where the terms of each mode begin, and where all end."""
        count = torch.bincount(self.term[:, 0], minlength=self.modes)
        return torch.cat((torch.zeros(1, dtype=torch.long), count.cumsum(0))).int()

    def samples(self, box_size: int, of_images: bool) -> FourierDisk:
        """The half-ring samples, ring by ring, as frequencies of a box; of images or of slices."""
        angle = (torch.arange(self.angles // 2) + (0.5 if of_images else 0.0)) * 2 * math.pi / self.angles
        kx, ky = self.shell[:, None] * angle.cos(), self.shell[:, None] * angle.sin()
        radius = self.shell.repeat_interleave(self.angles // 2)
        nowhere = torch.full(radius.shape, -1)
        return FourierDisk(box_size, kx.flatten(), ky.flatten(), radius, radius.long(), nowhere)

    def to_rings(self, half: Complex[Tensor, "*batch n"]) -> Float[Tensor, "*batch shells angles"]:
        """Whole rings of ``Re F + Im F`` from F on half of each; the other half is its conjugate."""
        half = half.unflatten(-1, (self.shells, self.angles // 2))
        return torch.cat((half.real + half.imag, half.real - half.imag), -1)

    def from_rings(self, rings: Float[Tensor, "*batch shells angles"]) -> Complex[Tensor, "*batch n"]:
        """The inverse of `to_rings`."""
        near, far = rings[..., : self.angles // 2], rings[..., self.angles // 2 :]
        return torch.complex((near + far) / 2, (near - far) / 2).flatten(-2)

    def spectrum(
        self, rings: Float[Tensor, "*batch shells angles"], of_images: bool
    ) -> Complex[Tensor, "*batch terms"]:
        """Angular Fourier coefficients of rings, unnormalised, in the order of `term`; 0 where that is padding."""
        modes = torch.fft.rfft(rings, dim=-1)
        mode, shell = self.term.T
        terms = modes.flatten(-2).index_select(-1, (shell - 1).clamp(min=0) * modes.shape[-1] + mode)
        phase = -mode * (math.pi / self.angles) if of_images else torch.zeros(len(mode))
        return terms * torch.polar((shell > 0).float(), phase)

    def correlation_weight(self) -> Float[Tensor, " terms"]:
        """What each term counts for in a correlation: ``Σ_l g_l h_l = Σ_terms weight Re(G conj(H))``."""
        return torch.where(self.term[:, 0] == 0, 1.0, 2.0) / self.angles


@lru_cache(maxsize=64)
def make_polar_grid(shells: int, support: float, reach: float) -> PolarGrid:
    """Rings for a particle of a given radius.

    Parameters
    ----------
    shells
        The outermost ring.
    support
        Radius of the particle, box lengths: on the ring of shell k it has modes up to 2π k support.
    reach
        Radius of what images show when they are moved, box lengths; its modes must not be taken for those kept.
    """
    modes = [math.ceil(2 * math.pi * k * support) + _MODE_MARGIN for k in range(1, shells + 1)]
    angles = max(2 * modes[-1] + 1, 2 * math.pi * shells * reach + modes[-1] + 1)
    return PolarGrid(shells, 4 * math.ceil(angles / 4), tuple(modes))


def spread_directions(count: int) -> Float[Tensor, "count 3"]:
    """Viewing directions spread evenly over a half sphere (Fibonacci lattice): d and -d are mirror images."""
    index = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - index / count
    longitude = math.pi * (1 + math.sqrt(5)) * index
    r = (1 - z * z).sqrt()
    return torch.stack((r * longitude.cos(), r * longitude.sin(), z), -1).float()


def order_in_patches(direction: Float[Tensor, "n 3"], size: int) -> Float[Tensor, "n 3"]:
    """The same directions, each run of ``size`` of them close together; n is a multiple of ``size``.

    They are halved again and again across the axis along which they lie farthest apart.
    """
    patches = len(direction) // size
    if patches <= 1:
        return direction
    axis = (direction.amax(0) - direction.amin(0)).argmax()
    ordered = direction[direction[:, axis].argsort(stable=True)]
    half = patches // 2 * size
    return torch.cat((order_in_patches(ordered[:half], size), order_in_patches(ordered[half:], size)))


def rotations_to(direction: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3 3"]:
    """Some rotation that takes z to each direction."""
    z_axis, x_axis = direction.new_tensor([0.0, 0.0, 1.0]), direction.new_tensor([1.0, 0.0, 0.0])
    aside = torch.where(direction[:, 2:].abs() < 0.9, z_axis, x_axis)
    x = torch.nn.functional.normalize(torch.linalg.cross(aside, direction), dim=1)
    return torch.stack((x, torch.linalg.cross(direction, x), direction), -1)
