"""cryoSPARC's particle files as the tests make them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cryoai.io import StackWriter

COUNT = 3
BLOB = [("uid", "u8"), ("blob/path", "S60"), ("blob/idx", "u4"), ("blob/shape", "u4", 2)]
BLOB += [("blob/psize_A", "f4"), ("blob/sign", "f4")]
CTF = [(f"ctf/{n}", "f4") for n in ("df1_A", "df2_A", "df_angle_rad", "phase_shift_rad", "cs_mm", "accel_kv")]
CTF += [("ctf/amp_contrast", "f4"), ("ctf/bfactor", "f4"), ("ctf/exp_group_id", "u4")]
POSE = [("alignments3D/pose", "f4", 3), ("alignments3D/shift", "f4", 2)]
POSE += [("alignments3D/psize_A", "f4"), ("alignments3D/split", "u4")]


def make_cs(path, fields, *, stack: ArrayLike = b"J12/extract/a.mrcs", order=None, **values):
    rows = np.zeros(COUNT, dtype=np.dtype(fields))
    defaults = {
        "uid": [2**63 + 5, 2, 3], "blob/path": stack, "blob/idx": [2, 0, 1], "blob/shape": 8,
        "blob/psize_A": 1.5, "blob/sign": -1, "ctf/df1_A": 12000, "ctf/df2_A": 11000,
        "ctf/df_angle_rad": 0.5, "ctf/phase_shift_rad": 0.25, "ctf/cs_mm": 2.7, "ctf/accel_kv": 300,
        "ctf/amp_contrast": 0.1, "alignments3D/pose": [[0.1, -0.2, 0.3], [0, 0, 0], [0, 3, 0]],
        "alignments3D/shift": [[1, -2], [0, 0], [3, 4]], "alignments3D/psize_A": 3.0,
        "alignments3D/split": [0, 1, 1],
    } | values  # fmt: skip
    for name in rows.dtype.names:
        rows[name] = defaults.get(name, 0)
    rows = rows if order is None else rows[order]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, rows)
    return path


def make_stack(path):
    with StackWriter(path, COUNT, 8, 1.5) as writer:
        writer.write(np.zeros((COUNT, 8, 8), np.float32))
    return path
