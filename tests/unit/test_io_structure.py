from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from cryoai.errors import InputError
from cryoai.io import density_from_structure, read_structure
from cryoai.io.structure import split_chains

LINE = "ATOM  {i:5d} {atom:<4s} {res} A{n:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00{b:6.2f}          {element:>2s}\n"


def make_pdb(path, atoms, b=80.0):
    lines = [
        LINE.format(i=i, atom=e, res=res, n=i, x=x, y=y, z=z, b=b, element=e)
        for i, (e, res, (x, y, z)) in enumerate(atoms, 1)
    ]
    path.write_text("".join(lines) + "END\n")
    return path


@pytest.mark.parametrize("box", [24, 25])
def test_a_single_atom_is_a_gaussian_at_the_centre(tmp_path, box):
    path = make_pdb(tmp_path / "a.pdb", [("C", "ALA", (5, 6, 7))], b=200.0)
    density = density_from_structure(path, box, 1.0).density
    assert np.unravel_index(density.argmax(), density.shape) == (box // 2,) * 3
    profile = density[box // 2, box // 2]
    # Blurring by B adds B / 8π² to the variance; carbon's own is small beside it.
    variance = (density * (np.arange(box) - box // 2) ** 2).sum() / density.sum()
    assert 200 / (8 * np.pi**2) < variance < 200 / (8 * np.pi**2) + 1
    side = min(box // 2, 8)
    np.testing.assert_allclose(
        profile[box // 2 : box // 2 + side],
        profile[box // 2 : box // 2 - side : -1],
        atol=2e-4 * profile.max(),
    )
    # Carbon's electron form factor at zero frequency is 2.51 Å.
    assert density.sum() == pytest.approx(2.51, rel=0.01)


def test_axes_and_units(tmp_path):
    atoms = [("C", "ALA", p) for p in [(0, 0, 0), (0, 0, 0), (0, 0, 0), (4, 8, 12)]]
    density = density_from_structure(make_pdb(tmp_path / "a.pdb", atoms), 32, 2.0).density
    # The centre of mass is (1, 2, 3) Å; so the atoms lie at (-1, -2, -3) and (3, 6, 9) Å.
    lone = density.copy()
    lone[:18] = 0
    place = [(lone * (np.indices(lone.shape)[a] - 16)).sum() / lone.sum() * 2.0 for a in range(3)]
    np.testing.assert_allclose(place, [9, 6, 3], atol=0.4)
    assert density.sum() * 8 == pytest.approx(4 * 2.51, rel=0.01)


def test_total_mass_does_not_depend_on_the_grid(tmp_path):
    atoms = [("C", "ALA", (0, 0, 0)), ("N", "ALA", (3, 0, 1)), ("O", "ALA", (0, 5, 1))]
    path = make_pdb(tmp_path / "a.pdb", atoms)
    totals = [
        density_from_structure(path, box, voxel, b_factor_offset=b).density.sum() * voxel**3
        for box, voxel, b in [(24, 2.0, 0), (25, 2.0, 0), (16, 3.0, 50), (64, 0.75, 0), (200, 0.5, 100)][:4]
    ]
    np.testing.assert_allclose(totals, totals[0], rtol=3e-3)


def test_deblurring_agrees_between_grids(tmp_path):
    """The same band of frequencies, whether sampled coarsely (much blur) or finely (little)."""
    import torch

    from cryoai.geometry.fourier import resample

    atoms = [("C", "ALA", (0, 0, 0)), ("P", "ALA", (3, 1, 1)), ("O", "ALA", (0, 5, 1))]
    path = make_pdb(tmp_path / "a.pdb", atoms)
    coarse = density_from_structure(path, 16, 3.0).density
    fine = density_from_structure(path, 48, 1.0).density
    again = resample(torch.from_numpy(fine), 16, 3).numpy()
    np.testing.assert_allclose(coarse, again, atol=2e-3 * coarse.max())


def test_gzip_waters_hydrogens_and_missing_b_factors(tmp_path):
    atoms = [("C", "ALA", (0, 0, 0)), ("H", "ALA", (1, 0, 0)), ("O", "HOH", (9, 9, 9))]
    path = make_pdb(tmp_path / "a.pdb", atoms, b=0.0)
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(path.read_bytes()))
    structure = read_structure(tmp_path / "a.pdb.gz")
    assert structure[0].count_atom_sites() == 1
    only = make_pdb(tmp_path / "b.pdb", atoms[:1], b=50.0)
    np.testing.assert_allclose(
        density_from_structure(tmp_path / "a.pdb.gz", 16, 1.0).density,
        density_from_structure(only, 16, 1.0).density,
        atol=1e-5,
    )


def test_too_large_for_the_box_says_which_box_is_enough(tmp_path):
    path = make_pdb(tmp_path / "a.pdb", [("C", "ALA", (0, 0, 0)), ("C", "ALA", (100, 0, 0))])
    with pytest.raises(InputError, match="box of at least 54 px"):
        density_from_structure(path, 40, 2.0)
    density_from_structure(path, 54, 2.0)


def test_structures_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_structure(tmp_path / "a.pdb")
    with pytest.raises(InputError, match="no atoms"):
        read_structure(make_pdb(tmp_path / "w.pdb", [("O", "HOH", (0, 0, 0))]))
    (tmp_path / "a.cif").write_text("not a cif file")
    with pytest.raises(InputError, match=r"a\.cif"):
        read_structure(tmp_path / "a.cif")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(InputError):
        read_structure(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("text", "path", "chains"),
    [
        ("a/model.cif", "a/model.cif", None),
        ("a/model.cif.gz:AA", "a/model.cif.gz", ("AA",)),
        ("model.pdb:A, B,C", "model.pdb", ("A", "B", "C")),
        ("C:\\\\data\\\\model.pdb", "C:\\\\data\\\\model.pdb", None),
    ],
)
def test_chains_follow_a_colon(text, path, chains):
    assert split_chains(text) == (Path(path), chains)


def test_a_file_may_have_such_a_name(tmp_path):
    path = make_pdb(tmp_path / "a.pdb:B", [("C", "ALA", (0, 0, 0))])
    assert split_chains(path) == (path, None)


def test_some_chains_of_a_structure(tmp_path):
    atoms = [("C", "ALA", (0, 0, 0)), ("C", "ALA", (8, 0, 0)), ("C", "ALA", (0, 6, 0))]
    path = make_pdb(tmp_path / "a.pdb", atoms)
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(line[:21] + chain + line[22:] for line, chain in zip(lines, "ABC", strict=False)) + "\nEND\n"
    )
    assert [chain.name for chain in read_structure(path, ["C", "A"])[0]] == ["A", "C"]
    whole, two = (density_from_structure(path, 24, 1.0, chains=chains).density for chains in (None, ("A", "C")))
    assert two.sum() == pytest.approx(whole.sum() * 2 / 3, rel=0.01)
    # Their own centre of mass is in the middle.
    centre = [(two * (np.indices(two.shape)[axis] - 12)).sum() / two.sum() for axis in range(3)]
    np.testing.assert_allclose(centre, 0, atol=0.1)
    with pytest.raises(InputError, match=r"there is no chain 'D'; choose from A, B, C"):
        read_structure(path, ["A", "D"])
