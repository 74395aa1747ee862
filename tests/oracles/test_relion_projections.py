"""RELION as the judge of our signs: its own projections, and its programs where they are installed."""

import shutil
import subprocess

import mrcfile
import numpy as np
import pytest
import torch
from star_blocks import read_blocks

from cryoai.geometry.fourier import images_to_disk, make_fourier_disk, resample
from cryoai.geometry.rotations import euler_zyz_to_rotation
from cryoai.io import StackReader, read_map, read_particles
from cryoai.metrics.fsc import compute_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.image_formation import form_images
from cryoai.physics.slicing import volume_from_map


def correlation(a, b):
    """Of each pair of images, from their coefficients."""
    a, b = torch.view_as_real(a).flatten(1), torch.view_as_real(b).flatten(1)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def read_stack(path):
    with mrcfile.open(path, permissive=True) as file:
        return torch.from_numpy(np.array(file.data, dtype=np.float32))


def read_golden_70s(folder, name):
    """Images, rotations and translations (px). The STAR files lack an optics group, so io refuses them."""
    blocks = read_blocks(folder / f"{name}.star")
    table = blocks["particles"] if isinstance(blocks, dict) else blocks
    angles = table[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()
    unit = "" if "rlnOriginX" in table else "Angst"
    origin = table[[f"rlnOriginX{unit}", f"rlnOriginY{unit}"]].to_numpy()
    rotation = euler_zyz_to_rotation(torch.from_numpy(angles)).float()
    return read_stack(folder / f"{name}.mrcs"), rotation, -torch.tensor(origin, dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "volume_offset", "image_offset"),
    [
        ("rln_proj_64_shifted", 0.0, 0.0),
        # These two were made with centres of their own, found by fitting: a map that was downsampled from 65
        # to 64 px half a voxel off, and RELION's centre of odd images, one pixel further than box // 2.
        ("rln_proj_64", -0.5, 0.0),
        ("rln_proj_65", 0.0, 1.0),
    ],
)
def test_our_projections_are_relions(shared_data, name, volume_offset, image_offset):
    folder = shared_data / "golden/relion_project_70S"
    images, rotation, translation = read_golden_70s(folder, name)
    disk = make_fourier_disk(images.shape[-1])
    observed = images_to_disk(images, disk)
    density = read_map(folder / "clean70SRibosome_vol_65p.mrc", voxel_size=1.0).density.copy()
    volume = volume_from_map(resample(torch.from_numpy(density), disk.box_size, 3))
    centre = torch.full((3,), volume_offset)

    def score(rotation, translation):
        offset = (rotation.mT @ centre)[:, :2] + image_offset
        return correlation(form_images(volume, rotation, translation + offset, None, disk, 1.0), observed)

    found = score(rotation, translation)
    print(name, found.tolist())
    assert found.min() > 0.9999
    assert score(rotation.mT, translation).max() < 0.9
    if translation.any():
        assert score(rotation, -translation).max() < 0.5


def test_our_ctf_images_are_relions(shared_data):
    folder = shared_data / "golden/relion_project_ctf_24x64"
    particles = read_particles(folder / "relion_proj_batch.star", check_stacks=False)
    pixel_size = particles.pixel_size
    assert pixel_size is not None and particles.ctf is not None
    # RELION's projector leaves out what lies beyond the circle of 31 shells.
    disk = make_fourier_disk(64, 31.0)
    observed = images_to_disk(read_stack(folder / "relion_proj_batch.mrcs"), disk)
    # The stack shows the point mass and not volume.mrc, and was made with --pad 1: a point 17 px from the
    # centre tells the paddings apart (0.9900 with 2).
    density = read_map(folder / "pointmass.mrc", voxel_size=pixel_size).density.copy()
    volume = volume_from_map(torch.from_numpy(density), padding=1)
    rotation = torch.from_numpy(particles.pose.rotation).float()
    translation = torch.from_numpy(particles.pose.translation).float()
    ctf = compute_ctf(particles.ctf, disk, pixel_size)

    def score(rotation, translation, ctf):
        return correlation(form_images(volume, rotation, translation, ctf, disk, pixel_size), observed)

    found = score(rotation, translation, ctf)
    print("CTF", found.tolist())
    assert found.min() > 0.9999
    assert score(rotation.mT, translation, ctf).mean() < 0.2
    assert score(rotation, -translation, ctf).mean() < 0.2
    assert score(rotation, translation, None).mean() < 0.7
    assert score(rotation, translation, -ctf).max() < -0.9999
    particles.ctf.defocus_angle[:] *= -1
    turned = score(rotation, translation, compute_ctf(particles.ctf, disk, pixel_size))
    assert turned.max() < 0.999  # the astigmatism is only 2 to 3 %


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated")
    true_map = make_phantom(32, 6.0)
    write_simulation(true_map, SimulationSettings(500, snr_db=0.0, shift_sigma=10.0), folder)
    return folder, true_map


def run_relion(folder, program, *arguments):
    if shutil.which(program) is None:
        pytest.skip(f"RELION's {program} is not installed")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_relion_reconstructs_our_simulation(simulated):
    folder, true_map = simulated
    run_relion(folder, "relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf")
    found = read_map(folder / "map.mrc")
    assert found.voxel_size == pytest.approx(6.0)
    truth = torch.from_numpy(true_map.density)
    curve = compute_fsc(torch.from_numpy(found.density.copy()), truth)
    print("FSC of RELION's map with the truth", curve.correlation.round(3).tolist())
    assert curve.correlation[:10].min() > 0.9
    mirrored = compute_fsc(torch.from_numpy(found.density[::-1].copy()), truth)
    assert mirrored.correlation[3:10].max() < 0.7


@pytest.mark.parametrize("flags", [(), ("--ctf",)])
def test_relion_projects_as_we_do(simulated, flags):
    folder, true_map = simulated
    root = f"projected{len(flags)}"
    run_relion(folder, "relion_project", "--i", "true_map.mrc", "--o", root, "--ang", "particles.star", *flags)
    disk = make_fourier_disk(32)
    observed = images_to_disk(torch.from_numpy(StackReader(folder / f"{root}.mrcs").read(np.arange(500))), disk)
    particles = read_particles(folder / "particles.star")
    assert particles.ctf is not None
    ours = form_images(
        volume_from_map(torch.from_numpy(true_map.density)),
        torch.from_numpy(particles.pose.rotation).float(),
        torch.from_numpy(particles.pose.translation).float(),
        compute_ctf(particles.ctf, disk, 6.0) if flags else None,
        disk,
        6.0,
    )
    found = correlation(ours, observed)
    print("relion_project", flags, "worst", found.min().item(), "median", found.median().item())
    assert found.min() > 0.99
