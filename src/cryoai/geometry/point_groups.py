"""The rotations of a point group, on top of SciPy; names and axes are RELION's."""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from cryoai.errors import InputError

_LARGEST_FOLD = 99
# Radians: what turns less is the identity, and axes so close are one.
_NO_TURN = 0.17


def point_group_name(text: str) -> str:
    """A symmetry's name in capitals, ``"c4"`` as ``"C4"``.

    Raises
    ------
    InputError
        There is no such point group among RELION's of rotations.
    """
    name = text.strip().upper()
    cyclic = re.fullmatch(r"[CD]([1-9]\d*)", name)
    if (cyclic and int(cyclic[1]) <= _LARGEST_FOLD) or name in ("T", "O", "I", "I1", "I2"):
        return name
    raise InputError(
        f"{text!r} is no point group that is known",
        advice=f"use Cn or Dn (n = 1 to {_LARGEST_FOLD}), T, O, I (which is I2), I1 or I2",
    )


def point_group(name: str) -> Float[np.ndarray, "n 3 3"]:
    """Rotations G that leave a volume of this symmetry as it is, ``V(G x) = V(x)``; the identity first.

    The axes are those of RELION's conventions page: Cn has its axis on z; Dn also a 2-fold on x; T a 3-fold on
    z (and a 2-fold in the yz plane between y and z, where Heymann et al. 2005 have 2-folds on x, y and z); O
    4-folds on x, y and z; I1 and I2 2-folds on x, y and z, with the 5-folds nearest to z in the yz plane (I1)
    or in the xz plane (I2, which RELION takes I for). SciPy's own T and I are Heymann's, its O and Cn RELION's.

    Parameters
    ----------
    name
        As `point_group_name` has it.

    Raises
    ------
    InputError
        There is no such point group.
    """
    name = point_group_name(name)
    group = Rotation.create_group(name[0] if name[0] in "TOI" else name).as_matrix()
    turn = np.eye(3)
    if name == "T":
        # Rows are the new axes: the diagonal becomes z, and the 2-fold z lies in the yz plane then.
        z = np.full(3, 3**-0.5)
        y = np.array([-1.0, -1.0, 2.0]) / 6**0.5
        turn = np.stack((np.cross(y, z), y, z))
    elif name in ("I", "I2"):
        turn = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    group = turn @ group @ turn.T
    angle = Rotation.from_matrix(group).magnitude()
    return group[np.argsort(angle.round(6), kind="stable")]


def identify_group(rotations: Float[np.ndarray, "n 3 3"]) -> str | None:
    """The name of a group by its rotations about whichever axes; None where they are none that has one.

    Parameters
    ----------
    rotations
        Each once, the identity among them; accurate to a few degrees.
    """
    count, vectors = len(rotations), Rotation.from_matrix(rotations).as_rotvec()
    angle = np.linalg.norm(vectors, axis=1)
    others = vectors[angle > _NO_TURN]
    if len(others) != count - 1 or count > max(2 * _LARGEST_FOLD, 60):
        return None
    if count == 1:
        return "C1"
    halves = int((angle > np.pi - _NO_TURN).sum())
    axis = others / np.linalg.norm(others, axis=1, keepdims=True)
    if (np.abs(axis @ axis[0]) > np.cos(_NO_TURN)).all():
        step = np.sort(np.concatenate((angle[angle > _NO_TURN], 2 * np.pi - angle[angle > _NO_TURN])))[0]
        return f"C{count}" if abs(step * count - 2 * np.pi) < step / 2 else None
    for name, (order, of_halves) in {"T": (12, 3), "O": (24, 9), "I": (60, 15)}.items():
        if (count, halves) == (order, of_halves):
            return name
    fold = count // 2
    return f"D{fold}" if count % 2 == 0 and halves == fold + (fold % 2 == 0) else None
