"""The data that passes between the package's parts. All of it is frozen.

Conventions (docs/conventions.md): lengths in Å, angles in radians, other units carry a suffix. A rotation
maps image coordinates to volume coordinates; a positive translation moves density towards +x, +y.
Metadata lives in NumPy arrays so that reading it does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Microscope:
    """What is assumed of a microscope that a file does not describe: a usual Krios."""

    voltage_kv: float = 300.0
    spherical_aberration_mm: float = 2.7
    amplitude_contrast: float = 0.1


@dataclass(frozen=True)
class CtfParameters:
    """Contrast transfer function parameters, one entry per particle.

    Attributes
    ----------
    defocus_u_angstrom, defocus_v_angstrom
        Å, positive is underfocus; along the two principal axes.
    defocus_angle
        Radians, from the x axis to the direction of ``defocus_u``.
    phase_shift
        Radians, of a phase plate.
    b_factor
        Å², damps the CTF by ``exp(-b_factor k² / 4)``.
    voltage_kv, spherical_aberration_mm, amplitude_contrast
        The microscope's, repeated for each particle.
    """

    defocus_u_angstrom: Float[np.ndarray, " n"]
    defocus_v_angstrom: Float[np.ndarray, " n"]
    defocus_angle: Float[np.ndarray, " n"]
    phase_shift: Float[np.ndarray, " n"]
    b_factor: Float[np.ndarray, " n"]
    voltage_kv: Float[np.ndarray, " n"]
    spherical_aberration_mm: Float[np.ndarray, " n"]
    amplitude_contrast: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, rows: Any) -> CtfParameters:
        """The same parameters for a selection of particles."""
        return CtfParameters(*(np.atleast_1d(getattr(self, f.name)[rows]) for f in fields(self)))


@dataclass(frozen=True)
class Pose:
    """Orientation and position of each particle.

    Attributes
    ----------
    rotation
        (n, 3, 3); maps image coordinates to volume coordinates: ``slice(k) = V(R [kx, ky, 0])``.
    translation
        (n, 2), Å, xy; positive moves density towards +x, +y.
    """

    rotation: Float[np.ndarray, "n 3 3"]
    translation: Float[np.ndarray, "n 2"]

    def __len__(self) -> int:
        return len(self.rotation)

    def __getitem__(self, rows: Any) -> Pose:
        """The poses of a selection of particles."""
        return Pose(self.rotation[rows], self.translation[rows])


@dataclass(frozen=True)
class SourceTable:
    """The metadata file a particle set came from, kept whole so that an output keeps every column.

    Attributes
    ----------
    format
        ``"relion"``, ``"cryosparc"`` or ``"stack"`` (a bare MRC stack).
    path
        The file.
    particles
        One row per particle. For RELION the columns of the particles block; for cryoSPARC and bare stacks the
        same information translated to RELION's columns.
    optics
        RELION's optics block, or None for RELION 3.0 files without one.
    block_name
        Name of the particles block (``particles``, ``images`` or an empty string).
    """

    format: str
    path: Path
    particles: pd.DataFrame
    optics: pd.DataFrame | None = None
    block_name: str = "particles"


@dataclass(frozen=True)
class ParticleSet:
    """Metadata of a set of particle images; the images stay on disk (see `cryoai.particles.stack`).

    Attributes
    ----------
    stack_paths
        The distinct image stacks, resolved to existing files (or as written, where ``datadir`` was not
        resolved; see `cryoai.io.read_particles`).
    stack_index
        (n,) which of ``stack_paths`` holds each particle.
    image_index
        (n,) the image's place in its stack, counted from 0.
    box_size
        px; None while no stack has been opened and the metadata do not say.
    pixel_size
        Å; None when a bare stack's header has none, or when the particles have several.
    ctf
        None when the input has no CTF columns.
    pose
        None when the input has no poses.
    source
        The original table.
    optics_group_count
        Number of optics groups.
    random_subset
        (n,) RELION's half-set, 1 or 2; None when absent.
    notes
        Sentences for the user about what was missing or assumed.
    contrast_sign
        What the metadata say of the images on disk: +1 protein bright, -1 protein dark (cryoSPARC's
        ``blob/sign``); None when they do not say.
    pixel_sizes
        Å; each that the metadata give, once. Several only where ``pixel_size`` is None, but for rounding.
    """

    stack_paths: tuple[Path, ...]
    stack_index: Int[np.ndarray, " n"]
    image_index: Int[np.ndarray, " n"]
    box_size: int | None
    pixel_size: float | None
    ctf: CtfParameters | None
    pose: Pose | None
    source: SourceTable
    optics_group_count: int = 1
    random_subset: Int[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = ()
    contrast_sign: int | None = None
    pixel_sizes: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.stack_index)

    def select(self, rows: Int[np.ndarray, " m"]) -> ParticleSet:
        """A set of some of these particles, in the order of ``rows``."""
        return replace(
            self,
            stack_index=self.stack_index[rows],
            image_index=self.image_index[rows],
            ctf=None if self.ctf is None else self.ctf[rows],
            pose=None if self.pose is None else self.pose[rows],
            random_subset=None if self.random_subset is None else self.random_subset[rows],
            source=replace(self.source, particles=self.source.particles.iloc[rows].reset_index(drop=True)),
        )


@dataclass(frozen=True)
class Map:
    """A density map.

    Attributes
    ----------
    density
        (z, y, x), protein positive; origin at ``[box // 2, box // 2, box // 2]``.
    voxel_size
        Å.
    """

    density: Float[np.ndarray, "box box box"]
    voxel_size: float

    @property
    def box_size(self) -> int:
        """Edge length, px."""
        return self.density.shape[0]
