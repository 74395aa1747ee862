from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryoai.errors import InputError
from cryoai.io import StackWriter, read_particles, write_particles_star

COUNT = 3
BLOB = [("uid", "u8"), ("blob/path", "S60"), ("blob/idx", "u4"), ("blob/shape", "u4", 2)]
BLOB += [("blob/psize_A", "f4"), ("blob/sign", "f4")]
CTF = [(f"ctf/{n}", "f4") for n in ("df1_A", "df2_A", "df_angle_rad", "phase_shift_rad", "cs_mm", "accel_kv")]
CTF += [("ctf/amp_contrast", "f4"), ("ctf/bfactor", "f4"), ("ctf/exp_group_id", "u4")]
POSE = [("alignments3D/pose", "f4", 3), ("alignments3D/shift", "f4", 2)]
POSE += [("alignments3D/psize_A", "f4"), ("alignments3D/split", "u4")]


def make_cs(path, fields, *, stack=b"J12/extract/a.mrcs", **values):
    rows = np.zeros(COUNT, dtype=fields)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.save(file, rows)
    return path


def make_stack(path):
    with StackWriter(path, COUNT, 8, 1.5) as writer:
        writer.write(np.zeros((COUNT, 8, 8), np.float32))
    return path


@pytest.fixture
def project(tmp_path):
    make_stack(tmp_path / "J12" / "extract" / "a.mrcs")
    return tmp_path


def test_with_poses(project):
    particles = read_particles(make_cs(project / "J13" / "p.cs", BLOB + CTF + POSE))
    assert particles.stack_paths == (project / "J12" / "extract" / "a.mrcs",)
    np.testing.assert_array_equal(particles.image_index, [2, 0, 1])
    assert particles.pixel_size == pytest.approx(1.5) and particles.box_size == 8
    assert particles.contrast_sign == -1
    assert particles.ctf is not None and particles.pose is not None
    np.testing.assert_allclose(particles.ctf.defocus_angle, 0.5)
    np.testing.assert_allclose(particles.ctf.phase_shift, 0.25)
    np.testing.assert_allclose(particles.ctf.spherical_aberration_mm, 2.7)
    expected = Rotation.from_rotvec([[0.1, -0.2, 0.3], [0, 0, 0], [0, 3, 0]]).as_matrix()
    np.testing.assert_allclose(particles.pose.rotation, expected, atol=1e-6)
    # Shifts are px of alignments3D/psize_A, with the sign of RELION's origin.
    np.testing.assert_allclose(particles.pose.translation, [[-3, 6], [0, 0], [-9, -12]])
    np.testing.assert_array_equal(particles.random_subset, [1, 2, 2])


def test_without_poses_and_without_ctf(project):
    particles = read_particles(make_cs(project / "p.cs", BLOB + CTF))
    assert particles.pose is None and particles.ctf is not None and particles.random_subset is None
    particles = read_particles(make_cs(project / "q.cs", BLOB))
    assert particles.ctf is None


@pytest.mark.parametrize("stack", [b">J12/extract/a.mrcs", b"J12/extract/000123456789012345678_a.mrcs"])
def test_cryosparc_spellings_of_a_path(project, stack):
    particles = read_particles(make_cs(project / "J13" / "p.cs", BLOB, stack=stack))
    assert particles.stack_paths == (project / "J12" / "extract" / "a.mrcs",)


def test_datadir_and_missing(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = make_cs(elsewhere / "p.cs", BLOB)
    with pytest.raises(InputError, match=r"missing.*--datadir"):
        read_particles(path)
    assert len(read_particles(path, datadir=project)) == COUNT
    assert len(read_particles(path, datadir=project / "J12" / "extract")) == COUNT


def test_written_as_star_for_relion(project):
    particles = read_particles(make_cs(project / "p.cs", BLOB + CTF + POSE))
    assert particles.pose is not None
    write_particles_star(project / "out" / "p.star", particles, particles.pose)
    again = read_particles(project / "out" / "p.star")
    assert again.pose is not None and again.ctf is not None
    np.testing.assert_allclose(again.pose.rotation, particles.pose.rotation, atol=1e-6)
    np.testing.assert_allclose(again.pose.translation, particles.pose.translation, atol=1e-6)
    np.testing.assert_array_equal(again.image_index, particles.image_index)
    assert again.source.particles["cryosparcUid"].tolist() == [2**63 + 5, 2, 3]


def test_several_exposure_groups(project):
    particles = read_particles(make_cs(project / "p.cs", BLOB + CTF, **{"ctf/exp_group_id": [4, 9, 4]}))
    assert particles.optics_group_count == 2
    assert particles.source.particles["rlnOpticsGroup"].tolist() == [1, 2, 1]


def test_nan_defocus_and_pose_name_the_row(project):
    path = make_cs(project / "p.cs", BLOB + CTF, **{"ctf/df1_A": [1e4, np.nan, 1e4]})
    with pytest.raises(InputError, match="particle 2: rlnDefocusU"):
        read_particles(path)
    bad = [[0, 0, 0], [0, 0, 0], [np.nan, 0, 0]]
    with pytest.raises(InputError, match="particle 3: rlnAngleRot"):
        read_particles(make_cs(project / "p.cs", BLOB + POSE, **{"alignments3D/pose": bad}))


def test_files_that_are_not_particles(project):
    passthrough = make_cs(project / "p.cs", [("uid", "u8"), ("location/x", "f4")])
    with pytest.raises(InputError, match="passthrough"):
        read_particles(passthrough)
    (project / "text.cs").write_text("hello")
    with pytest.raises(InputError, match="not a readable"):
        read_particles(project / "text.cs")
    with open(project / "pickle.cs", "wb") as file:
        np.save(file, np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="not a readable"):
        read_particles(project / "pickle.cs")
    with open(project / "empty.cs", "wb") as file:
        np.save(file, np.zeros(0, dtype=BLOB))
    with pytest.raises(InputError, match="no particles"):
        read_particles(project / "empty.cs")
    with pytest.raises(InputError, match="no such file"):
        read_particles(project / "missing.cs")
