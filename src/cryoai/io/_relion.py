"""RELION's columns turned into the package's own types: the one place where units and signs are converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from cryoai.errors import InputError
from cryoai.io._columns import holds_no_numbers, integer_column, numeric_column, optional_column
from cryoai.io._findings import Finding
from cryoai.io._image_names import split_image_names
from cryoai.io._plausible import (
    check_aberration,
    check_amplitude_contrast,
    check_b_factor,
    check_defocus,
    check_defocus_angle,
    check_phase_shift,
    check_voltage,
)
from cryoai.io._sampling import settle_sampling
from cryoai.io._stack_paths import resolve_stacks
from cryoai.io.stack import StackReader, describe_map
from cryoai.types import CtfParameters, Microscope, ParticleSet, Pose, SourceTable

_SAME_PIXEL_SIZE = 1e-3
"""Relative difference of pixel sizes that is taken for rounding: below a hundredth of a shell in practice."""
_ROWS = 50_000
"""Particles converted at once, where the conversion needs much more memory than its result."""
MICROSCOPE_COLUMNS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
"""In the order of `Microscope`."""


@dataclass
class _Facts:
    """What is being found out about a table, with the notes for the user."""

    source: SourceTable
    strict: bool
    notes: list[str] = field(default_factory=list)
    pixel_size: float | None = None

    def refuse(self, why: str, advice: str | None = None) -> None:
        """An error where the particles are to be used, a note where they are only looked at."""
        if self.strict:
            raise InputError(why, file=self.source.path, advice=advice)
        self.notes.append(f"{why[0].upper()}{why[1:]}")

    def tell(self, findings: Iterable[Finding]) -> None:
        """Each as an error or a note."""
        for finding in findings:
            if finding.stops:
                self.refuse(finding.why, finding.advice)
            else:
                self.notes.append(finding.as_note())


def particles_from_table(
    source: SourceTable,
    *,
    datadir: Path | None,
    check_stacks: bool,
    contrast_sign: int | None = None,
    notes: tuple[str, ...] = (),
    pixel_size: float | None = None,
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
    pixel_size
        Å, in place of what the file and its stacks say.

    Raises
    ------
    InputError
        A value is not a number or cannot be meant, stacks are missing, too short or density maps, or box and
        pixel sizes differ.
    """
    facts = _Facts(source, check_stacks, list(notes), pixel_size)
    names, stack_index, image_index = split_image_names(source)
    paths = resolve_stacks(names, source.path, datadir, must_exist=check_stacks, notes=facts.notes)
    box_size, readers = _stack_facts(facts, paths, stack_index, image_index)
    pixel_sizes = _pixel_sizes(facts, readers)
    return ParticleSet(
        stack_paths=paths,
        stack_index=stack_index,
        image_index=image_index,
        box_size=box_size,
        pixel_size=_common_pixel_size(pixel_sizes),
        pixel_sizes=() if pixel_sizes is None else _distinct(pixel_sizes),
        ctf=_ctf(facts),
        pose=_pose(facts, pixel_sizes),
        source=_with_pixel_size(source, pixel_size),
        optics_group_count=1 if source.optics is None else len(source.optics),
        random_subset=_random_subset(facts),
        contrast_sign=contrast_sign,
        notes=tuple(facts.notes),
    )


def _with_pixel_size(source: SourceTable, given: float | None) -> SourceTable:
    """The table as it should be written: with the pixel size that was given."""
    if given is None or source.optics is None:
        return source
    return replace(source, optics=source.optics.assign(rlnImagePixelSize=given))


def _stack_facts(
    facts: _Facts, paths: tuple[Path, ...], stack_index: np.ndarray, image_index: np.ndarray
) -> tuple[int | None, list[StackReader]]:
    """Box size and readers, of every stack if they are checked, else of the first found."""
    if facts.strict:
        readers = [StackReader(path) for path in paths]
        _check_maps(facts, readers)
        _check_indices(facts.source.path, readers, stack_index, image_index)
        for reader in readers:
            if reader.box_size != readers[0].box_size:
                raise InputError(
                    f"its images have two box sizes: {readers[0].box_size} px in {readers[0].path.name} and "
                    f"{reader.box_size} px in {reader.path.name}",
                    file=facts.source.path,
                    advice="reconstruct them apart, or rescale one of them",
                )
        return readers[0].box_size, readers
    for path in paths:
        if path.is_file():
            try:
                reader = StackReader(path)
            except InputError as error:
                facts.notes.append(str(error))
                continue
            _check_maps(facts, [reader] if len(paths) == 1 else [])
            return reader.box_size, [reader]
    sizes = optional_column(facts.source, "rlnImageSize")
    if sizes is not None and len(np.unique(sizes)) > 1:
        facts.notes.append("The optics groups have different box sizes")
    return (None if sizes is None else int(sizes[0])), []


def _check_maps(facts: _Facts, readers: list[StackReader]) -> None:
    """Refuse density maps; a stack among others may have as many images as they have px by chance."""
    if readers and all(reader.is_map for reader in readers):
        facts.tell([describe_map(readers[0])])


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


def _pixel_sizes(facts: _Facts, readers: list[StackReader]) -> Float[np.ndarray, " n"] | None:
    source = facts.source
    sampling = settle_sampling(source, readers, facts.pixel_size)
    facts.tell(sampling.findings)
    sizes = sampling.pixel_sizes
    if sizes is None:
        return None
    if sizes.min() <= 0:
        raise InputError("has a pixel size that is not positive", file=source.path)
    if not _are_one(sizes):
        facts.refuse(
            f"its particles have different pixel sizes ({_list_lengths(_distinct(sizes))})",
            "reconstruct them apart, or rescale the images to one pixel size",
        )
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
    facts.tell(check_defocus(defocus_u, defocus_v))
    angle = _checked(facts, "rlnDefocusAngle", check_defocus_angle)
    phase_shift = _checked(facts, "rlnPhaseShift", check_phase_shift)
    b_factor = _checked(facts, "rlnCtfBfactor", check_b_factor)
    voltage, aberration, amplitude_contrast = _microscope(facts)
    microscope = Microscope()
    return CtfParameters(
        defocus_u_angstrom=defocus_u,
        defocus_v_angstrom=defocus_v,
        defocus_angle=_or_constant(_radians(angle), 0.0, count),
        phase_shift=_or_constant(_radians(phase_shift), 0.0, count),
        b_factor=_or_constant(None if b_factor is None else np.abs(b_factor), 0.0, count),
        voltage_kv=_or_constant(voltage, microscope.voltage_kv, count),
        spherical_aberration_mm=_or_constant(aberration, microscope.spherical_aberration_mm, count),
        amplitude_contrast=_or_constant(amplitude_contrast, microscope.amplitude_contrast, count),
    )


def _microscope(facts: _Facts) -> tuple[Float[np.ndarray, " n"] | None, ...]:
    """Voltage, spherical aberration and amplitude contrast, None where absent."""
    microscope = Microscope()
    checks = (check_voltage, check_aberration, check_amplitude_contrast)
    assumed = (
        f"Voltage: assumed {microscope.voltage_kv:g} kV",
        f"Spherical aberration: assumed {microscope.spherical_aberration_mm:g} mm",
        f"Amplitude contrast: assumed {microscope.amplitude_contrast:g}",
    )
    columns = []
    for name, check, note in zip(MICROSCOPE_COLUMNS, checks, assumed, strict=True):
        columns.append(_checked(facts, name, check))
        if columns[-1] is None:
            facts.notes.append(note)
    return tuple(columns)


def _checked(
    facts: _Facts, name: str, check: Callable[[np.ndarray], list[Finding]]
) -> Float[np.ndarray, " n"] | None:
    """A column if it is there, after telling what is wrong with it."""
    values = optional_column(facts.source, name)
    if values is not None:
        facts.tell(check(values))
    return values


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
