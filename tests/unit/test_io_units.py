"""Microscope values in another unit: what cannot be meant stops, what is unusual is noted."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pandas as pd
import pytest
import starfile
from star_blocks import read_blocks, write_blocks

from cryoai import InputError
from cryoai.io import StackWriter, read_particles, write_particles_star
from cryoai.particles.simulate import SimulationSettings, draw_ctf
from cryoai.particles.write_simulation import make_optics_table
from cryoai.types import Microscope, Pose

COUNT = 30


@pytest.fixture
def folder(tmp_path):
    with StackWriter(tmp_path / "a.mrcs", COUNT, 8, 2.0) as writer:
        writer.write(np.zeros((COUNT, 8, 8), np.float32))
    return tmp_path


RIGHT = {
    "rlnDefocusU": np.linspace(10_000, 20_000, COUNT),
    "rlnDefocusV": np.linspace(9_800, 19_600, COUNT),
    "rlnDefocusAngle": np.linspace(-90, 90, COUNT),
    "rlnPhaseShift": np.linspace(20, 120, COUNT),
    "rlnCtfBfactor": np.full(COUNT, 50.0),
    "rlnVoltage": np.full(COUNT, 300.0),
    "rlnSphericalAberration": np.full(COUNT, 2.7),
    "rlnAmplitudeContrast": np.full(COUNT, 0.1),
}
OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
CRYOSPARC = {
    "rlnDefocusU": ("ctf/df1_A", 1),
    "rlnDefocusV": ("ctf/df2_A", 1),
    "rlnDefocusAngle": ("ctf/df_angle_rad", np.pi / 180),
    "rlnPhaseShift": ("ctf/phase_shift_rad", np.pi / 180),
    "rlnCtfBfactor": ("ctf/bfactor", 1),
    "rlnVoltage": ("ctf/accel_kv", 1),
    "rlnSphericalAberration": ("ctf/cs_mm", 1),
    "rlnAmplitudeContrast": ("ctf/amp_contrast", 1),
}


def write(folder, kind, **changes):
    values = RIGHT | {name: np.broadcast_to(value, COUNT) for name, value in changes.items()}
    if kind == "cs":
        dtype = [("blob/path", "S32"), ("blob/idx", "<u4"), ("blob/psize_A", "<f4")]
        rows = np.zeros(COUNT, dtype=[*dtype, *((name, "<f8") for name, _ in CRYOSPARC.values())])
        rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = b"a.mrcs", np.arange(COUNT), 2
        for name, (field, factor) in CRYOSPARC.items():
            rows[field] = values[name] * factor
        with (folder / "p.cs").open("wb") as file:
            np.save(file, rows)
        return folder / "p.cs"
    path = folder / "p.star"
    names = {"rlnImageName": [f"{i + 1}@a.mrcs" for i in range(COUNT)]}
    if kind == "relion 3.0":
        starfile.write(pd.DataFrame({**names, **values, "rlnPixelSize": 2.0}), path, float_format="%.12g")
        return path
    optics = {"rlnOpticsGroup": [1], "rlnImagePixelSize": [2.0], **{name: values[name][:1] for name in OPTICS}}
    table = {**names, **{n: v for n, v in values.items() if n not in OPTICS}, "rlnOpticsGroup": 1}
    blocks = {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(table)}
    write_blocks(blocks, path, float_format="%.12g")
    return path


every_kind = pytest.mark.parametrize("kind", ["relion 3.0", "relion 3.1", "cs"])


@every_kind
def test_usual_values_are_not_mentioned(folder, kind):
    assert read_particles(write(folder, kind)).notes == ()


STOPS = [
    ({"rlnVoltage": 300_000}, "rlnVoltage 300000 kV cannot be meant", "write 300 if this is in V"),
    ({"rlnVoltage": 0.3}, "rlnVoltage 0.3 kV cannot be meant", "write 300 if this is in MV"),
    ({"rlnVoltage": 0}, "rlnVoltage is not positive", "kV"),
    ({"rlnVoltage": -300}, "rlnVoltage is not positive", "kV"),
    ({"rlnSphericalAberration": 2700}, "rlnSphericalAberration 2700 mm", "write 2.7 if this is in µm"),
    ({"rlnSphericalAberration": 2.7e6}, "rlnSphericalAberration 2.7e+06 mm", "write 2.7 if this is in nm"),
    ({"rlnSphericalAberration": 2.7e7}, "rlnSphericalAberration 2.7e+07 mm", "write 2.7 if this is in Å"),
    ({"rlnAmplitudeContrast": 10}, "between 0 and 1, and 10 does not", "per cent"),
    ({"rlnAmplitudeContrast": -0.1}, "between 0 and 1, and -0.1 does not", None),
    ({"rlnDefocusU": 1.5, "rlnDefocusV": 1.4}, "largest defocus is 1.5 Å", "multiply by 10000 if this is in µm"),
    ({"rlnDefocusU": -1.5, "rlnDefocusV": -1.4}, "largest defocus is 1.5 Å", "multiply by 10000"),
    ({"rlnDefocusU": 1.5e-6, "rlnDefocusV": 1.4e-6}, "largest defocus is 1.5e-06 Å", "if this is in m"),
    ({"rlnDefocusU": 1.5e7, "rlnDefocusV": 1.4e7}, "the defocus is 1.5e+07 Å", "write it in Å"),
]  # fmt: skip


@every_kind
@pytest.mark.parametrize(("changes", "why", "advice"), STOPS, ids=str)
def test_what_cannot_be_meant_stops(folder, kind, changes, why, advice):
    path = write(folder, kind, **changes)
    with pytest.raises(InputError) as caught:
        read_particles(path)
    assert why in caught.value.why
    assert advice is None or advice in caught.value.advice
    # Those who only look are told the same.
    assert why[1:] in " ".join(read_particles(path, check_stacks=False).notes)


NOTES = [
    ({"rlnVoltage": 1000}, "1000 kV is unusual"),
    ({"rlnVoltage": 30}, "30 kV is unusual"),
    ({"rlnSphericalAberration": 27}, "27 mm is unusual"),
    ({"rlnSphericalAberration": 0.0027}, "is it in m?"),
    ({"rlnDefocusU": 1500, "rlnDefocusV": 1480}, "the median, 1500 Å, is small; is it in nm?"),
    ({"rlnDefocusU": 150_000, "rlnDefocusV": 148_000}, "15 µm, is large"),
    ({"rlnDefocusU": -15_000}, "negative (overfocus)"),
    ({"rlnDefocusV": 1.5}, "below 100 Å; is it in µm?"),
    ({"rlnPhaseShift": np.linspace(0.5, 2.5, COUNT)}, "is it in radians?"),
    ({"rlnPhaseShift": 5156.6}, "more than a turn"),
    ({"rlnDefocusAngle": np.linspace(-1.5, 1.5, COUNT)}, "Defocus angle: all lie between"),
    ({"rlnCtfBfactor": -50}, "taken as damping"),
    ({"rlnCtfBfactor": 5000}, "damps nearly everything"),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["relion 3.1", "cs"])
@pytest.mark.parametrize(("changes", "note"), NOTES, ids=str)
def test_what_is_unusual_is_noted(folder, kind, changes, note):
    notes = read_particles(write(folder, kind, **changes)).notes
    assert len(notes) == 1 and note in notes[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"rlnVoltage": 80},
        {"rlnSphericalAberration": 0},
        {"rlnSphericalAberration": 0.001},
        {"rlnSphericalAberration": 0.01},
        {"rlnSphericalAberration": -0.013},
        {"rlnSphericalAberration": 6.3},
        {"rlnAmplitudeContrast": 0},
        {"rlnPhaseShift": 0},
        {"rlnPhaseShift": np.linspace(0, 180, COUNT)},
        {"rlnDefocusAngle": 0},
        {"rlnDefocusAngle": 1.2},
        {"rlnDefocusU": 5000, "rlnDefocusV": 4900},
        {"rlnDefocusU": 60_000, "rlnDefocusV": 59_000},
    ],
    ids=str,
)
def test_what_microscopes_do_have_is_not_mentioned(folder, changes):
    assert read_particles(write(folder, "cs", **changes)).notes == ()


def test_one_wrong_group_stops(folder):
    path = write(folder, "relion 3.0", rlnVoltage=np.where(np.arange(COUNT) == 7, 300_000.0, 300.0))
    with pytest.raises(InputError, match="300000 kV"):
        read_particles(path)


def test_followed_advice_is_accepted(folder):
    values = {"rlnVoltage": 0.3 * 1e3, "rlnSphericalAberration": 2.7e7 * 1e-7}
    values |= {"rlnAmplitudeContrast": 10 / 100, "rlnDefocusU": 1.5 * 10_000, "rlnDefocusV": 1.4 * 10_000}
    assert read_particles(write(folder, "relion 3.1", **values)).notes == ()


def test_one_microscope_is_assumed_by_reading_writing_and_simulating(folder):
    assumed = Microscope()
    values = {"rlnImageName": ["1@a.mrcs"], "rlnDefocusU": [15_000.0], "rlnPixelSize": [2.0]}
    starfile.write(pd.DataFrame(values), folder / "p.star")
    particles = read_particles(folder / "p.star")
    write_particles_star(folder / "out.star", replace(particles, ctf=None), Pose(np.eye(3)[None], np.zeros((1, 2))))
    written = read_blocks(folder / "out.star")["optics"]
    for ctf in (particles.ctf, draw_ctf(1, np.random.default_rng(0))):
        assert astuple(assumed) == tuple(float(getattr(ctf, name)[0]) for name in vars(assumed))
    assert astuple(assumed) == tuple(written[list(OPTICS)].iloc[0])
    simulated = make_optics_table(SimulationSettings(n_particles=1, use_ctf=False), 8, 2.0)
    assert astuple(assumed) == tuple(simulated[list(OPTICS)].iloc[0])
    assert f"Voltage: assumed {assumed.voltage_kv:g} kV" in particles.notes
