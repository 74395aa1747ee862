import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from star_blocks import read_blocks

from cryoai.cli.simulate import simulate
from cryoai.errors import InputError
from cryoai.geometry.fourier import images_to_disk, make_fourier_disk
from cryoai.io import StackReader, read_map, read_particles, write_map
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.fit_map import fit_map_to_box
from cryoai.particles.junk import JunkShares
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import CHUNK, SimulationSettings, Simulator, draw_ctf
from cryoai.particles.write_simulation import write_simulation
from cryoai.physics.ctf import compute_ctf
from cryoai.types import Map, Pose


@pytest.fixture(params=[16, 17])
def true_map(request):
    return make_phantom(request.param, 10.0)


def read_images(folder):
    reader = StackReader(folder / "particles.mrcs")
    return reader.read(np.arange(len(reader)))


@pytest.mark.parametrize("box", [16, 17, 64, 65])
@pytest.mark.parametrize("voxel_size", [0.5, 5.0])
def test_phantom_is_a_compact_positive_molecule(box, voxel_size):
    phantom = make_phantom(box, voxel_size)
    density = phantom.density
    assert density.shape == (box,) * 3
    assert density.dtype == np.float32
    assert phantom.voxel_size == voxel_size
    assert density.max() == 1
    assert density.min() > -0.15  # the band limit rings
    edge = np.concatenate([np.abs(np.take(density, [0, -1], axis=axis)).ravel() for axis in range(3)])
    assert edge.max() < 0.1
    axis = np.arange(box) - box // 2
    for dim in range(3):
        others = tuple(d for d in range(3) if d != dim)
        assert abs((density.sum(others) * axis).sum() / density.sum()) < 0.5
    np.testing.assert_array_equal(density, make_phantom(box, voxel_size).density)


def test_phantom_looks_the_same_in_any_box():
    small, large = make_phantom(32, 8.0), make_phantom(64, 4.0)
    fitted = fit_map_to_box(large, 32, 8.0)
    assert compute_fsc(torch.from_numpy(fitted.density), torch.from_numpy(small.density)).correlation.min() > 0.98


def test_phantom_has_one_hand_and_no_symmetry():
    density = torch.from_numpy(make_phantom(32, 8.0).density)
    for dims in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)):
        # A flip about the centre box // 2 of an even box is a flip and a roll.
        other = density.flip(dims).roll((1,) * len(dims), dims)
        assert compute_fsc(density, other).correlation[4:].max() < 0.7


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 10.0])
def test_snr_is_the_ratio_of_the_variances_in_db(true_map, tmp_path, snr_db):
    settings = SimulationSettings(600, snr_db=snr_db, seed=3)
    written = write_simulation(true_map, settings, tmp_path / "noisy")
    write_simulation(true_map, replace(settings, snr_db=None), tmp_path / "clean")
    noisy, clean = read_images(tmp_path / "noisy"), read_images(tmp_path / "clean")
    assert clean.var() == pytest.approx(1, rel=1e-3)
    signal = clean * math.sqrt(written.signal_variance)
    noise = noisy - signal
    assert 10 * math.log10(signal.var() / noise.var()) == pytest.approx(snr_db, abs=0.1)
    assert abs(np.mean(signal * noise)) < 0.01
    assert written.signal_variance + written.noise_variance == pytest.approx(1)


def test_particles_do_not_depend_on_how_many_there_are(true_map):
    few, many = (Simulator(true_map, SimulationSettings(n, snr_db=0.0)).chunks() for n in (1001, 1300))
    for a, b in zip(few, many, strict=True):
        n = len(a.images)
        # An FFT rounds differently in batches of other sizes.
        np.testing.assert_allclose(a.images, b.images[:n], atol=1e-5)
        np.testing.assert_array_equal(a.pose.rotation, b.pose.rotation[:n])
        np.testing.assert_array_equal(a.pose.translation, b.pose.translation[:n])


def test_seeds_differ_and_repeat(true_map):
    def first(seed):
        return next(Simulator(true_map, SimulationSettings(5, snr_db=0.0, seed=seed)).chunks()).images

    np.testing.assert_array_equal(first(1), first(1))
    assert np.abs(first(1) - first(2)).max() > 0.1


def simulate_chunk(true_map, n=500, **settings):
    return next(Simulator(true_map, SimulationSettings(n, **settings)).chunks())


def test_contrast_differs_from_particle_to_particle(true_map):
    plain, varied = (simulate_chunk(true_map, contrast_spread=spread, seed=5) for spread in (0.0, 0.4))
    factor = (plain.images * varied.images).sum((1, 2)) / (plain.images**2).sum((1, 2))
    np.testing.assert_allclose(varied.images, plain.images * factor[:, None, None], atol=1e-4)
    # Both sets are scaled to unit variance.
    assert varied.images.var() == pytest.approx(1, rel=1e-3)
    factor /= factor.mean()
    assert factor.std() == pytest.approx(0.4, abs=0.03)
    assert factor.min() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_array_equal(plain.pose.rotation, varied.pose.rotation)
    np.testing.assert_array_equal(plain.ctf.defocus_u_angstrom, varied.ctf.defocus_u_angstrom)


@pytest.mark.parametrize("box", [32, 33])
def test_coloured_noise_has_its_spectrum_and_its_variance(box):
    plain = SimulationSettings(500, use_ctf=False, shift_sigma=0.0, seed=2)
    phantom = make_phantom(box, 8.0)
    simulator = Simulator(phantom, replace(plain, snr_db=-20.0, noise_colour=4.0))
    scale = math.sqrt(simulator.signal_variance + simulator.noise_variance)
    clean = next(Simulator(phantom, plain).chunks()).images * math.sqrt(simulator.signal_variance)
    noise = next(simulator.chunks()).images * scale - clean
    assert noise.var() == pytest.approx(simulator.noise_variance, rel=0.01)
    power = (np.abs(np.fft.fft2(noise, norm="ortho")) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(box, 8.0)] * 2))
    expected = 1 + 4 / (1 + (frequency * 50) ** 2)
    expected *= simulator.noise_variance / expected.mean()
    np.testing.assert_allclose(power / expected, 1, atol=0.3)
    for low, high in ((0, 0.01), (0.01, 0.03), (0.03, 0.05), (0.05, 0.1)):
        ring = (frequency >= low) & (frequency < high)
        assert power[ring].sum() / expected[ring].sum() == pytest.approx(1, abs=0.02 if low else 0.06)


def test_junk_takes_the_place_of_particles_and_of_nothing_else(true_map):
    settings = SimulationSettings(1000, 10.0, seed=6)
    plain, mixed = (
        list(Simulator(true_map, replace(settings, junk=JunkShares.in_halves(share))).chunks())
        for share in (0.0, 0.4)
    )
    is_junk = np.concatenate([chunk.is_junk for chunk in mixed])
    assert is_junk.mean() == pytest.approx(0.4, abs=0.05)
    assert not any(chunk.is_junk.any() for chunk in plain)
    before, after = (np.concatenate([chunk.images for chunk in chunks]) for chunks in (plain, mixed))
    np.testing.assert_array_equal(before[~is_junk], after[~is_junk])
    for before_chunk, after_chunk in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(before_chunk.pose.rotation, after_chunk.pose.rotation)
        np.testing.assert_array_equal(before_chunk.pose.translation, after_chunk.pose.translation)
    # The signal's share of the variance is 10/11: half of the junk has it, the other half has none.
    variance = after[is_junk].var((1, 2))
    empty = variance < 0.3
    assert empty.mean() == pytest.approx(0.5, abs=0.08)
    assert after[is_junk][empty].var() == pytest.approx(1 / 11, rel=0.05)
    assert after[is_junk][~empty].var() == pytest.approx(1, rel=0.05)
    # Blobs are no particles.
    for junk, particle in zip(after[is_junk], before[is_junk], strict=True):
        assert np.corrcoef(junk.ravel(), particle.ravel())[0, 1] < 0.95


def test_junk_does_not_depend_on_how_much_there_is(true_map):
    few, many = (
        list(
            Simulator(
                true_map, SimulationSettings(n, snr_db=0.0, junk=JunkShares.in_halves(0.3), contrast_spread=0.2)
            ).chunks()
        )
        for n in (1001, 1300)
    )
    for a, b in zip(few, many, strict=True):
        n = len(a.images)
        np.testing.assert_allclose(a.images, b.images[:n], atol=1e-5)
        np.testing.assert_array_equal(a.is_junk, b.is_junk[:n])


def test_blobs_are_imaged_by_the_microscope():
    phantom, disk = make_phantom(32, 6.0), make_fourier_disk(32)
    bare, imaged = (
        simulate_chunk(phantom, 100, junk=JunkShares.in_halves(0.9), seed=1, use_ctf=use_ctf)
        for use_ctf in (False, True)
    )
    blobs = bare.is_junk & (bare.images.var((1, 2)) > 0)
    assert 20 < blobs.sum() < 70
    # A bare blob is a bright spot.
    spots = bare.images[blobs]
    assert np.median((spots**3).mean((1, 2)) / spots.var((1, 2)) ** 1.5) > 0.5
    ctf = compute_ctf(imaged.ctf[blobs], disk, 6.0)
    expected, found = (images_to_disk(torch.from_numpy(c.images[blobs]), disk) for c in (bare, imaged))
    expected = expected * ctf
    expected *= found.norm(dim=1, keepdim=True) / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("share", "angle_deg"), [(1.0, 20.0), (0.7, 40.0), (1.0, 180.0)])
def test_preferred_views_fill_a_cap(true_map, share, angle_deg):
    settings = {"use_ctf": False, "seed": 3}
    chunk = simulate_chunk(true_map, preferred_share=share, preferred_angle=math.radians(angle_deg), **settings)
    plain = simulate_chunk(true_map, **settings)
    rotation = chunk.pose.rotation.astype(float)
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3)[None].repeat(500, 0), atol=1e-5)
    np.testing.assert_array_equal(chunk.pose.translation, plain.pose.translation)
    drawn = (rotation != plain.pose.rotation).any((1, 2))
    assert drawn.mean() == pytest.approx(share, abs=0.06)
    height = rotation[drawn, 2, 2]  # z of the viewing direction R [0, 0, 1]
    lowest = math.cos(math.radians(angle_deg))
    assert height.min() > lowest - 1e-6
    # Equal areas: the height is uniform; directions and in-plane angles go all around.
    assert height.mean() == pytest.approx((1 + lowest) / 2, abs=0.05 * (1 - lowest))
    around = np.stack((rotation[drawn, 0, 2], rotation[drawn, 1, 2])) / np.sqrt(1 - height**2)
    in_plane = np.stack((rotation[drawn, 2, 0], rotation[drawn, 2, 1])) / np.sqrt(1 - height**2)
    assert np.abs(around.mean(1)).max() < 0.15
    assert np.abs(in_plane.mean(1)).max() < 0.15


def test_written_files_say_what_was_simulated(true_map, tmp_path):
    done = []
    settings = SimulationSettings(CHUNK + 20, snr_db=0.0, shift_sigma=15.0)
    write_simulation(true_map, settings, tmp_path / "out", on_chunk=done.append)
    assert done == [CHUNK, CHUNK + 20]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "particles.mrcs", "particles.star", "true_map.mrc",
    ]  # fmt: skip
    chunks = list(Simulator(true_map, settings).chunks())
    particles = read_particles(tmp_path / "out/particles.star")
    assert (len(particles), particles.box_size, particles.pixel_size) == (CHUNK + 20, true_map.box_size, 10.0)
    images = StackReader(particles.stack_paths[0]).read(particles.image_index)
    np.testing.assert_array_equal(images, np.concatenate([c.images for c in chunks]))
    np.testing.assert_allclose(
        particles.pose.rotation, np.concatenate([c.pose.rotation for c in chunks]), atol=1e-6
    )
    shifts = np.concatenate([c.pose.translation for c in chunks])
    np.testing.assert_allclose(particles.pose.translation, shifts, atol=1e-5)
    assert shifts.std() == pytest.approx(15.0, rel=0.1)
    for name in ("defocus_u_angstrom", "defocus_v_angstrom", "defocus_angle", "amplitude_contrast"):
        expected = np.concatenate([getattr(c.ctf, name) for c in chunks])
        np.testing.assert_allclose(getattr(particles.ctf, name), expected, rtol=1e-9)
    again = read_map(tmp_path / "out/true_map.mrc")
    np.testing.assert_array_equal(again.density, true_map.density)
    assert again.voxel_size == pytest.approx(10.0)


def test_a_perfect_microscope_has_no_ctf_columns(true_map, tmp_path):
    write_simulation(true_map, SimulationSettings(3, use_ctf=False), tmp_path)
    assert not [c for c in read_blocks(tmp_path / "particles.star")["particles"] if "Defocus" in c or "Ctf" in c]
    assert read_particles(tmp_path / "particles.star").ctf is None


def test_each_microscope_gets_an_optics_group(true_map, tmp_path):
    ctf = replace(draw_ctf(4, np.random.default_rng(0)), voltage_kv=np.array([300.0, 200.0, 300.0, 200.0]))
    write_simulation(true_map, SimulationSettings(6, ctf=ctf), tmp_path)
    blocks = read_blocks(tmp_path / "particles.star")
    assert blocks["optics"]["rlnVoltage"].tolist() == [200, 300]
    assert blocks["particles"]["rlnOpticsGroup"].tolist() == [2, 1, 2, 1, 2, 1]
    particles = read_particles(tmp_path / "particles.star")
    np.testing.assert_array_equal(particles.ctf.voltage_kv, [300, 200, 300, 200, 300, 200])
    np.testing.assert_allclose(particles.ctf.defocus_u_angstrom, ctf.defocus_u_angstrom[[0, 1, 2, 3, 0, 1]])


def test_given_poses_are_used_in_turn(true_map):
    pose = Pose(np.stack([np.eye(3), np.diag([-1.0, -1.0, 1.0])]), np.array([[0.0, 0.0], [20.0, 0.0]]))
    chunk = next(Simulator(true_map, SimulationSettings(3, pose=pose, use_ctf=False)).chunks())
    np.testing.assert_array_equal(chunk.pose.translation, pose.translation[[0, 1, 0]])
    np.testing.assert_array_equal(chunk.images[0], chunk.images[2])
    # With the identity, an image is the sum along z.
    projection = true_map.density.sum(0)
    assert np.corrcoef(projection.ravel(), chunk.images[0].ravel())[0, 1] > 0.99


def test_an_existing_simulation_is_kept(true_map, tmp_path):
    write_simulation(true_map, SimulationSettings(2), tmp_path)
    with pytest.raises(InputError, match="exists already"):
        write_simulation(true_map, SimulationSettings(3), tmp_path)
    write_simulation(true_map, SimulationSettings(3), tmp_path, overwrite=True)
    assert len(read_particles(tmp_path / "particles.star")) == 3


def test_an_interrupted_simulation_leaves_nothing(true_map, tmp_path):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_simulation(true_map, SimulationSettings(2), tmp_path, on_chunk=stop)
    assert not list(tmp_path.iterdir())


def test_an_empty_map_is_refused(tmp_path):
    with pytest.raises(InputError, match="no density"):
        write_simulation(Map(np.zeros((16, 16, 16), np.float32), 5.0), SimulationSettings(2), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("box", "pixel"), [(24, 8.0), (40, 8.0), (49, 5.3), (20, 12.0)])
def test_a_map_is_fitted_to_another_box(box, pixel):
    original = make_phantom(48, 6.0)
    fitted = fit_map_to_box(original, box, pixel)
    assert fitted.density.shape == (box,) * 3
    assert fitted.voxel_size == pixel
    # The density at the centre and the mass per volume stay.
    expected = fit_map_to_box(make_phantom(96, 3.0), box, pixel).density
    assert np.corrcoef(fitted.density.ravel(), expected.ravel())[0, 1] > 0.95
    if box * pixel > 200:
        mass = fitted.density.sum() * pixel**3
        assert mass == pytest.approx(original.density.sum() * 6.0**3, rel=0.03)


def test_an_unreachable_pixel_size_is_refused():
    with pytest.raises(InputError, match="cannot be resampled"):
        fit_map_to_box(make_phantom(16, 1.0), 16, 90.0)


def run(tmp_path, **changes):
    options = {"phantom": True, "box_size": 16, "pixel_size": 10.0, "n_particles": 5, "quiet": True}
    simulate(**{**options, **changes}, output=tmp_path / "out")
    return tmp_path / "out/particles.star"


def test_command(tmp_path, capsys):
    run(tmp_path, snr_db=-3.0)
    text = capsys.readouterr().out
    assert "Wrote 5 particles of 16 px, 10 Å" in text
    assert "(-3 dB)" in text
    assert "no noise" not in text


def test_command_marks_junk(tmp_path, capsys):
    star = run(
        tmp_path, n_particles=60, snr_db=0.0, junk=0.5, contrast_spread=0.15, noise_colour=3.0, preferred_share=0.5
    )
    particles = read_particles(star)
    marks = particles.source.particles["cryoaiJunk"].astype(int)
    assert set(marks) == {0, 1}
    assert f"{marks.sum()} of them are junk" in capsys.readouterr().out
    settings = SimulationSettings(
        60, 0.0, junk=JunkShares.in_halves(0.5), contrast_spread=0.15, noise_colour=3.0, preferred_share=0.5,
        preferred_angle=math.radians(20),
    )  # fmt: skip
    chunk = next(Simulator(make_phantom(16, 10.0), settings).chunks())
    np.testing.assert_array_equal(marks, chunk.is_junk)
    np.testing.assert_allclose(particles.pose.rotation, chunk.pose.rotation, atol=1e-5)
    images = StackReader(particles.stack_paths[0]).read(particles.image_index)
    np.testing.assert_array_equal(images, chunk.images)


def test_without_junk_there_is_no_mark(tmp_path, capsys):
    assert "cryoaiJunk" not in read_particles(run(tmp_path, snr_db=0.0)).source.particles
    assert "are junk" not in capsys.readouterr().out


def test_command_takes_a_map_and_another_files_ctfs_and_poses(tmp_path, true_map):
    write_map(true_map, tmp_path / "map.mrc")
    source = tmp_path / "source"
    write_simulation(true_map, SimulationSettings(4), source)
    star = run(
        tmp_path, phantom=False, map_=tmp_path / "map.mrc", box_size=20, pixel_size=8.0,
        ctf_from=source / "particles.star", poses_from=source / "particles.star", shift_sigma=0.0,
    )  # fmt: skip
    found, given = read_particles(star), read_particles(source / "particles.star", check_stacks=False)
    assert (found.box_size, found.pixel_size) == (20, 8.0)
    np.testing.assert_allclose(found.ctf.defocus_u_angstrom[:4], given.ctf.defocus_u_angstrom)
    assert not found.pose.translation.any()
    for rotation in found.pose.rotation:
        assert np.abs(given.pose.rotation - rotation).max((1, 2)).min() < 1e-5


def test_command_takes_a_structure(tmp_path, shared_data):
    star = run(
        tmp_path, phantom=False, structure=shared_data / "structures/4ake_A.pdb", box_size=32, pixel_size=4.0
    )
    assert len(read_particles(star)) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phantom": False}, "one molecule"),
        ({"map_": "a.mrc"}, "one molecule"),
        ({"box_size": 8}, "box-size"),
        ({"pixel_size": 0.0}, "pixel-size"),
        ({"n_particles": 0}, "n-particles"),
        ({"snr_db": math.nan}, "snr-db"),
        ({"shift_sigma": -1.0}, "shift-sigma"),
        ({"seed": -1}, "seed"),
        ({"voxel_size": 2.0}, "voxel-size"),
        ({"ctf_from": "a.star", "no_ctf": True}, "contradict"),
        ({"ctf_from": "no_ctf.star"}, "no CTFs"),
        ({"poses_from": "no_poses.star"}, "no poses"),
        ({"contrast_spread": -0.1}, "contrast-spread"),
        ({"contrast_spread": math.nan}, "contrast-spread"),
        ({"noise_colour": -1.0}, "noise-colour"),
        ({"noise_colour": math.inf}, "noise-colour"),
        ({"noise_colour": 1.0}, "noise-colour needs noise"),
        ({"junk": -0.1, "snr_db": 0.0}, "junk -0.1"),
        ({"junk": 1.0, "snr_db": 0.0}, "junk 1"),
        ({"junk": math.nan, "snr_db": 0.0}, "junk nan"),
        ({"junk": 0.1}, "junk needs noise"),
        ({"preferred_share": 1.1}, "preferred-share"),
        ({"preferred_share": -0.1}, "preferred-share"),
        ({"preferred_angle": 0.0}, "preferred-angle"),
        ({"preferred_angle": 181.0}, "preferred-angle"),
        ({"preferred_share": 0.5, "poses_from": "no_poses.star"}, "contradict"),
    ],
)
def test_command_refuses_wrong_options(tmp_path, changes, message):
    changes = {k: tmp_path / v if isinstance(v, str) else v for k, v in changes.items()}
    for name in ("no_ctf", "no_poses"):
        (tmp_path / f"{name}.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n")
    with pytest.raises(InputError, match=message):
        run(tmp_path, **changes)
    assert not (tmp_path / "out").exists()
