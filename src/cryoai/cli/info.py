"""``cryoai info``: what is in a particle file, a stack or a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cryoai.types import CtfParameters, ParticleSet

_FORMATS = {"relion": "RELION STAR", "cryosparc": "cryoSPARC .cs", "stack": "image stack (MRC)"}


def info(particles: Path, *, datadir: Path | None = None) -> None:
    """Show what a particle file holds and what it lacks.

    Parameters
    ----------
    particles
        RELION .star, cryoSPARC .cs, an .mrcs stack, or a map (.mrc).
    datadir
        Folder of the image stacks, where the file's own names do not lead to them.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cryoai.io._mrc_header import is_map_file

    rows = _map_rows(particles) if is_map_file(particles) else _particle_rows(particles, datadir)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows:
        # Paths and names may hold square brackets, which rich would take for markup.
        table.add_row(label, escape(text))
    console = Console()
    console.print(str(particles), style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)


def _map_rows(path: Path) -> list[tuple[str, str]]:
    from cryoai.errors import InputError
    from cryoai.io import read_map

    notes = []
    try:
        density_map = read_map(path)
        voxel_size = f"{density_map.voxel_size:.4g} Å"
    except InputError as error:
        if "no voxel size" not in error.why:
            raise
        density_map = read_map(path, voxel_size=1.0)
        voxel_size = "unknown"
        notes.append(("note", "The header has no voxel size"))
    density, box = density_map.density, density_map.box_size
    extent = "" if voxel_size == "unknown" else f" ({box * density_map.voxel_size:.0f} Å)"
    return [
        ("format", "density map (MRC)"),
        ("box size", f"{box} px{extent}"),
        ("voxel size", voxel_size),
        (
            "density",
            f"{density.min():.4g} to {density.max():.4g}, mean {density.mean(dtype=np.float64):.4g}, "
            f"σ {density.std(dtype=np.float64):.4g}",
        ),
        *notes,
    ]


def _particle_rows(path: Path, datadir: Path | None) -> list[tuple[str, str]]:
    from cryoai.io import read_particles

    data = read_particles(path, datadir=datadir, check_stacks=False)
    box, pixel = data.box_size, data.pixel_size
    return [
        ("format", _FORMATS[data.source.format]),
        ("particles", f"{len(data):,}"),
        ("image stacks", _stacks(data)),
        (
            "box size",
            "unknown" if box is None else f"{box} px" + (f" ({box * pixel:.0f} Å)" if pixel else ""),
        ),
        ("pixel size", _pixel_size(data)),
        *_optics(data),
        *_ctf(data.ctf),
        *_contents(data),
        *(("note", note) for note in data.notes),
    ]


def _pixel_size(data: ParticleSet) -> str:
    if data.pixel_size:
        return f"{data.pixel_size:.4g} Å"
    if len(data.pixel_sizes) < 2:
        return "unknown"
    return f"several: {', '.join(f'{size:g}' for size in data.pixel_sizes)} Å"


def _stacks(data: ParticleSet) -> str:
    missing = [path for path in data.stack_paths if not path.is_file()]
    text = f"{len(data.stack_paths) - len(missing):,} of {len(data.stack_paths):,} found"
    return text + (f"; missing e.g. {missing[0]} (see --datadir)" if missing else "")


def _optics(data: ParticleSet) -> list[tuple[str, str]]:
    """One row per optics group of the file; the microscope of the particles where it has none."""
    optics = data.source.optics
    if optics is None:
        if data.ctf is None:
            return []
        ctf = data.ctf
        return [
            ("voltage", _range(ctf.voltage_kv, "kV")),
            ("spherical aberration", _range(ctf.spherical_aberration_mm, "mm")),
            ("amplitude contrast", _range(ctf.amplitude_contrast, "")),
        ]
    shown = {
        "rlnVoltage": "{} kV",
        "rlnSphericalAberration": "Cs {} mm",
        "rlnAmplitudeContrast": "amplitude contrast {}",
        "rlnImagePixelSize": "{} Å",
        "rlnImageSize": "{} px",
    }
    rows = []
    for place, (_, group) in enumerate(optics.iterrows(), 1):
        parts = [form.format(_plain(group[name])) for name, form in shown.items() if name in optics]
        rows.append((f"optics group {_plain(group.get('rlnOpticsGroup', place))}", ", ".join(parts)))
    return rows


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def _ctf(ctf: CtfParameters | None) -> list[tuple[str, str]]:
    if ctf is None:
        return [("CTF", "absent")]
    defocus = (ctf.defocus_u_angstrom + ctf.defocus_v_angstrom) / 2e4
    astigmatism = np.abs(ctf.defocus_u_angstrom - ctf.defocus_v_angstrom)
    rows = [
        ("defocus", f"{_range(defocus, 'µm')} (median {np.median(defocus):.3g})"),
        ("astigmatism", f"median {np.median(astigmatism):.0f} Å, at most {astigmatism.max():.0f} Å"),
    ]
    if np.any(ctf.phase_shift):
        rows.append(("phase shift", _range(np.rad2deg(ctf.phase_shift), "°")))
    return rows


def _contents(data: ParticleSet) -> list[tuple[str, str]]:
    rows = [("poses", "absent" if data.pose is None else "present")]
    subset = data.random_subset
    halves = "absent" if subset is None else f"{(subset == 1).sum():,} and {(subset == 2).sum():,} particles"
    rows.append(("half-sets", halves))
    if "rlnClassNumber" in data.source.particles:
        rows.append(("classes", f"{data.source.particles['rlnClassNumber'].nunique()}"))
    if data.contrast_sign is not None:
        rows.append(("contrast", "protein bright" if data.contrast_sign > 0 else "protein dark"))
    return rows


def _range(values: np.ndarray, unit: str) -> str:
    low, high = float(values.min()), float(values.max())
    span = f"{low:.4g}" if f"{low:.4g}" == f"{high:.4g}" else f"{low:.4g} to {high:.4g}"
    return f"{span} {unit}".rstrip()
