"""Real particles of TRPV1 against its published map at their published poses."""

import shutil

import pytest
import torch

from cryoai.geometry.fourier import images_to_disk, make_fourier_disk
from cryoai.io import StackReader, read_map, read_particles
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.image_formation import form_images
from cryoai.physics.slicing import volume_from_map


@pytest.fixture
def trpv1(shared_data, tmp_path):
    """The particles, their Fourier coefficients, and the map. The STAR file names a stack of another name."""
    folder = shared_data / "particles/trpv1_10x48"
    text = (folder / "trpv1_small_stack.star").read_text()
    (tmp_path / "particles.star").write_text(text.replace("./batch_0_restacked.mrc", "trpv1_small_stack.mrcs"))
    shutil.copy(folder / "trpv1_small_stack.mrcs", tmp_path)
    particles = read_particles(tmp_path / "particles.star")
    images = torch.from_numpy(StackReader(particles.stack_paths[0]).read(particles.image_index))
    # Beyond 14.6 Å there is more noise than signal in a single image.
    disk = make_fourier_disk(48, 16)
    density = read_map(shared_data / "maps/trpv1_4.88A_48.mrc").density.copy()
    return particles, images_to_disk(images, disk), volume_from_map(torch.from_numpy(density)), disk


def test_real_particles_agree_with_their_map_only_in_our_conventions(trpv1):
    particles, observed, volume, disk = trpv1
    rotation = torch.from_numpy(particles.pose.rotation).float()
    translation = torch.from_numpy(particles.pose.translation).float()
    ctf = compute_ctf(particles.ctf, disk, particles.pixel_size)

    def score(rotation, translation, ctf=ctf):
        model = form_images(volume, rotation, translation, ctf, disk, particles.pixel_size)
        a, b = torch.view_as_real(model).flatten(1), torch.view_as_real(observed).flatten(1)
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    wrong = {
        "transposed rotation": score(rotation.mT, translation),
        "negated translation": score(rotation, -translation),
        "no translation": score(rotation, torch.zeros_like(translation)),
        "mirrored volume": score(mirror @ rotation @ mirror, translation),
        "other particles' rotations": score(rotation.roll(1, 0), translation),
        "other particles' poses": score(rotation.roll(1, 0), translation.roll(1, 0)),
        "negated CTF": score(rotation, translation, -ctf),
    }
    found = score(rotation, translation)
    print("published poses", found.mean().item(), found.tolist())
    assert found.min() > 0.2
    for name, values in wrong.items():
        print(name, values.mean().item())
        assert values.mean() < found.mean() - 0.05, name
        assert (values < found).all(), name
