"""``cryoai simulate``: a particle stack with known poses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cryoai.particles.mixture_file import Mixture
    from cryoai.particles.simulate import SimulationSettings
    from cryoai.particles.write_simulation import WrittenSimulation
    from cryoai.types import CtfParameters, Map, Pose

_SMALLEST_BOX = 16


def simulate(
    *,
    structure: Path | None = None,
    map_: Annotated[Path | None, Parameter(name="--map")] = None,
    voxel_size: float | None = None,
    phantom: Annotated[bool, Parameter(negative="")] = False,
    mixture: Path | None = None,
    box_size: int,
    pixel_size: float,
    n_particles: int,
    snr_db: float | None = None,
    shift_sigma: float = 20.0,
    ctf_from: Path | None = None,
    no_ctf: Annotated[bool, Parameter(negative="")] = False,
    poses_from: Path | None = None,
    contrast_spread: float = 0.0,
    noise_colour: float = 0.0,
    junk: float = 0.0,
    preferred_share: float = 0.0,
    preferred_angle: float = 20.0,
    seed: int = 0,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Simulate particles of a known molecule, or of a mixture, with their true poses.

    Writes particles.mrcs, particles.star and true_map.mrc (of a mixture true_map1.mrc and so on) into the output
    folder. What they show is one of --structure, --map, --phantom and --mixture.

    Parameters
    ----------
    structure
        Atomic model (PDB or mmCIF); model.cif:A,B takes two of its chains only.
    map_
        Density map (MRC); resampled to the pixel size, then cropped or padded to the box.
    voxel_size
        Å, of the map, in place of its header's.
    phantom
        The built-in test molecule.
    mixture
        YAML file with species (structure, map or phantom, each with a share of the images), and shares of junk
        (noise, blobs, pairs, edges). The columns rlnClassNumber and cryoaiShows of particles.star tell them.
    box_size
        Edge of the images, px.
    pixel_size
        Å.
    n_particles
        Number of images.
    snr_db
        Signal-to-noise ratio in dB: 10 log10(variance of the signal / variance of the noise). No noise by
        default. Of a mixture that of each species, unless its file says snr: all.
    shift_sigma
        Standard deviation of the translations along x and along y, Å.
    ctf_from
        Take the CTFs of this particle file (STAR or .cs), in turn.
    no_ctf
        A perfect microscope.
    poses_from
        Draw orientations from those in this particle file, instead of uniform ones.
    contrast_spread
        Multiply each particle's signal by a factor of mean 1, this standard deviation, and 0.1 or more.
    noise_colour
        How much more power the noise has at low frequencies: 1 + C / (1 + (s / s0)^2) with s0 = 1 / 50 Å, at
        the same variance. 0 is white.
    junk
        Share of the images that show no particle, 0 to below 1: half of them noise alone, half a few blobs.
        The column cryoaiJunk of particles.star marks them. --snr-db counts the others.
    preferred_share
        Share of the particles that are seen from near one direction, the molecule's z axis; all others are
        seen from anywhere.
    preferred_angle
        How near, degrees.
    seed
        Everything random follows from it.
    output
        Folder to write into.
    overwrite
        Replace a simulation that the folder holds.
    quiet
        Show no progress.
    """
    from cryoai.errors import InputError

    _check_options(box_size, pixel_size, n_particles, snr_db, shift_sigma, seed)
    _check_sources(structure, map_, voxel_size, phantom, mixture, ctf_from, no_ctf)
    _check_imperfections(snr_db, contrast_spread, noise_colour, junk)
    if mixture is not None and junk:
        raise InputError("--junk and --mixture contradict each other", advice="give junk in the mixture's file")
    _check_views(preferred_share, preferred_angle, poses_from)
    from cryoai.particles.simulate import SimulationSettings

    what = _read_what(structure, map_, voxel_size, mixture, junk, box_size, pixel_size)
    if what.junk.total and snr_db is None:
        # Images of noise alone would be empty.
        raise InputError("junk needs noise", advice="give --snr-db")
    settings = SimulationSettings(
        n_particles=n_particles,
        snr_db=snr_db,
        shift_sigma=shift_sigma,
        use_ctf=not no_ctf,
        ctf=None if ctf_from is None else _read_ctf(ctf_from),
        pose=None if poses_from is None else _draw_poses(poses_from, n_particles, shift_sigma, seed),
        seed=seed,
        contrast_spread=contrast_spread,
        noise_colour=noise_colour,
        junk=what.junk,
        preferred_share=preferred_share,
        preferred_angle=math.radians(preferred_angle),
        equal_signal=what.equal_signal,
    )
    written = _write_with_progress(what, settings, output, overwrite, quiet)
    _print_summary(written, what, snr_db)


def _check_options(
    box_size: int, pixel_size: float, n_particles: int, snr_db: float | None, shift_sigma: float, seed: int
) -> None:
    from cryoai.errors import InputError

    if box_size < _SMALLEST_BOX:
        raise InputError(f"--box-size {box_size} is too small", advice=f"use {_SMALLEST_BOX} px or more")
    if not (pixel_size > 0 and math.isfinite(pixel_size)):
        raise InputError(f"--pixel-size {pixel_size:g} is not a positive length", advice="give it in Å")
    if n_particles < 1:
        raise InputError(f"--n-particles {n_particles} leaves nothing to do", advice="ask for at least one")
    if snr_db is not None and not math.isfinite(snr_db):
        raise InputError(f"--snr-db {snr_db:g} is not a number", advice="leave it out for no noise")
    if not (shift_sigma >= 0 and math.isfinite(shift_sigma)):
        raise InputError(f"--shift-sigma {shift_sigma:g} is not a length", advice="give it in Å, 0 or more")
    if seed < 0:
        raise InputError(f"--seed {seed} is negative", advice="use 0 or more")


def _check_imperfections(snr_db: float | None, contrast_spread: float, noise_colour: float, junk: float) -> None:
    from cryoai.errors import InputError

    if not (contrast_spread >= 0 and math.isfinite(contrast_spread)):
        raise InputError(f"--contrast-spread {contrast_spread:g} is no standard deviation", advice="use 0 or more")
    if not (noise_colour >= 0 and math.isfinite(noise_colour)):
        raise InputError(f"--noise-colour {noise_colour:g} is not a surplus of power", advice="use 0 or more")
    if not 0 <= junk < 1:
        raise InputError(f"--junk {junk:g} is not a share below 1", advice="use 0 or more, and less than 1")
    if noise_colour and snr_db is None:
        raise InputError("--noise-colour needs noise", advice="give --snr-db")


def _check_views(preferred_share: float, preferred_angle: float, poses_from: Path | None) -> None:
    from cryoai.errors import InputError

    if not 0 <= preferred_share <= 1:
        raise InputError(f"--preferred-share {preferred_share:g} is not a share", advice="use 0 to 1")
    if not 0 < preferred_angle <= 180:
        raise InputError(
            f"--preferred-angle {preferred_angle:g} is not an angle from an axis",
            advice="give it in degrees, more than 0 and at most 180",
        )
    if preferred_share and poses_from is not None:
        raise InputError("--preferred-share and --poses-from contradict each other", advice="leave one of them out")


def _check_sources(
    structure: Path | None,
    map_: Path | None,
    voxel_size: float | None,
    phantom: bool,
    mixture: Path | None,
    ctf_from: Path | None,
    no_ctf: bool,
) -> None:
    from cryoai.errors import InputError

    if (structure is not None) + (map_ is not None) + phantom + (mixture is not None) != 1:
        advice = "give one of --structure, --map, --phantom and --mixture"
        raise InputError("there must be one molecule, or one mixture", advice=advice)
    if voxel_size is not None and map_ is None:
        raise InputError("--voxel-size belongs to --map", advice="leave it out; --pixel-size sets the images'")
    if voxel_size is not None and not (voxel_size > 0 and math.isfinite(voxel_size)):
        raise InputError(f"--voxel-size {voxel_size:g} is not a positive length", advice="give it in Å")
    if no_ctf and ctf_from is not None:
        raise InputError("--no-ctf and --ctf-from contradict each other", advice="leave one of them out")


def _read_ctf(path: Path) -> CtfParameters:
    from cryoai.errors import InputError
    from cryoai.io import read_particles

    ctf = read_particles(path, check_stacks=False).ctf
    if ctf is None or len(ctf) == 0:
        raise InputError("the file holds no CTFs", file=path, advice="leave --ctf-from out to draw some")
    return ctf


def _draw_poses(path: Path, count: int, shift_sigma: float, seed: int) -> Pose:
    """Rotations drawn from a file's, with translations of their own."""
    import numpy as np

    from cryoai.errors import InputError
    from cryoai.io import read_particles
    from cryoai.types import Pose

    pose = read_particles(path, check_stacks=False).pose
    if pose is None or len(pose) == 0:
        raise InputError("the file holds no poses", file=path, advice="give the output of a refinement")
    # The simulator's chunks use [seed, 0], [seed, 1] and so on; three numbers never coincide with those.
    rng = np.random.default_rng([seed, 0, 1])
    rotation = pose.rotation[rng.integers(len(pose), size=count)].astype(np.float32)
    return Pose(rotation, rng.normal(0, shift_sigma, (count, 2)).astype(np.float32))


def _read_what(
    structure: Path | None,
    map_: Path | None,
    voxel_size: float | None,
    mixture: Path | None,
    junk: float,
    box_size: int,
    pixel_size: float,
) -> Mixture:
    """The molecules on the grid of the simulation; a single one is a mixture, too."""
    from cryoai.particles.junk import JunkShares
    from cryoai.particles.mixture_file import Mixture, read_mixture
    from cryoai.particles.simulate import Species

    if mixture is not None:
        return read_mixture(mixture, box_size, pixel_size)
    true_map = _make_map(structure, map_, voxel_size, box_size, pixel_size)
    return Mixture((Species(true_map, 1 - junk),), JunkShares.in_halves(junk), equal_signal=True)


def _make_map(
    structure: Path | None, map_: Path | None, voxel_size: float | None, box_size: int, pixel_size: float
) -> Map:
    if structure is not None:
        from cryoai.io import density_from_structure
        from cryoai.io.structure import split_chains

        file, chains = split_chains(structure)
        return density_from_structure(file, box_size, pixel_size, chains=chains)
    if map_ is not None:
        from cryoai.io import read_map
        from cryoai.particles.fit_map import fit_map_to_box

        return fit_map_to_box(read_map(map_, voxel_size=voxel_size), box_size, pixel_size)
    from cryoai.particles.phantom import make_phantom

    return make_phantom(box_size, pixel_size)


def _write_with_progress(
    what: Mixture, settings: SimulationSettings, output: Path, overwrite: bool, quiet: bool
) -> WrittenSimulation:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cryoai.particles.write_simulation import write_simulation

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("Simulating particles", total=settings.n_particles)
        return write_simulation(
            what.species,
            settings,
            output,
            on_chunk=lambda done: progress.update(task, completed=done),
            overwrite=overwrite,
        )


def _print_summary(written: WrittenSimulation, what: Mixture, snr_db: float | None) -> None:
    noise = "no noise" if snr_db is None else f"noise variance {written.noise_variance:.4g} ({snr_db:g} dB)"
    junk = f"; {written.n_junk} of them are junk (cryoaiJunk)" if written.n_junk else ""
    true_map = what.species[0].true_map
    print(
        f"Wrote {written.n_particles} particles of {true_map.box_size} px, {true_map.voxel_size:g} Å, to "
        f"{written.star_path}: signal variance {written.signal_variance:.4g}, {noise}{junk}"
    )
    if len(what.species) > 1:
        counts = zip(what.species, written.n_of_species, strict=True)
        print("Species: " + ", ".join(f"{one.name} {count}" for one, count in counts))
