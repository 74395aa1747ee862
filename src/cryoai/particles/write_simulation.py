"""Writing simulated particles as a RELION data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.geometry.rotations import rotation_to_euler_zyz
from cryoai.io.mrc import write_map
from cryoai.io.stack import StackWriter
from cryoai.io.star import ParticleStarWriter
from cryoai.particles.junk import Shows
from cryoai.particles.simulate import SimulatedChunk, SimulationSettings, Simulator, Species
from cryoai.types import CtfParameters, Map, Microscope

STACK_NAME, STAR_NAME, MAP_NAME = "particles.mrcs", "particles.star", "true_map.mrc"
_KINDS_OF_JUNK = {Shows.NOISE: "noise", Shows.BLOBS: "blobs", Shows.PAIR: "pair", Shows.EDGE: "edge"}
_MICROSCOPE_COLUMNS = ["rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"]


@dataclass(frozen=True)
class WrittenSimulation:
    """What `write_simulation` wrote.

    Attributes
    ----------
    star_path
        The particles.
    n_particles
        Number of images.
    signal_variance, noise_variance
        Of a pixel of the images on disk that show a particle; they sum to 1.
    n_junk
        Number of images that show something else than one particle.
    n_of_species
        Number of particles of each species.
    """

    star_path: Path
    n_particles: int
    signal_variance: float
    noise_variance: float
    n_junk: int = 0
    n_of_species: tuple[int, ...] = ()


def write_simulation(
    molecules: Map | Sequence[Species],
    settings: SimulationSettings,
    folder: Path,
    *,
    on_chunk: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> WrittenSimulation:
    """Simulate particles into ``particles.mrcs``, ``particles.star`` (true poses) and ``true_map.mrc``.

    Of several molecules there are ``true_map1.mrc``, ``true_map2.mrc`` and so on, in whose order
    ``rlnClassNumber`` counts them. Where there is junk, the STAR file marks it with 1 in a column ``cryoaiJunk``
    and gives it the class 0; ``cryoaiShows`` has the species' names and the kinds of junk.

    Memory does not depend on the number of particles. The files appear when everything has been written, the
    STAR file last: where it is, the data set is whole. Image names are relative to the folder, so that it may
    be moved and RELION started in it.

    Parameters
    ----------
    molecules
        As `Simulator` takes them; their box and voxel size become the images'.
    settings
        What to simulate.
    folder
        Made if need be.
    on_chunk
        Called with the number of particles written so far.
    overwrite
        Whether files of these names may be replaced.

    Raises
    ------
    InputError
        The folder holds such files already, or cannot be written to; a map is empty.
    CryoAIError
        The disk is full.
    """
    folder = Path(folder)
    simulator = Simulator(molecules, settings)
    species = simulator.species
    maps = {name: one.true_map for name, one in zip(map_names(len(species)), species, strict=True)}
    existing = [name for name in (STAR_NAME, STACK_NAME, *maps) if (folder / name).exists()]
    if existing and not overwrite:
        raise InputError(
            "exists already", file=folder / existing[0], advice="choose another folder, or allow overwriting"
        )
    true_map = species[0].true_map
    optics = make_optics_table(settings, true_map.box_size, true_map.voxel_size)
    stack = StackWriter(folder / STACK_NAME, settings.n_particles, true_map.box_size, true_map.voxel_size)
    numbers = np.zeros(len(maps) + 1, int)
    # Left in reverse order: the STAR file appears after the stack that it names.
    with ParticleStarWriter(folder / STAR_NAME, optics) as star, stack:
        for chunk in simulator.chunks():
            stack.write(chunk.images)
            table = make_particle_table(chunk, int(numbers.sum()), optics)
            star.append(table.assign(**_contents(chunk, species, settings)))
            numbers += np.bincount(_class_numbers(chunk), minlength=len(numbers))
            if on_chunk is not None:
                on_chunk(int(numbers.sum()))
        for name, one in maps.items():
            write_map(one, folder / name)
        for old in {MAP_NAME, *(path.name for path in folder.glob("true_map[1-9]*.mrc"))} - set(maps):
            # Of a simulation that this one takes the place of.
            (folder / old).unlink(missing_ok=True)
    total = simulator.signal_variance + simulator.noise_variance
    n_junk, *n_of_species = numbers.tolist()
    return WrittenSimulation(
        folder / STAR_NAME, sum(numbers.tolist()), simulator.signal_variance / total,
        simulator.noise_variance / total, n_junk, tuple(n_of_species),
    )  # fmt: skip


def map_names(n_species: int) -> list[str]:
    """Names of the files that the true maps are written to."""
    return [MAP_NAME] if n_species == 1 else [f"true_map{number}.mrc" for number in range(1, n_species + 1)]


def _contents(chunk: SimulatedChunk, species: Sequence[Species], settings: SimulationSettings) -> dict[str, object]:
    """Columns that say what each image shows, where that is not one molecule in all of them."""
    if not settings.junk.total and len(species) == 1:
        return {}
    names = [
        species[number].name if kind == Shows.PARTICLE else _KINDS_OF_JUNK[Shows(kind)]
        for kind, number in zip(chunk.shows, chunk.species, strict=True)
    ]
    columns: dict[str, object] = {"rlnClassNumber": _class_numbers(chunk), "cryoaiShows": names}
    return {**columns, "cryoaiJunk": chunk.is_junk.astype(int)} if settings.junk.total else columns


def _class_numbers(chunk: SimulatedChunk) -> Int[np.ndarray, " n"]:
    """The species counted from 1; 0 is junk."""
    return np.where(chunk.is_junk, 0, chunk.species + 1)


def make_optics_table(settings: SimulationSettings, box_size: int, pixel_size: float) -> pd.DataFrame:
    """RELION's optics groups: one for each voltage, Cs and amplitude contrast among the CTFs that are used.

    Parameters
    ----------
    settings
        What to simulate.
    box_size
        px.
    pixel_size
        Å.
    """
    microscopes = np.array([astuple(Microscope())])
    if settings.use_ctf and settings.ctf is not None:
        microscopes = np.unique(_microscopes(settings.ctf[: settings.n_particles]), axis=0)
    groups = np.arange(1, len(microscopes) + 1)
    optics = pd.DataFrame(
        {"rlnOpticsGroup": groups, "rlnOpticsGroupName": [f"opticsGroup{group}" for group in groups]}
    )
    optics[_MICROSCOPE_COLUMNS] = microscopes
    return optics.assign(rlnImagePixelSize=pixel_size, rlnImageSize=box_size, rlnImageDimensionality=2)


def make_particle_table(chunk: SimulatedChunk, first: int, optics: pd.DataFrame) -> pd.DataFrame:
    """RELION's columns for consecutive particles; CTF columns only where the chunk has CTFs.

    Parameters
    ----------
    chunk
        The particles.
    first
        Place of the chunk's first image in the stack, counted from 0.
    optics
        From `make_optics_table`.
    """
    angles = rotation_to_euler_zyz(torch.from_numpy(chunk.pose.rotation)).numpy()
    numbers = range(first + 1, first + len(angles) + 1)
    columns: dict[str, object] = {
        "rlnImageName": [f"{number:06d}@{STACK_NAME}" for number in numbers],
        # RELION sorts particles into micrographs and refuses some jobs without a name for theirs.
        "rlnMicrographName": "simulated.mrc",
    }
    # Adding 0 turns -0 into 0.
    columns.update(zip(("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"), np.round(angles, 6).T + 0.0, strict=True))
    # RELION's origin is what would bring the particle back to the centre: the negative of its translation.
    origin = np.round(-chunk.pose.translation.astype(np.float64), 6) + 0.0
    columns.update(rlnOriginXAngst=origin[:, 0], rlnOriginYAngst=origin[:, 1])
    if chunk.ctf is not None:
        columns.update(_ctf_columns(chunk.ctf))
    columns["rlnOpticsGroup"] = 1 if chunk.ctf is None else _optics_groups(chunk.ctf, optics)
    return pd.DataFrame(columns)


def _ctf_columns(ctf: CtfParameters) -> dict[str, Float[np.ndarray, " n"]]:
    return {
        "rlnDefocusU": ctf.defocus_u_angstrom,
        "rlnDefocusV": ctf.defocus_v_angstrom,
        "rlnDefocusAngle": np.rad2deg(ctf.defocus_angle),
        "rlnPhaseShift": np.rad2deg(ctf.phase_shift),
        "rlnCtfBfactor": ctf.b_factor,
    }


def _microscopes(ctf: CtfParameters) -> Float[np.ndarray, "n 3"]:
    return np.stack((ctf.voltage_kv, ctf.spherical_aberration_mm, ctf.amplitude_contrast), axis=-1)


def _optics_groups(ctf: CtfParameters, optics: pd.DataFrame) -> Int[np.ndarray, " n"]:
    """The number of each particle's optics group."""
    known = optics[_MICROSCOPE_COLUMNS].to_numpy()
    match = (_microscopes(ctf)[:, None] == known).all(-1)
    return optics["rlnOpticsGroup"].to_numpy()[match.argmax(1)]
