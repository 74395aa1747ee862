"""Atomic models (PDB, mmCIF) and the density an electron microscope would see of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float

from cryoai.errors import InputError
from cryoai.types import Map

_DEFAULT_B_FACTOR = 50.0
"""Å², for models without their own: about what refinement against a 3 Å cryo-EM map gives, on average."""
_MISSING_B_FACTORS = (0.0, 20.0)
"""What gemmi reports where a file has no B factors (mmCIF without the column gives 20)."""
_MARGIN = 2.0
"""Å around the outermost atom, so that its density is in the box too."""
_LARGEST_DOUBLED_BOX = 192
"""px; above this the fine grid is 1.5 times the box instead of twice, which keeps it below a few GiB."""


def split_chains(text: str | Path) -> tuple[Path, tuple[str, ...] | None]:
    """A structure's path and the chains that are wanted of it: ``model.cif:A,B`` names two, ``model.cif`` all.

    A file that has such a name itself is that file. Chains are those that the authors name (gemmi's).
    """
    path = Path(text)
    named = re.fullmatch(r"(.*\.[A-Za-z0-9]+):([^:/\\]*)", str(text))
    if named is None or path.exists():
        return path, None
    return Path(named[1]), tuple(chain.strip() for chain in named[2].split(","))


def read_structure(path: str | Path, chains: Sequence[str] | None = None) -> gemmi.Structure:
    """Read the first model of a PDB or mmCIF file without its waters and hydrogens.

    Parameters
    ----------
    path
        ``.pdb``, ``.ent`` or ``.cif``; gzipped too.
    chains
        Those that are wanted, by the authors' names; all by default.

    Raises
    ------
    InputError
        Missing, unreadable, without atoms, or without one of the chains.
    """
    path = Path(path)
    try:
        # Opened here first: gemmi's words do not tell a file that may not be read from one with wrong content.
        open(path, "rb").close()
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else "unknown format"
        raise InputError(f"is not a readable PDB or mmCIF file ({reason})", file=path) from error
    structure.setup_entities()
    structure.remove_waters()
    structure.remove_hydrogens()
    structure.remove_empty_chains()
    while len(structure) > 1:
        del structure[-1]
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise InputError("holds no atoms besides waters and hydrogens", file=path)
    if chains is not None:
        _keep_chains(structure[0], chains, path)
    return structure


def _keep_chains(model: gemmi.Model, chains: Sequence[str], path: Path) -> None:
    known = list(dict.fromkeys(chain.name for chain in model))
    for wanted in chains:
        if wanted not in known:
            raise InputError(f"there is no chain {wanted!r}", file=path, advice=f"choose from {', '.join(known)}")
    for index in reversed(range(len(model))):
        if model[index].name not in chains:
            del model[index]


def density_from_structure(
    path: str | Path,
    box_size: int,
    voxel_size: float,
    *,
    b_factor_offset: float = 0.0,
    chains: Sequence[str] | None = None,
) -> Map:
    """The electrostatic potential of an atomic model on a grid, by electron form factors.

    Each atom is a sum of Gaussians blurred by its B factor (50 Å² where the file has none). The sum is
    band-limited to the grid: it is made on a finer grid with an extra blur that keeps aliasing out, and the
    blur is divided out again in Fourier space.

    Parameters
    ----------
    path
        PDB or mmCIF file, gzipped or not.
    box_size
        px.
    voxel_size
        Å.
    b_factor_offset
        Å², added to every atom's B factor; positive blurs.
    chains
        As `read_structure` takes them; their own centre of mass is put into the middle.

    Returns
    -------
    Map
        Positive, axes zyx, the centre of mass at ``box_size // 2``. The voxels times ``voxel_size³`` sum to
        the atoms' form factors at zero frequency, in Å.

    Raises
    ------
    InputError
        As `read_structure`; or the model does not fit into the box.
    """
    structure = read_structure(path, chains)
    model = structure[0]
    _centre(model)
    _check_fits(model, box_size, voxel_size, Path(path))
    lowest = _complete_b_factors(model, b_factor_offset)
    fine_box, wanted_b = _fine_grid(box_size, voxel_size)
    blur = max(0.0, wanted_b - lowest)
    fine = _sample(model, fine_box, box_size * voxel_size, blur)
    return Map(_crop_and_deblur(fine, box_size, voxel_size, blur), float(voxel_size))


def _centre(model: gemmi.Model) -> None:
    centre = model.calculate_center_of_mass()
    model.transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(), gemmi.Vec3(-centre.x, -centre.y, -centre.z)))


def _positions(model: gemmi.Model) -> Float[np.ndarray, "atoms 3"]:
    return np.array([site.atom.pos.tolist() for site in model.all()])


def _check_fits(model: gemmi.Model, box_size: int, voxel_size: float, path: Path) -> None:
    reach = float(np.abs(_positions(model)).max()) + _MARGIN
    needed = 2 * math.ceil(reach / voxel_size) + 2
    if reach > (box_size // 2) * voxel_size and needed > box_size:
        raise InputError(
            f"the structure reaches {reach:.0f} Å from its centre and does not fit into a box of {box_size} "
            f"px of {voxel_size:g} Å",
            file=path,
            advice=f"use a box of at least {needed} px, or larger voxels",
        )


def _complete_b_factors(model: gemmi.Model, offset: float) -> float:
    """Give each atom a B factor, with the offset; returns the smallest."""
    atoms = [site.atom for site in model.all()]
    values = np.array([atom.b_iso for atom in atoms])
    missing = ~(np.isfinite(values) & (values > 0))
    if len(atoms) > 1 and values.min() == values.max() and values[0] in _MISSING_B_FACTORS:
        missing[:] = True
    values = np.where(missing, _DEFAULT_B_FACTOR, values) + offset
    for atom, value in zip(atoms, values.tolist(), strict=True):
        atom.b_iso = value
        atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
    return float(values.min())


def _fine_grid(box_size: int, voxel_size: float) -> tuple[int, float]:
    """Edge of the fine grid, px, and the smallest B factor, Å², whose aliasing it keeps out.

    On a grid finer by a factor f, the frequency 1/(2 voxel) is polluted by (f - 1/2)/voxel, weaker by
    exp(-B (f² - f) / 4 voxel²). These B make that 4e-6 for f = 2 and 6e-4 for f = 1.5; more would cost digits
    when the blur is divided out.
    """
    if box_size <= _LARGEST_DOUBLED_BOX:
        return 2 * box_size, 25 * voxel_size**2
    return math.ceil(1.5 * box_size), 40 * voxel_size**2


def _sample(model: gemmi.Model, fine_box: int, edge: float, blur: float) -> Float[np.ndarray, "fine fine fine"]:
    """Blurred density on the fine grid, zyx, origin at ``fine_box // 2``."""
    calculator = gemmi.DensityCalculatorE()
    calculator.grid.unit_cell = gemmi.UnitCell(edge, edge, edge, 90, 90, 90)
    calculator.grid.spacegroup = gemmi.SpaceGroup("P 1")
    calculator.grid.set_size(fine_box, fine_box, fine_box)
    calculator.blur = blur
    origin = (fine_box // 2) * edge / fine_box
    model.transform_pos_and_adp(gemmi.Transform(gemmi.Mat33(), gemmi.Vec3(origin, origin, origin)))
    calculator.put_model_density_on_grid(model)
    return np.asarray(calculator.grid.array).transpose(2, 1, 0)


def _crop_and_deblur(
    fine: Float[np.ndarray, "fine fine fine"], box_size: int, voxel_size: float, blur: float
) -> Float[np.ndarray, "box box box"]:
    # torch takes seconds to import and nothing else in this package needs it.
    import torch

    from cryoai.geometry.fourier import crop_or_pad, fft3, ifft3

    fine_box = fine.shape[0]
    spectrum = crop_or_pad(fft3(torch.from_numpy(np.ascontiguousarray(fine))), box_size, (0, 1))
    spectrum = spectrum[:, :, : box_size // 2 + 1].clone()
    centred = (torch.arange(box_size, dtype=torch.float32) - box_size // 2) / (box_size * voxel_size)
    half = torch.arange(box_size // 2 + 1, dtype=torch.float32) / (box_size * voxel_size)
    for axis, frequency in enumerate((centred, centred, half)):
        shape = [1, 1, 1]
        shape[axis] = -1
        spectrum *= torch.exp(0.25 * blur * frequency**2).reshape(shape)
    if box_size % 2 == 0:
        # The Nyquist plane of an even box has no partner of the opposite sign, so it could not be real.
        spectrum[0], spectrum[:, 0], spectrum[:, :, -1] = 0, 0, 0
    return (ifft3(spectrum, box_size) * (box_size / fine_box) ** 3).numpy()
