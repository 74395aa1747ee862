"""cryoSPARC particle data sets (``.cs``): NumPy structured arrays.

Conventions, after pyem's ``csparc2star`` (the field's converter, checked by its users against RELION):
``alignments3D/pose`` is an axis-angle vector whose rotation matrix, by the right-hand rule, maps image to
volume coordinates, that is our rotation; ``alignments3D/shift`` has the sign of RELION's origin, in px of
``alignments3D/psize_A``; ``blob/idx`` counts from 0; angles are radians.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cryoai.errors import InputError
from cryoai.io._relion import particles_from_table
from cryoai.types import ParticleSet, SourceTable

_CTF_COLUMNS = {
    "rlnDefocusU": ("ctf/df1_A", 1.0),
    "rlnDefocusV": ("ctf/df2_A", 1.0),
    "rlnDefocusAngle": ("ctf/df_angle_rad", 180 / np.pi),
    "rlnPhaseShift": ("ctf/phase_shift_rad", 180 / np.pi),
    "rlnCtfBfactor": ("ctf/bfactor", 1.0),
}
_OPTICS_COLUMNS = {
    "rlnVoltage": "ctf/accel_kv",
    "rlnSphericalAberration": "ctf/cs_mm",
    "rlnAmplitudeContrast": "ctf/amp_contrast",
    "rlnImagePixelSize": "blob/psize_A",
}


def read_cryosparc(
    path: str | Path,
    *,
    datadir: Path | None = None,
    check_stacks: bool = True,
    pixel_size: float | None = None,
) -> ParticleSet:
    """Read the particles of a cryoSPARC ``.cs`` file, with or without poses.

    Parameters
    ----------
    path
        The ``.cs`` file.
    datadir
        Folder of the image stacks (or the cryoSPARC project), where the file does not lie inside it.
    check_stacks
        Whether to look at every stack and refuse what cannot be reconstructed.
    pixel_size
        Å, in place of what the file and its stacks say.

    Raises
    ------
    InputError
        See `cryoai.io.read_particles`; also a passthrough file, which names no images.
    """
    path = Path(path)
    rows = _load(path)
    table = _to_relion_columns(rows)
    table["rlnOpticsGroup"], optics = _optics(rows)
    sign, notes = _contrast_sign(rows)
    source = SourceTable("cryosparc", path, table, optics)
    return particles_from_table(
        source, datadir=datadir, check_stacks=check_stacks, contrast_sign=sign, notes=notes, pixel_size=pixel_size
    )


def _load(path: Path) -> np.ndarray:
    try:
        rows = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError("is not a readable cryoSPARC .cs file", file=path) from error
    if not isinstance(rows, np.ndarray) or rows.dtype.names is None:
        raise InputError("is not a cryoSPARC .cs file: it has no named columns", file=path)
    if "blob/path" not in rows.dtype.names or "blob/idx" not in rows.dtype.names:
        raise InputError(
            "has no blob/path and blob/idx, so it names no images (a passthrough or micrograph file?)",
            file=path,
            advice="give the particles .cs file of the job, not its passthrough file",
        )
    if not rows.size:
        raise InputError("holds no particles", file=path)
    return rows.reshape(-1)


def _to_relion_columns(rows: np.ndarray) -> pd.DataFrame:
    names = rows.dtype.names or ()
    files = _decode(rows["blob/path"])
    numbers = rows["blob/idx"].astype(np.int64) + 1
    columns: dict[str, object] = {
        "rlnImageName": [f"{number:06d}@{file}" for number, file in zip(numbers, files, strict=True)]
    }
    if "uid" in names:
        # RELION carries unknown columns along; this one joins results to the cryoSPARC project again.
        columns["cryosparcUid"] = rows["uid"]
    for relion, (cryosparc, factor) in _CTF_COLUMNS.items():
        if cryosparc in names:
            columns[relion] = rows[cryosparc].astype(np.float64) * factor
    if "alignments3D/pose" in names:
        columns.update(_pose_columns(rows))
    if "alignments3D/split" in names:
        columns["rlnRandomSubset"] = rows["alignments3D/split"].astype(np.int64) + 1
    if "alignments2D/class" in names or "alignments3D/class" in names:
        kind = "alignments3D/class" if "alignments3D/class" in names else "alignments2D/class"
        columns["rlnClassNumber"] = rows[kind].astype(np.int64) + 1
    return pd.DataFrame(columns)


def _decode(files: np.ndarray) -> list[str]:
    # Most particles share a stack: decoding each distinct name once is much quicker.
    distinct, inverse = np.unique(files, return_inverse=True)
    texts = [f.decode() if isinstance(f, bytes) else str(f) for f in distinct.tolist()]
    return [texts[place].lstrip(">") for place in inverse]


def _pose_columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    import warnings

    from scipy.spatial.transform import Rotation

    vectors = rows["alignments3D/pose"].astype(np.float64)
    if not np.isfinite(vectors).all():
        # Left to the numeric check of the RELION columns, which names the row.
        angles = np.full((len(rows), 3), np.nan)
        angles[np.isfinite(vectors).all(axis=1)] = 0
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Gimbal lock")
            angles = Rotation.from_rotvec(vectors).as_euler("ZYZ", degrees=True)
    names = rows.dtype.names or ()
    shift = np.zeros((len(rows), 2))
    if "alignments3D/shift" in names:
        unit = next((n for n in ("alignments3D/psize_A", "blob/psize_A") if n in names), None)
        scale = rows[unit].astype(np.float64)[:, None] if unit else 1.0
        shift = rows["alignments3D/shift"].astype(np.float64) * scale
    return {
        "rlnAngleRot": angles[:, 0],
        "rlnAngleTilt": angles[:, 1],
        "rlnAnglePsi": angles[:, 2],
        "rlnOriginXAngst": shift[:, 0],
        "rlnOriginYAngst": shift[:, 1],
    }


def _optics(rows: np.ndarray) -> tuple[np.ndarray, pd.DataFrame]:
    """RELION's optics group of each particle, and the table of groups."""
    names = rows.dtype.names or ()
    columns = {relion: rows[cs].astype(np.float64) for relion, cs in _OPTICS_COLUMNS.items() if cs in names}
    # float32 on disk: seven digits are all there are, and 1.3099979 should read as 1.309998.
    per_particle = pd.DataFrame(columns).round(6)
    if "ctf/exp_group_id" in names:
        per_particle["exp_group"] = rows["ctf/exp_group_id"].astype(np.int64)
    if per_particle.empty:
        return np.ones(len(rows), dtype=np.int64), pd.DataFrame({"rlnOpticsGroup": [1]})
    keys = list(per_particle.columns)
    group = per_particle.groupby(keys, sort=True, dropna=False).ngroup().to_numpy().astype(np.int64) + 1
    optics = per_particle.assign(rlnOpticsGroup=group).drop_duplicates("rlnOpticsGroup")
    optics = optics.sort_values("rlnOpticsGroup").drop(columns="exp_group", errors="ignore")
    if "blob/shape" in names:
        first = [int(np.flatnonzero(group == number)[0]) for number in optics["rlnOpticsGroup"]]
        optics["rlnImageSize"] = rows["blob/shape"][first, 0].astype(np.int64)
    return group, optics.reset_index(drop=True)


def _contrast_sign(rows: np.ndarray) -> tuple[int | None, tuple[str, ...]]:
    if "blob/sign" not in (rows.dtype.names or ()):
        return None, ()
    signs = np.unique(np.sign(rows["blob/sign"]))
    if len(signs) != 1 or signs[0] == 0:
        return None, ("Contrast: blob/sign differs between particles, ignored",)
    return int(signs[0]), ()
