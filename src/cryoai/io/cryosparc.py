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

from cryoai.io._cs_table import CsTable, read_cs_table
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

    What the file lacks of images, CTF and poses is taken from its job's passthrough file, if that lies beside
    it and knows all of its particles.

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
        See `cryoai.io.read_particles`; also a table that names no images, with the passthrough file beside it
        or without.
    """
    path = Path(path)
    rows = read_cs_table(path)
    table = _to_relion_columns(rows)
    table["rlnOpticsGroup"], optics = _optics(rows)
    sign = _contrast_sign(rows)
    source = SourceTable("cryosparc", path, table, optics)
    return particles_from_table(
        source,
        datadir=datadir,
        check_stacks=check_stacks,
        pixel_size=pixel_size,
        contrast_sign=sign,
        notes=tuple(rows.notes),
    )


def _to_relion_columns(rows: CsTable) -> pd.DataFrame:
    files = [text.lstrip(">") for text in rows.texts("blob/path")]
    numbers = rows.integers("blob/idx", lowest=0) + 1
    columns: dict[str, object] = {
        "rlnImageName": [f"{number:06d}@{file}" for number, file in zip(numbers, files, strict=True)]
    }
    if "uid" in rows and rows.columns["uid"].dtype.kind in "iu" and rows.columns["uid"].ndim == 1:
        # RELION carries unknown columns along; this one joins results to the cryoSPARC project again.
        uids = rows.columns["uid"]
        columns["cryosparcUid"] = uids.astype(uids.dtype.newbyteorder("="))
    for relion, (cryosparc, factor) in _CTF_COLUMNS.items():
        if cryosparc in rows:
            columns[relion] = rows.numbers(cryosparc) * factor
    columns.update(_place_columns(rows))
    if "alignments3D/pose" in rows:
        columns.update(_pose_columns(rows))
    if "alignments3D/split" in rows:
        columns["rlnRandomSubset"] = rows.integers("alignments3D/split") + 1
    for kind in ("alignments3D/class", "alignments2D/class"):
        if kind in rows:
            columns["rlnClassNumber"] = rows.integers(kind) + 1
            break
    return pd.DataFrame(columns)


def _place_columns(rows: CsTable) -> dict[str, object]:
    """Micrograph, centre (px of the micrograph) and filament of each particle, as far as they are known."""
    columns: dict[str, object] = {}
    if "location/micrograph_path" in rows:
        columns["rlnMicrographName"] = [name.lstrip(">") for name in rows.texts("location/micrograph_path")]
    shape, centre = "location/micrograph_shape", ("location/center_x_frac", "location/center_y_frac")
    if shape in rows and all(name in rows for name in centre):
        # The shape is that of the array: rows first.
        height, width = rows.numbers(shape, 2).T
        columns["rlnCoordinateX"] = rows.numbers(centre[0]) * width
        columns["rlnCoordinateY"] = rows.numbers(centre[1]) * height
        if "location/micrograph_psize_A" in rows:
            columns["rlnMicrographPixelSize"] = rows.numbers("location/micrograph_psize_A")
    if "filament/filament_uid" in rows:
        # Identifiers of 64 bits would not survive being read as numbers.
        uids = rows.columns["filament/filament_uid"]
        columns["rlnHelicalTubeID"] = np.unique(uids, return_inverse=True)[1].reshape(len(rows), -1)[:, 0] + 1
    return columns


def _pose_columns(rows: CsTable) -> dict[str, np.ndarray]:
    import warnings

    from scipy.spatial.transform import Rotation

    vectors = rows.numbers("alignments3D/pose", 3)
    if not np.isfinite(vectors).all():
        # Left to the numeric check of the RELION columns, which names the row.
        angles = np.full((len(rows), 3), np.nan)
        angles[np.isfinite(vectors).all(axis=1)] = 0
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Gimbal lock")
            angles = Rotation.from_rotvec(vectors).as_euler("ZYZ", degrees=True)
    columns = {"rlnAngleRot": angles[:, 0], "rlnAngleTilt": angles[:, 1], "rlnAnglePsi": angles[:, 2]}
    if "alignments3D/shift" in rows:
        shift = rows.numbers("alignments3D/shift", 2)
        unit = next((name for name in ("alignments3D/psize_A", "blob/psize_A") if name in rows), None)
        if unit is not None:
            shift = shift * rows.numbers(unit)[:, None]
        # Without a pixel size they stay in px, as RELION 3.0's, for the stack's header to say.
        suffix = "" if unit is None else "Angst"
        columns |= {f"rlnOriginX{suffix}": shift[:, 0], f"rlnOriginY{suffix}": shift[:, 1]}
    return columns


def _optics(rows: CsTable) -> tuple[np.ndarray, pd.DataFrame]:
    """RELION's optics group of each particle, and the table of groups."""
    columns = {relion: rows.numbers(cs) for relion, cs in _OPTICS_COLUMNS.items() if cs in rows}
    # float32 on disk: seven digits are all there are, and 1.3099979 should read as 1.309998.
    per_particle = pd.DataFrame(columns).round(6)
    if "ctf/exp_group_id" in rows:
        per_particle["exp_group"] = rows.integers("ctf/exp_group_id")
    if per_particle.empty:
        return np.ones(len(rows), dtype=np.int64), pd.DataFrame({"rlnOpticsGroup": [1]})
    keys = list(per_particle.columns)
    group = per_particle.groupby(keys, sort=True, dropna=False).ngroup().to_numpy().astype(np.int64) + 1
    optics = per_particle.assign(rlnOpticsGroup=group).drop_duplicates("rlnOpticsGroup")
    optics = optics.sort_values("rlnOpticsGroup").drop(columns="exp_group", errors="ignore")
    if "blob/shape" in rows:
        first = np.unique(group, return_index=True)[1]
        optics["rlnImageSize"] = rows.numbers("blob/shape", 2)[first, 0]
    return group, optics.reset_index(drop=True)


def _contrast_sign(rows: CsTable) -> int | None:
    if "blob/sign" not in rows:
        return None
    signs = np.unique(np.sign(rows.numbers("blob/sign")))
    if len(signs) != 1 or signs[0] not in (-1, 1):
        rows.notes.append("Contrast: blob/sign differs between particles, ignored")
        return None
    return int(signs[0])
