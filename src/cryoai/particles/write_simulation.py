"""Writing simulated particles as a RELION data set."""

from __future__ import annotations

from collections.abc import Callable
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
from cryoai.particles.simulate import SimulatedChunk, SimulationSettings, Simulator
from cryoai.types import CtfParameters, Map, Microscope

STACK_NAME, STAR_NAME, MAP_NAME = "particles.mrcs", "particles.star", "true_map.mrc"
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
        Number of images that show no particle.
    """

    star_path: Path
    n_particles: int
    signal_variance: float
    noise_variance: float
    n_junk: int = 0


def write_simulation(
    true_map: Map,
    settings: SimulationSettings,
    folder: Path,
    *,
    on_chunk: Callable[[int], None] | None = None,
    overwrite: bool = False,
) -> WrittenSimulation:
    """Simulate particles into ``particles.mrcs``, ``particles.star`` (true poses) and ``true_map.mrc``.

    Where there is junk, the STAR file marks it with 1 in a column ``cryoaiJunk``.

    Memory does not depend on the number of particles. The files appear when everything has been written, the
    STAR file last: where it is, the data set is whole. Image names are relative to the folder, so that it may
    be moved and RELION started in it.

    Parameters
    ----------
    true_map
        The molecule, protein positive; its box and voxel size become the images'.
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
        The folder holds such files already, or cannot be written to; the map is empty.
    CryoAIError
        The disk is full.
    """
    folder = Path(folder)
    existing = [name for name in (STAR_NAME, STACK_NAME, MAP_NAME) if (folder / name).exists()]
    if existing and not overwrite:
        raise InputError(
            "exists already", file=folder / existing[0], advice="choose another folder, or allow overwriting"
        )
    simulator = Simulator(true_map, settings)
    optics = make_optics_table(settings, true_map.box_size, true_map.voxel_size)
    stack = StackWriter(folder / STACK_NAME, settings.n_particles, true_map.box_size, true_map.voxel_size)
    done = n_junk = 0
    # Left in reverse order: the STAR file appears after the stack that it names.
    with ParticleStarWriter(folder / STAR_NAME, optics) as star, stack:
        for chunk in simulator.chunks():
            stack.write(chunk.images)
            table = make_particle_table(chunk, done, optics)
            star.append(table.assign(cryoaiJunk=chunk.is_junk.astype(int)) if settings.junk else table)
            done += len(chunk.images)
            n_junk += int(chunk.is_junk.sum())
            if on_chunk is not None:
                on_chunk(done)
        write_map(true_map, folder / MAP_NAME)
    total = simulator.signal_variance + simulator.noise_variance
    return WrittenSimulation(
        folder / STAR_NAME, done, simulator.signal_variance / total, simulator.noise_variance / total, n_junk
    )


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
