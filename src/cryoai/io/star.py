"""RELION particle STAR files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from types import TracebackType

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.io._columns import optics_rows
from cryoai.io._relion import MICROSCOPE_COLUMNS, particles_from_table
from cryoai.io._star_table import read_star_table
from cryoai.io._star_words import NEEDS_QUOTES, quote_word
from cryoai.io.atomic import atomic_path
from cryoai.types import Microscope, ParticleSet, Pose

_CHUNK = 50_000
"""Rows formatted at once; bounds the memory of writing a large table."""
_POSE_COLUMNS = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
# Pixel-unit and magnification columns of RELION 3.0, which 3.1 replaced; both together would contradict.
_OLD_COLUMNS = ("rlnOriginX", "rlnOriginY", "rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize")


def read_star(
    path: str | Path,
    *,
    datadir: Path | None = None,
    check_stacks: bool = True,
    pixel_size: float | None = None,
) -> ParticleSet:
    """Read the particles of a RELION 3.0, 3.1, 4 or 5 STAR file.

    Parameters
    ----------
    path
        The STAR file.
    datadir
        Folder of the image stacks, where the file's own names do not lead to them.
    check_stacks
        Whether to look at every stack and refuse what cannot be reconstructed.
    pixel_size
        Å, in place of what the file and its stacks say.

    Raises
    ------
    InputError
        See `cryoai.io.read_particles`.
    """
    path = Path(path)
    source = read_star_table(path)
    notes: tuple[str, ...] = ()
    if "rlnTomoParticleName" in source.particles:
        why = "describes subtomograms (RELION tomo), not single-particle images"
        if check_stacks:
            raise InputError(why, file=path, advice="give a single-particle STAR file")
        notes = (f"The file {why}: each row names a whole stack",)
    return particles_from_table(
        source, datadir=datadir, check_stacks=check_stacks, notes=notes, pixel_size=pixel_size
    )


def write_particles_star(
    path: str | Path,
    particles: ParticleSet,
    pose: Pose,
    extra_columns: Mapping[str, np.ndarray] | None = None,
    *,
    random_subset: Int[np.ndarray, " n"] | None = None,
    stack_paths: tuple[Path, ...] | None = None,
) -> None:
    """Write particles with new poses as a STAR file of RELION 3.1 or newer; atomically.

    Every column of the input is kept, in its order, but for RELION 3.0's units in pixels and magnifications,
    which become Å and an optics group. The names of the image stacks are written as absolute paths.

    Parameters
    ----------
    path
        File to write or replace.
    particles
        As read; from a RELION, cryoSPARC or bare stack input.
    pose
        One per particle, in the same order.
    extra_columns
        Name (without the leading underscore) to values, one per particle; replaces a column of that name.
    random_subset
        Half-set of each particle, 1 or 2; by default the input's.
    stack_paths
        Where the images are, instead of ``particles.stack_paths`` (in the same order).

    Raises
    ------
    CryoAIError
        The disk is full.
    InputError
        A name can't be written in a STAR file (see `cryoai.io._star_words.quote_word`).
    """
    table = _drop_old_units(particles.source.particles)
    # RELION resolves names against the folder it is started in, which is the project for jobs and anything at
    # all for a user's `relion_reconstruct --i out/particles.star`; only absolute names are right in both.
    paths = np.array([str(p.resolve()) for p in stack_paths or particles.stack_paths], dtype=object)
    numbers = (f"{index + 1:06d}@" for index in particles.image_index)
    table["rlnImageName"] = [n + p for n, p in zip(numbers, paths[particles.stack_index], strict=True)]
    for name, values in _pose_columns(pose).items():
        table[name] = values
    subset = particles.random_subset if random_subset is None else random_subset
    if subset is not None:
        table["rlnRandomSubset"] = subset
    for name, values in (extra_columns or {}).items():
        table[name] = values
    table, optics = _optics_for_writing(particles, table)
    with ParticleStarWriter(path, optics) as writer:
        for start in range(0, len(table), _CHUNK):
            writer.append(table.take(range(start, min(start + _CHUNK, len(table)))))


class ParticleStarWriter:
    """Write a STAR file of any length in bounded memory; the file appears when the block ends.

    Parameters
    ----------
    path
        File to write or replace.
    optics
        RELION's optics table.

    Raises
    ------
    CryoAIError
        The disk is full.
    """

    def __init__(self, path: str | Path, optics: pd.DataFrame) -> None:
        self.path, self._optics = Path(path), optics
        self._columns: list[str] | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> ParticleStarWriter:
        temporary = self._cleanup.enter_context(atomic_path(self.path))
        self._file = self._cleanup.enter_context(open(temporary, "w", encoding="utf-8", newline="\n"))
        self._file.write("# version 30001\n\n")
        self._write_header("optics", list(self._optics.columns))
        self._write_rows(self._optics)
        self._file.write("\n\n# version 30001\n\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def append(self, rows: pd.DataFrame) -> None:
        """Add particles.

        Parameters
        ----------
        rows
            RELION's columns; the first call settles which there are, and later ones must have the same.
        """
        if self._columns is None:
            self._columns = list(rows.columns)
            self._write_header("particles", self._columns)
        if set(rows.columns) != set(self._columns):
            raise ValueError("all the rows of a STAR table must have the same columns")
        self._write_rows(rows.reindex(columns=self._columns))

    def _write_header(self, block: str, columns: list[str]) -> None:
        labels = "".join(f"_{name} #{place}\n" for place, name in enumerate(columns, 1))
        self._file.write(f"data_{block}\n\nloop_\n{labels}")

    def _write_rows(self, rows: pd.DataFrame) -> None:
        words = [_words(rows, name) for name in rows]
        self._file.writelines("\t".join(row) + "\n" for row in zip(*words, strict=True))


def _words(rows: pd.DataFrame, name: str) -> list[str]:
    """A column as it stands in a STAR file."""
    column = rows[name]
    if pd.api.types.is_numeric_dtype(column):
        # Numbers are written with as many digits as they need, so that kept columns do not lose any.
        return [str(value) for value in column.tolist()]
    texts = column.astype(object).where(column.notna(), "None").astype(str)
    if texts.str.contains(NEEDS_QUOTES, regex=True).any():
        return [quote_word(text) for text in texts]
    return texts.tolist()


def _drop_old_units(table: pd.DataFrame) -> pd.DataFrame:
    """A copy without the columns that RELION 3.1 replaced; origins in Å take the place of those in px."""
    renamed = {
        f"rlnOrigin{axis}": f"rlnOrigin{axis}Angst"
        for axis in "XY"
        if f"rlnOrigin{axis}" in table and f"rlnOrigin{axis}Angst" not in table
    }
    return table.rename(columns=renamed).drop(columns=list(_OLD_COLUMNS), errors="ignore").copy()


def _pose_columns(pose: Pose) -> dict[str, Float[np.ndarray, " n"]]:
    from scipy.spatial.transform import Rotation

    with warnings.catch_warnings():
        # At tilt 0 only rot + psi is defined; SciPy's choice (one of them zero) is as good as any.
        warnings.filterwarnings("ignore", message="Gimbal lock")
        angles = Rotation.from_matrix(pose.rotation).as_euler("ZYZ", degrees=True)
    values = np.concatenate([angles, -np.asarray(pose.translation, dtype=np.float64)], axis=1)
    # Adding 0 turns -0 into 0. Six decimals are RELION's own, and far below any uncertainty.
    return dict(zip(_POSE_COLUMNS, np.round(values, 6).T + 0.0, strict=True))


def _optics_for_writing(particles: ParticleSet, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The optics table RELION 3.1 needs, and the particles numbered by it."""
    if particles.source.optics is None:
        optics, group = _make_optics(particles)
        table["rlnOpticsGroup"] = group
    else:
        optics = particles.source.optics.copy()
        if "rlnOpticsGroup" not in optics:
            optics["rlnOpticsGroup"] = np.arange(1, len(optics) + 1)
        if "rlnOpticsGroup" not in table:
            table["rlnOpticsGroup"] = optics["rlnOpticsGroup"].to_numpy()[optics_rows(particles.source)]
    if "rlnOpticsGroupName" not in optics:
        optics["rlnOpticsGroupName"] = [f"opticsGroup{number}" for number in optics["rlnOpticsGroup"]]
    # RELION demands a microscope even of particles without a CTF, so they get a common one.
    for name, value in zip(MICROSCOPE_COLUMNS, astuple(Microscope()), strict=True):
        if name not in optics:
            optics[name] = _first_of_each_group(table, optics, name, value)
    if "rlnImagePixelSize" not in optics or len(optics) == 1:
        optics["rlnImagePixelSize"] = particles.pixel_size or 1.0
    if particles.box_size is not None:
        optics["rlnImageSize"] = particles.box_size
    optics["rlnImageDimensionality"] = 2
    return table.drop(columns="rlnImagePixelSize", errors="ignore"), optics


def _make_optics(particles: ParticleSet) -> tuple[pd.DataFrame, Int[np.ndarray, " n"]]:
    """Optics groups for a table without any: one for each combination of microscope parameters."""
    ctf = particles.ctf
    if ctf is None:
        return pd.DataFrame({"rlnOpticsGroup": [1]}), np.ones(len(particles), dtype=np.int64)
    microscope = np.stack([ctf.voltage_kv, ctf.spherical_aberration_mm, ctf.amplitude_contrast], axis=-1)
    distinct, group = np.unique(microscope, axis=0, return_inverse=True)
    optics = pd.DataFrame(distinct, columns=list(MICROSCOPE_COLUMNS))
    optics.insert(0, "rlnOpticsGroup", np.arange(1, len(optics) + 1))
    return optics, np.asarray(group).reshape(-1).astype(np.int64) + 1


def _first_of_each_group(table: pd.DataFrame, optics: pd.DataFrame, name: str, default: float) -> list[float]:
    if name not in table:
        return [default] * len(optics)
    first = table.groupby("rlnOpticsGroup")[name].first()
    return first.reindex(optics["rlnOpticsGroup"]).astype(float).fillna(default).tolist()
