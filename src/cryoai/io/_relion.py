"""RELION's columns turned into the package's own types: the one place where units and signs are converted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.io._columns import holds_no_numbers, integer_column, numeric_column, optional_column
from cryoai.io._image_names import split_image_names
from cryoai.io._stack_paths import resolve_stacks
from cryoai.io.stack import StackReader
from cryoai.types import CtfParameters, ParticleSet, Pose, SourceTable

_SAME_PIXEL_SIZE = 1e-3
"""Relative difference of pixel sizes that is taken for rounding: below a hundredth of a shell in practice."""
_ROWS = 50_000
"""Particles converted at once, where the conversion needs much more memory than its result."""
_MICROSCOPE_DEFAULTS = {
    "rlnVoltage": (300.0, "voltage: assumed 300 kV"),
    "rlnSphericalAberration": (2.7, "spherical aberration: assumed 2.7 mm"),
    "rlnAmplitudeContrast": (0.1, "amplitude contrast: assumed 0.1"),
}


@dataclass
class _Facts:
    """What is being found out about a table, with the notes for the user."""

    source: SourceTable
    strict: bool
    notes: list[str] = field(default_factory=list)

    def refuse(self, why: str, advice: str | None = None) -> None:
        """An error where the particles are to be used, a note where they are only looked at."""
        if self.strict:
            raise InputError(why, file=self.source.path, advice=advice)
        self.notes.append(f"{why[0].upper()}{why[1:]}")


def particles_from_table(
    source: SourceTable,
    *,
    datadir: Path | None,
    check_stacks: bool,
    pixel_size: float | None = None,
    contrast_sign: int | None = None,
    notes: tuple[str, ...] = (),
) -> ParticleSet:
    """A particle set from a table with RELION's columns.

    Parameters
    ----------
    source
        Must have ``rlnImageName`` and at least one row.
    datadir
        Folder of the image stacks.
    check_stacks
        Open every stack's header and refuse what cannot be reconstructed; otherwise tell it in the notes.
    pixel_size
        Å, where neither the table nor the stacks say.
    contrast_sign
        +1 where protein is bright in the stacks, -1 where it is dark, None where the file does not say.
    notes
        What is known already.

    Raises
    ------
    InputError
        A value is not a number, stacks are missing or too short, or box and pixel sizes differ.
    """
    facts = _Facts(source, check_stacks, list(notes))
    names, stack_index, image_index = split_image_names(source)
    paths = resolve_stacks(names, source.path, datadir, must_exist=check_stacks, notes=facts.notes)
    box_size, header_pixel_size = _stack_facts(facts, paths, stack_index, image_index)
    pixel_sizes = _pixel_sizes(facts, header_pixel_size)
    if pixel_sizes is None and pixel_size is not None:
        facts.notes = [note for note in facts.notes if note != "Pixel size: unknown"]
        pixel_sizes = np.broadcast_to(float(pixel_size), (len(source.particles),))
    return ParticleSet(
        stack_paths=paths,
        stack_index=stack_index,
        image_index=image_index,
        box_size=box_size,
        pixel_size=_common_pixel_size(pixel_sizes),
        pixel_sizes=() if pixel_sizes is None else _distinct(pixel_sizes),
        ctf=_ctf(facts),
        pose=_pose(facts, pixel_sizes),
        source=source,
        optics_group_count=1 if source.optics is None else len(source.optics),
        random_subset=_random_subset(facts),
        contrast_sign=contrast_sign,
        notes=tuple(facts.notes),
    )


def _stack_facts(
    facts: _Facts, paths: tuple[Path, ...], stack_index: np.ndarray, image_index: np.ndarray
) -> tuple[int | None, float | None]:
    """Box size and the header's pixel size, from every stack if they are checked, else the first found."""
    if facts.strict:
        readers = [StackReader(path) for path in paths]
        _check_indices(facts.source.path, readers, stack_index, image_index)
        for reader in readers:
            if reader.box_size != readers[0].box_size:
                raise InputError(
                    f"its images have two box sizes: {readers[0].box_size} px in {readers[0].path.name} and "
                    f"{reader.box_size} px in {reader.path.name}",
                    file=facts.source.path,
                    advice="reconstruct them apart, or rescale one of them",
                )
        return readers[0].box_size, readers[0].pixel_size
    for path in paths:
        if path.is_file():
            try:
                reader = StackReader(path)
            except InputError as error:
                facts.notes.append(str(error))
                continue
            return reader.box_size, reader.pixel_size
    sizes = optional_column(facts.source, "rlnImageSize")
    if sizes is not None and len(np.unique(sizes)) > 1:
        facts.notes.append("The optics groups have different box sizes")
    return (None if sizes is None else int(sizes[0])), None


def _check_indices(
    file: Path, readers: list[StackReader], stack_index: np.ndarray, image_index: np.ndarray
) -> None:
    lengths = np.array([len(reader) for reader in readers], dtype=np.int64)
    beyond = np.flatnonzero(image_index >= lengths[stack_index])
    if len(beyond):
        row = int(beyond[0])
        stack = readers[stack_index[row]]
        why = f"asks for image {image_index[row] + 1} of {stack.path}, which has {len(stack)}"
        raise InputError(why, file=file, row=row + 1)


def _pixel_sizes(facts: _Facts, header_pixel_size: float | None) -> Float[np.ndarray, " n"] | None:
    source = facts.source
    sizes = optional_column(source, "rlnImagePixelSize", "rlnPixelSize")
    if sizes is None:
        detector = optional_column(source, "rlnDetectorPixelSize")
        magnification = optional_column(source, "rlnMagnification")
        if detector is not None and magnification is not None and (magnification > 0).all():
            # RELION 3.0: the detector's pixel is in µm.
            sizes = detector * 1e4 / magnification
    if sizes is None and header_pixel_size is not None:
        facts.notes.append(f"Pixel size: {header_pixel_size:.4g} Å, from the image stack's header")
        sizes = np.broadcast_to(header_pixel_size, (len(source.particles),))
    if sizes is None:
        facts.notes.append("Pixel size: unknown")
        return None
    if sizes.min() <= 0:
        raise InputError("has a pixel size that is not positive", file=source.path)
    if not _are_one(sizes):
        facts.refuse(
            f"its particles have different pixel sizes ({_list_lengths(_distinct(sizes))})",
            "reconstruct them apart, or rescale the images to one pixel size",
        )
    if not (0.1 <= sizes.min() and sizes.max() <= 50):
        facts.notes.append(f"Pixel size: {np.median(sizes):.4g} Å is unusual; is it right?")
    return sizes


def _are_one(sizes: np.ndarray) -> bool:
    return bool(sizes.max() - sizes.min() <= _SAME_PIXEL_SIZE * sizes.max())


def _common_pixel_size(sizes: np.ndarray | None) -> float | None:
    """The pixel size of most particles, None where they have several: a mean or median would be no particle's."""
    if sizes is None or not _are_one(sizes):
        return None
    values, counts = np.unique(sizes, return_counts=True)
    return float(values[counts.argmax()])


def _distinct(sizes: np.ndarray) -> tuple[float, ...]:
    """Each pixel size once, to the four digits that are shown."""
    return tuple(dict.fromkeys(float(f"{size:.4g}") for size in np.unique(sizes)))


def _list_lengths(lengths: tuple[float, ...]) -> str:
    shown = [f"{length:g}" for length in lengths]
    if len(shown) > 6:
        shown = [*shown[:3], "...", *shown[-2:]]
    return f"{', '.join(shown)} Å"


def _ctf(facts: _Facts) -> CtfParameters | None:
    source = facts.source
    count = len(source.particles)
    for name, what in (
        ("rlnCtfDataArePhaseFlipped", "phase flipped"),
        ("rlnCtfDataAreCtfPremultiplied", "multiplied by their CTF"),
    ):
        flag = optional_column(source, name)
        if flag is not None and flag.any():
            facts.refuse(f"the images are {what} ({name}), which is not modelled", "extract them again without it")
    defocus_u = optional_column(source, "rlnDefocusU")
    if defocus_u is None:
        facts.notes.append("CTF: absent, the images are taken as already corrected")
        return None
    defocus_v = optional_column(source, "rlnDefocusV")
    if defocus_v is None:
        facts.notes.append("Astigmatism: absent, assumed none")
        defocus_v = defocus_u.copy()
    lowest = min(defocus_u.min(), defocus_v.min())
    if lowest < 100:
        unit = "negative (overfocus)" if lowest < 0 else "below 100 Å; is it in µm?"
        facts.notes.append(f"Defocus: the smallest, {lowest:.4g} Å, is {unit}")
    b_factor = optional_column(source, "rlnCtfBfactor")
    if b_factor is not None and b_factor.min() < 0:
        # Some tilt-series programs write the damping with the other sign; amplification is never meant.
        facts.notes.append("CTF B factor: negative values, taken as damping by their magnitude")
    return CtfParameters(
        defocus_u_angstrom=defocus_u,
        defocus_v_angstrom=defocus_v,
        defocus_angle=_or_constant(_radians(optional_column(source, "rlnDefocusAngle")), 0.0, count),
        phase_shift=_or_constant(_radians(optional_column(source, "rlnPhaseShift")), 0.0, count),
        b_factor=_or_constant(None if b_factor is None else np.abs(b_factor), 0.0, count),
        voltage_kv=_microscope(facts, "rlnVoltage"),
        spherical_aberration_mm=_microscope(facts, "rlnSphericalAberration"),
        amplitude_contrast=_microscope(facts, "rlnAmplitudeContrast"),
    )


def _microscope(facts: _Facts, name: str) -> Float[np.ndarray, " n"]:
    default, note = _MICROSCOPE_DEFAULTS[name]
    values = optional_column(facts.source, name)
    if values is None:
        facts.notes.append(f"{note[0].upper()}{note[1:]}")
    elif name == "rlnVoltage" and values.min() <= 0:
        raise InputError("rlnVoltage is not positive", file=facts.source.path)
    elif name == "rlnAmplitudeContrast" and not 0 <= values.min() <= values.max() < 1:
        raise InputError(
            f"rlnAmplitudeContrast must lie between 0 and 1 (it goes to {values.max():g})",
            file=facts.source.path,
            advice="divide by 100 if it is in per cent",
        )
    return _or_constant(values, default, len(facts.source.particles))


def _radians(degrees: Float[np.ndarray, " n"] | None) -> Float[np.ndarray, " n"] | None:
    return None if degrees is None else np.deg2rad(degrees)


def _or_constant(values: np.ndarray | None, default: float, count: int) -> Float[np.ndarray, " n"]:
    """The values, or the default for all; what is the same for all particles is held once."""
    if values is not None and (values != values[0]).any():
        return values
    return np.broadcast_to(default if values is None else values[0], (count,))


def _pose(facts: _Facts, pixel_sizes: np.ndarray | None) -> Pose | None:
    from scipy.spatial.transform import Rotation

    table, file = facts.source.particles, facts.source.path
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    if not all(name in table for name in names):
        return None
    empty = next((name for name in names if holds_no_numbers(table, name)), None)
    if empty is not None:
        facts.notes.append(f"Poses: {empty} holds no numbers, taken as absent")
        return None
    angles = np.stack([numeric_column(table, name, file) for name in names], axis=-1)
    origins = [_origin(facts, axis, pixel_sizes) for axis in "XY"]
    # RELION's origin is the shift that centres the particle, so the particle itself lies at its negative;
    # RELION's Euler matrix maps the volume to the image, ours is its transpose.
    rotation = np.empty((len(table), 3, 3))
    for start in range(0, len(table), _ROWS):
        rows = slice(start, start + _ROWS)
        rotation[rows] = Rotation.from_euler("ZYZ", angles[rows], degrees=True).as_matrix()
    return Pose(rotation, -np.stack(origins, axis=-1))


def _origin(facts: _Facts, axis: str, pixel_sizes: np.ndarray | None) -> Float[np.ndarray, " n"]:
    """RELION's origin along x or y, Å."""
    table, file = facts.source.particles, facts.source.path
    if f"rlnOrigin{axis}Angst" in table:
        return numeric_column(table, f"rlnOrigin{axis}Angst", file)
    if f"rlnOrigin{axis}" not in table:
        return np.zeros(len(table))
    if pixel_sizes is None:
        facts.refuse("its origins are in pixels and the pixel size is unknown", "give --pixel-size (Å)")
        return np.zeros(len(table))
    return numeric_column(table, f"rlnOrigin{axis}", file) * pixel_sizes


def _random_subset(facts: _Facts) -> Int[np.ndarray, " n"] | None:
    table = facts.source.particles
    if "rlnRandomSubset" not in table:
        return None
    if holds_no_numbers(table, "rlnRandomSubset"):
        facts.notes.append("Half-sets: rlnRandomSubset holds no numbers, ignored")
        return None
    subset = integer_column(table, "rlnRandomSubset", facts.source.path)
    if not np.isin(subset, (1, 2)).all():
        facts.notes.append("Half-sets: rlnRandomSubset holds other values than 1 and 2, ignored")
        return None
    return subset
