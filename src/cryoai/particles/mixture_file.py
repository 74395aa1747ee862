"""A YAML file that says which molecules, and which junk, a simulated set is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from cryoai.errors import InputError
from cryoai.io.mrc import read_map
from cryoai.io.structure import density_from_structure, split_chains
from cryoai.io.yaml_file import read_yaml_options
from cryoai.particles.fit_map import fit_map_to_box
from cryoai.particles.junk import JunkShares
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import Species
from cryoai.parts import explain
from cryoai.settings import Settings
from cryoai.types import Map

_ROUNDING = 1e-6


class SpeciesOptions(Settings):
    """One molecule; its source is one of ``structure``, ``map`` and ``phantom``."""

    structure: str | None = None
    """Atomic model (PDB or mmCIF), ``model.cif:A,B`` for two chains of it; relative to the mixture's file."""
    map: str | None = None
    """Density map (MRC); relative to the mixture's file."""
    voxel_size: float | None = Field(default=None, gt=0)
    """Å, of the map, in place of its header's."""
    phantom: int | None = Field(default=None, ge=0)
    """A built-in test molecule; each number gives another one."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Of all images. What is left is shared evenly by the species that have none."""
    name: str | None = Field(default=None, pattern=r"^\S+$")
    """For the particles' file; by default ``species1`` and so on."""

    @model_validator(mode="after")
    def _has_one_source(self) -> SpeciesOptions:
        if sum(source is not None for source in (self.structure, self.map, self.phantom)) != 1:
            raise ValueError("a species is one of structure, map and phantom")
        if self.voxel_size is not None and self.map is None:
            raise ValueError("voxel_size belongs to a map")
        return self


class JunkOptions(Settings):
    """Shares of all images."""

    noise: float = Field(default=0.0, ge=0, lt=1)
    """Nothing but noise."""
    blobs: float = Field(default=0.0, ge=0, lt=1)
    """One to three smooth blobs."""
    pairs: float = Field(default=0.0, ge=0, lt=1)
    """Two particles in one box."""
    edges: float = Field(default=0.0, ge=0, lt=1)
    """Edges of ice or carbon: strong, smooth gradients."""


class MixtureOptions(Settings):
    """All of the file."""

    species: tuple[SpeciesOptions, ...] = Field(min_length=1)
    """The molecules."""
    junk: JunkOptions = JunkOptions()
    """What is no particle."""
    snr: Literal["each", "all"] = "each"
    """Whether --snr-db is that of each species, or of all particles together with the densities as they are."""


@dataclass(frozen=True)
class Mixture:
    """What a mixture's file says.

    Attributes
    ----------
    species
        The molecules on the grid of the images; their shares and the junk's sum to 1.
    junk
        Shares of the images that are none.
    equal_signal
        Whether each species has the same SNR.
    """

    species: tuple[Species, ...]
    junk: JunkShares
    equal_signal: bool


def read_mixture(path: Path, box_size: int, pixel_size: float) -> Mixture:
    """Read a mixture's file and the molecules that it names.

    Parameters
    ----------
    path
        YAML with the names of `MixtureOptions`.
    box_size
        px, of the images.
    pixel_size
        Å, of the images.

    Raises
    ------
    InputError
        The file or a molecule can't be read, a name or a value is wrong, or the shares do not make up a set.
    """
    try:
        options = MixtureOptions.model_validate(read_yaml_options(path))
    except ValidationError as error:
        raise InputError(explain(error), file=path) from error
    junk = JunkShares(**options.junk.model_dump())
    shares = _complete_shares([one.share for one in options.species], junk, path)
    names = [one.name or f"species{number}" for number, one in enumerate(options.species, start=1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two species are named {twice!r}", file=path, advice="give them names of their own")
    species = tuple(
        Species(_read_molecule(one, path.parent, box_size, pixel_size), share, name)
        for one, share, name in zip(options.species, shares, names, strict=True)
    )
    return Mixture(species, junk, options.snr == "each")


def _complete_shares(given: list[float | None], junk: JunkShares, path: Path) -> list[float]:
    """Shares of all species; what is left of 1 goes to those that have none."""
    known = math.fsum([junk.total, *(share for share in given if share is not None)])
    open_ones = given.count(None)
    if known > 1 + _ROUNDING or (open_ones and known > 1 - _ROUNDING):
        advice = "nothing is left for the species without a share" if open_ones else "they must add up to 1"
        raise InputError(f"the shares of species and junk add up to {known:.6g}", file=path, advice=advice)
    if not open_ones and known < 1 - _ROUNDING:
        raise InputError(
            f"the shares of species and junk add up to {known:.6g}, not 1",
            file=path,
            advice="leave out one species' share to give it what is left",
        )
    return [share if share is not None else (1 - known) / open_ones for share in given]


def _read_molecule(options: SpeciesOptions, folder: Path, box_size: int, pixel_size: float) -> Map:
    if options.structure is not None:
        file, chains = split_chains(folder / options.structure)
        return density_from_structure(file, box_size, pixel_size, chains=chains)
    if options.map is not None:
        density_map = read_map(folder / options.map, voxel_size=options.voxel_size)
        return fit_map_to_box(density_map, box_size, pixel_size)
    assert options.phantom is not None
    return make_phantom(box_size, pixel_size, options.phantom)
