"""cryoSPARC files that are not what they should be."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
from behaviour import check_particles, write_again
from hypothesis import given
from hypothesis import strategies as st
from mutations import BYTES, WORDS, spoiled

FIELDS: list[tuple] = [
    ("uid", "<u8"),
    ("blob/path", "S12"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
    ("ctf/exp_group_id", "<u4"),
    ("ctf/accel_kv", "<f4"),
    ("ctf/cs_mm", "<f4"),
    ("ctf/amp_contrast", "<f4"),
    ("ctf/df1_A", "<f4"),
    ("ctf/df2_A", "<f4"),
    ("ctf/df_angle_rad", "<f4"),
    ("ctf/phase_shift_rad", "<f4"),
    ("alignments3D/split", "<u4"),
    ("alignments3D/shift", "<f4", (2,)),
    ("alignments3D/pose", "<f4", (3,)),
    ("alignments3D/psize_A", "<f4"),
    ("alignments3D/class", "<u4"),
]
TYPES = [
    "<f4", ">f4", "<f8", "<f2", "<i8", "<u8", "<i1", ">u4", "?", "c8", "S1", "S9", "U5", "M8[s]", "m8[D]", "V4",
    "g", "O",
]  # fmt: skip
NAMES = ["alignments2D/class", "alignments_class_0/pose", "x", "é", "blob/path2"]
SHAPES: list[tuple[int, ...]] = [(), (), (0,), (1,), (2,), (3,), (2, 2), (3, 3)]
NUMBERS = [0, 1, 2, 4, -1, 0.5, 1e-30, 1e30, 2**31, 2**63, float("nan"), float("inf"), -float("inf")]


def with_shape(name: str, kind: str, shape: tuple[int, ...]) -> tuple:
    return (name, kind, shape) if shape else (name, kind)


def make_rows(fields: list[tuple], shape: tuple[int, ...] = (4,)) -> np.ndarray:
    rows = np.zeros(shape, dtype=fields)
    values = {
        "uid": 10**12, "blob/path": b">stack.mrcs", "blob/shape": 16, "blob/psize_A": 2, "blob/sign": -1,
        "ctf/cs_mm": 2.7, "ctf/accel_kv": 300, "ctf/amp_contrast": 0.1, "ctf/df1_A": 12000, "ctf/df2_A": 11000,
        "alignments3D/psize_A": 2,
    }  # fmt: skip
    with np.errstate(all="ignore"):
        for name in rows.dtype.names or ():
            try:
                rows[name] = values.get(name, 0)
            except (ValueError, TypeError, OverflowError):
                continue
    return rows


def saved(rows: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, rows, **options)
    return buffer.getvalue()


@st.composite
def other_tables(draw: st.DrawFn) -> bytes:
    """Tables with other columns, types, shapes and values."""
    fields = list(FIELDS)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(fields) - 1))
        name = fields[place][0]
        match draw(st.sampled_from(["type", "shape", "drop", "name"])):
            case "type":
                fields[place] = with_shape(name, draw(st.sampled_from(TYPES)), draw(st.sampled_from(SHAPES)))
            case "shape":
                fields[place] = with_shape(name, fields[place][1], draw(st.sampled_from(SHAPES)))
            case "drop" if len(fields) > 1:
                del fields[place]
            case "name":
                name = draw(
                    st.sampled_from(["alignments2D/class", "alignments_class_0/pose", "x", "é", "blob/path2"])
                )
                if name not in [field[0] for field in fields]:
                    fields[place] = (name, *fields[place][1:])
    rows = make_rows(fields, draw(st.sampled_from([(4,), (4,), (4,), (1,), (0,), (2, 2), ()])))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.sampled_from(rows.dtype.names or ("",)))
        value = draw(st.sampled_from([*NUMBERS, *WORDS]))
        try:
            with np.errstate(all="ignore"):
                rows[name].reshape(-1)[:1] = value
        except (ValueError, TypeError, OverflowError):
            continue
    return saved(rows)


DESCR = repr(np.dtype(FIELDS).descr)
NESTED = ["(" * 4000, "-" * 4000 + "1", "[" * 150 + "]" * 150, "{" * 90, "'\\ud800'", "1e400", "9" * 5000]
DESCRS = [
    DESCR, DESCR, DESCR, "'O'", "'|V0'", "[]", "[('a',)]", "[('', '<f4')]", "'<f4'", "None",
    "[('a', '<f4'), ('a', '<f4')]", "[('blob/path', '|S0'), ('blob/idx', '|V0')]", *NESTED,
]  # fmt: skip
LENGTHS = [
    "(4,)", "(4,)", "(10**12,)", "(1000000000000,)", "(9223372036854775807,)", "(-1,)", "(True,)", "4",
    "(2, 99999999999)", "(1.5,)", "()", "(4, 0)", f"({'9' * 30},)", *NESTED,
]  # fmt: skip


@st.composite
def other_headers(draw: st.DrawFn) -> bytes:
    """A header of NumPy's that is read as Python, and promises what is not there."""
    descr, shape = draw(st.sampled_from(DESCRS)), draw(st.sampled_from(LENGTHS))
    order = draw(st.sampled_from(["False", "True", "0", "None"]))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"
    header = text.encode("utf-8", "surrogatepass")
    version = draw(st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0", b"\0\0"]))
    size = 2 if version == b"\1\0" else 4
    length = draw(st.sampled_from([len(header), len(header), len(header) - 1, 0, 2 ** (8 * size) - 1]))
    body = make_rows(FIELDS).tobytes()
    begin = b"\x93NUMPY" + version + length.to_bytes(size, "little") + header
    return begin + draw(st.sampled_from([body, b"", body[:40]]))


def archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, rows=make_rows(FIELDS))
    return buffer.getvalue()


VALID = [saved(make_rows(FIELDS))]
OTHERS = [
    saved(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    pickle.dumps(make_rows(FIELDS)),
    archive(),
    b"",
    b"\x93NUMPY",
    saved(np.arange(5.0)),
]


@given(content=spoiled(VALID, BYTES) | other_tables() | other_headers() | spoiled(OTHERS, BYTES))
def test_spoiled_cs_files(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.cs"
    path.write_bytes(content)
    check_particles(path)


@given(content=spoiled(VALID, BYTES) | other_tables() | other_headers())
def test_spoiled_passthrough_files(folder: Path, content: bytes) -> None:
    """Nobody asked for the file beside, so that it must never be in the way either."""
    inside = folder / "job"
    inside.mkdir(exist_ok=True)
    path = inside / "J1_particles.cs"
    path.write_bytes(saved(make_rows(FIELDS[:4])))
    (inside / "J1_passthrough_particles.cs").write_bytes(content)
    write_again(path, check_stacks=False)
