"""Every real metadata file at hand is understood; poses and CTFs agree between formats."""

from __future__ import annotations

import numpy as np
import pytest

from cryoai.cli.info import info
from cryoai.errors import InputError
from cryoai.io import StackReader, density_from_structure, read_map, read_particles, write_particles_star

SUFFIXES = (".star", ".cs", ".mrc", ".mrcs")


def test_info_reads_every_file(shared_data, capsys):
    files = [
        f
        for folder in ("metadata", "particles", "golden", "maps")
        for f in sorted((shared_data / folder).rglob("*"))
        if f.suffix in SUFFIXES
    ]
    assert len(files) > 25
    for file in files:
        info(file)
        assert "format" in capsys.readouterr().out, file


def test_star_and_cs_of_the_same_particles_agree(shared_data):
    folder = shared_data / "particles" / "empiar10076_7x320"
    star = read_particles(folder / "empiar_10076_7.star")
    cs = read_particles(folder / "empiar_10076_7.cs")
    assert star.stack_paths == cs.stack_paths
    assert star.box_size == cs.box_size == 320
    assert cs.pixel_size == pytest.approx(star.pixel_size, rel=1e-5)
    assert cs.contrast_sign == -1 and star.contrast_sign is None
    assert star.ctf is not None and cs.ctf is not None
    for name in ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle", "voltage_kv"):
        np.testing.assert_allclose(getattr(cs.ctf, name), getattr(star.ctf, name), rtol=1e-4)


def test_relion_30_and_31_give_the_same_poses(shared_data):
    folder = shared_data / "particles" / "unnamed_17x200"
    old = read_particles(folder / "sample_particles_relion30.star")
    new = read_particles(folder / "sample_particles_relion31.star")
    assert old.pixel_size == pytest.approx(1.338, abs=1e-3)
    assert old.pose is not None and new.pose is not None
    # The two files are two refinements of the same particles' metadata, listed in the same stack.
    assert old.pose.rotation.shape == new.pose.rotation.shape == (17, 3, 3)
    np.testing.assert_allclose(np.linalg.det(old.pose.rotation), 1)


def test_six_optics_groups_of_different_pixel_size_are_shown_but_not_used(shared_data, tmp_path):
    file = shared_data / "metadata" / "relion" / "relion31.6opticsgroups.star"
    particles = read_particles(file, check_stacks=False)
    assert any("different pixel sizes" in note for note in particles.notes)
    with pytest.raises(InputError, match="missing"):
        read_particles(file)


def test_cryosparc_refinement_has_poses(shared_data):
    file = shared_data / "metadata" / "cryosparc" / "cryosparc_P12_J24_001_particles.cs"
    particles = read_particles(file, check_stacks=False)
    assert len(particles) == 2019 and particles.pose is not None and particles.random_subset is not None
    np.testing.assert_allclose(particles.pose.translation[0], -2.95 * np.array([11.334375, -1.828125]))
    assert set(particles.random_subset) == {1, 2}


def test_tomo_particles_are_refused_for_reconstruction(shared_data):
    with pytest.raises(InputError, match="subtomograms"):
        read_particles(shared_data / "metadata" / "relion" / "relion5_tomo_run_data.star")


def test_real_file_keeps_every_column_when_written(shared_data, tmp_path):
    file = shared_data / "particles" / "subtomo_ribosome_220x64" / "sta_testing_bin8.star"
    particles = read_particles(file)
    assert particles.pose is not None
    write_particles_star(tmp_path / "out.star", particles, particles.pose)
    again = read_particles(tmp_path / "out.star")
    assert again.pose is not None and again.ctf is not None and particles.ctf is not None
    np.testing.assert_allclose(again.pose.rotation, particles.pose.rotation, atol=1e-6)
    np.testing.assert_array_equal(again.ctf.defocus_u_angstrom, particles.ctf.defocus_u_angstrom)
    dropped = set(particles.source.particles) - set(again.source.particles)
    assert dropped == {"rlnMagnification", "rlnDetectorPixelSize"}
    assert again.pixel_size == particles.pixel_size and again.stack_paths == particles.stack_paths


def test_stack_without_machine_stamp_is_read(shared_data):
    folder = shared_data / "particles" / "subtomo_ribosome_220x64"
    reader = StackReader(next(folder.glob("*.mrcs")))
    images = reader.read(np.array([219, 0]))
    assert (len(reader), reader.box_size) == (220, 64)
    assert np.isfinite(images).all() and images.std() > 0


def test_real_maps(shared_data):
    density_map = read_map(shared_data / "maps" / "bgal_3.54A_100.mrc")
    assert density_map.box_size == 100 and density_map.voxel_size == pytest.approx(3.54)


@pytest.mark.parametrize("name", ["4ake_A.pdb", "5nrl.cif.gz"])
def test_structures_become_centred_positive_density(shared_data, name):
    box, voxel = (48, 2.5) if "4ake" in name else (72, 6.0)
    density = density_from_structure(shared_data / "structures" / name, box, voxel).density
    # A sharp band limit rings, so some negative density beside the strong positive one is right.
    assert density.max() > 2 * abs(density.min())
    place = np.arange(box) - box // 2
    for axis in range(3):
        profile = density.sum(axis=tuple(a for a in range(3) if a != axis))
        assert abs((profile * place).sum() / profile.sum()) < 0.2
