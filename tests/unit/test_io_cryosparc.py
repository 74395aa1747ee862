from __future__ import annotations

import numpy as np
import pytest
from cs_files import BLOB, COUNT, CTF, POSE, make_cs, make_stack
from scipy.spatial.transform import Rotation

from cryoai.errors import InputError
from cryoai.io import read_particles, write_particles_star


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


PASSTHROUGH = "P12_J13_passthrough_particles.cs"
PARTICLES = "cryosparc_P12_J13_005_particles.cs"


@pytest.mark.parametrize(
    ("own", "passed"), [(BLOB, CTF + POSE), (BLOB + POSE, CTF), (BLOB + CTF, POSE), (POSE + CTF, BLOB[1:])]
)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_what_is_lacking_comes_from_the_passthrough_file(project, own, passed, order):
    uid = BLOB[:1]
    whole = read_particles(make_cs(project / "J13" / "whole" / "p.cs", BLOB + CTF + POSE))
    make_cs(project / "J13" / PASSTHROUGH, uid + passed, order=order)
    path = make_cs(project / "J13" / PARTICLES, own if own[0] == uid[0] else uid + own)
    particles = read_particles(path)
    assert particles.ctf is not None
    assert particles.pose is not None
    assert whole.ctf is not None
    assert whole.pose is not None
    np.testing.assert_array_equal(particles.image_index, whole.image_index)
    np.testing.assert_array_equal(particles.ctf.defocus_u_angstrom, whole.ctf.defocus_u_angstrom)
    np.testing.assert_array_equal(particles.pose.rotation, whole.pose.rotation)
    np.testing.assert_array_equal(particles.pose.translation, whole.pose.translation)
    np.testing.assert_array_equal(particles.random_subset, whole.random_subset)
    assert any(f"from {PASSTHROUGH} beside it, joined by uid" in note for note in particles.notes)


def test_the_files_own_columns_count_before_the_passthrough_files(project):
    make_cs(project / "J13" / PASSTHROUGH, BLOB + CTF + POSE, **{"ctf/df1_A": 99999, "blob/idx": 0})
    particles = read_particles(make_cs(project / "J13" / PARTICLES, BLOB + CTF))
    assert particles.ctf is not None
    assert set(particles.ctf.defocus_u_angstrom) == {12000}
    np.testing.assert_array_equal(particles.image_index, [2, 0, 1])


def test_passthrough_files_of_other_particles_or_jobs_are_left_alone(project):
    make_cs(project / "J13" / PASSTHROUGH, BLOB[:1] + CTF, uid=[2**63 + 5, 2, 99])
    make_cs(project / "J13" / "P12_J14_passthrough_particles.cs", BLOB[:1] + CTF)
    (project / "J13" / "J13_passthrough_broken.cs").write_text("hello")
    particles = read_particles(make_cs(project / "J13" / PARTICLES, BLOB))
    assert particles.ctf is None
    assert any(f"{PASSTHROUGH} beside it has them, but not for all" in note for note in particles.notes)
    make_cs(project / "J13" / PASSTHROUGH, BLOB[:1] + CTF, uid=[2, 2, 3])
    assert read_particles(project / "J13" / PARTICLES).ctf is None


def test_a_passthrough_file_names_the_file_to_give(project):
    passthrough = make_cs(project / "J13" / PASSTHROUGH, [*BLOB[:1], ("location/x", "f4"), *CTF])
    with pytest.raises(InputError, match=r"passthrough file.*; give the particles .cs file of the job"):
        read_particles(passthrough)
    make_cs(project / "J13" / "cryosparc_P12_J13_004_particles.cs", BLOB)
    path = make_cs(project / "J13" / PARTICLES, BLOB + POSE)
    with pytest.raises(InputError, match=rf"passthrough file.*; give {PARTICLES}, which lies beside it"):
        read_particles(passthrough)
    particles = read_particles(path)
    assert particles.ctf is not None
    assert particles.pose is not None
    passthrough = make_cs(project / "J13" / PASSTHROUGH, BLOB + CTF)
    assert any(f"Poses: absent here, but {PARTICLES}" in note for note in read_particles(passthrough).notes)


@pytest.mark.parametrize("beside", [False, True])
def test_poses_of_classes_are_named(project, beside):
    fields = [(f"{group}_{n}/pose", "f4", 3) for group in ("alignments_class",) for n in range(3)]
    if beside:
        make_cs(project / "J13" / PASSTHROUGH, BLOB[:1] + fields)
    path = make_cs(project / "J13" / PARTICLES, BLOB if beside else BLOB + fields)
    particles = read_particles(path)
    assert particles.pose is None
    where = f" in {PASSTHROUGH}" if beside else ""
    assert any(f"(alignments_class_0 to alignments_class_2{where}) are not read" in n for n in particles.notes)


@pytest.mark.parametrize("field", ["blob/idx", "alignments3D/split", "alignments3D/class", "ctf/exp_group_id"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1.5, 1e20, -1e20])
def test_numbers_that_are_not_whole_name_the_row(project, field, bad):
    fields = [f for f in BLOB + CTF + POSE if f[0] != field] + [(field, "f8")]
    path = make_cs(project / "p.cs", fields, **{field: [0, bad, 1]})
    with pytest.raises(InputError, match=rf"p\.cs, particle 2: {field} is not a whole number"):
        read_particles(path)


@pytest.mark.parametrize(("kind", "bad"), [("u8", 2**64 - 1), ("i8", -1), ("i8", -(2**63))])
def test_image_numbers_out_of_range(project, kind, bad):
    path = make_cs(project / "p.cs", [*BLOB[:2], ("blob/idx", kind)], **{"blob/idx": [0, bad, 1]})
    with pytest.raises(InputError, match="particle 2: blob/idx is not a whole number from 0"):
        read_particles(path)


@pytest.mark.parametrize(
    ("field", "kind"),
    [("blob/idx", "S4"), ("blob/path", "f4"), ("ctf/df1_A", "S4"), ("alignments3D/pose", "f4"),
     ("blob/shape", "u4"), ("alignments3D/shift", "3f4"), ("blob/psize_A", "2f4"), ("ctf/accel_kv", "c8"),
     ("blob/sign", "S1")],
)  # fmt: skip
def test_columns_of_another_type(project, field, kind):
    fields = [f for f in BLOB + CTF + POSE if f[0] != field] + [
        (field, *(kind if isinstance(kind, tuple) else [kind]))
    ]
    with pytest.raises(InputError, match=f"{field} does not hold"):
        read_particles(make_cs(project / "p.cs", fields, **{field: 0}))


def test_paths_that_are_not_text(project):
    with pytest.raises(InputError, match="blob/path is not text in UTF-8"):
        read_particles(make_cs(project / "p.cs", BLOB, stack=b"\xff\xfe.mrcs"))
    with pytest.raises(InputError, match="particle 1: rlnImageName"):
        read_particles(make_cs(project / "p.cs", BLOB, stack=b""))


def test_shifts_without_a_pixel_size_are_in_px_of_the_stack(project):
    fields = [f for f in BLOB + POSE if "psize" not in f[0]]
    particles = read_particles(make_cs(project / "p.cs", fields))
    assert particles.pose is not None
    np.testing.assert_allclose(particles.pose.translation, [[-1.5, 3], [0, 0], [-4.5, -6]])


@pytest.mark.parametrize(
    ("fields", "what"),
    [([("micrograph_blob/path", "S9"), ("mscope_params/accel_kv", "f4")], "micrographs"),
     ([("movie_blob/path", "S9")], "micrographs"), ([("map/path", "S9")], "maps"),
     ([("location/micrograph_path", "S9"), ("pick_stats/power", "f4")], "picked positions")],
)  # fmt: skip
def test_other_tables_are_named(project, fields, what):
    with pytest.raises(InputError, match=f"names no images: it is a table of {what}"):
        read_particles(make_cs(project / "p.cs", [BLOB[0], *fields]))


def test_a_damaged_header_takes_no_memory(project):
    path = make_cs(project / "p.cs", BLOB)
    path.write_bytes(
        path.read_bytes().replace(b"(3,)", b"(9" + b"9" * 10 + b",)").replace(b" " * 11 + b"\n", b"\n")
    )
    with pytest.raises(InputError, match="not a readable"):
        read_particles(path)
    path.write_bytes(path.read_bytes()[:70])
    with pytest.raises(InputError, match="not a readable"):
        read_particles(path)
