"""Sets of several molecules and of junk."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoai.cli.simulate import simulate
from cryoai.errors import InputError
from cryoai.geometry.fourier import images_to_disk, make_fourier_disk
from cryoai.io import StackReader, read_map, read_particles
from cryoai.particles.junk import JunkShares, Shows, draw_pair_offsets
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings, Simulator, Species
from cryoai.types import Map

BOX, PIXEL_SIZE = 24, 8.0
FIRST, SECOND = make_phantom(BOX, PIXEL_SIZE, 1), make_phantom(BOX, PIXEL_SIZE, 2)
WEAK = Map(0.5 * SECOND.density, PIXEL_SIZE)


def all_of(molecules, settings):
    chunks = list(Simulator(molecules, settings).chunks())
    return [np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("images", "species", "shows")]


@pytest.mark.parametrize("equal_signal", [True, False])
def test_each_particle_is_one_of_the_species(equal_signal):
    settings = SimulationSettings(700, contrast_spread=0.2, seed=3, equal_signal=equal_signal)
    pure = [all_of(one, settings)[0] for one in (FIRST, SECOND)]
    mixture = (Species(FIRST, 3.0, "first"), Species(WEAK, 1.0, "second"))
    images, species, shows = all_of(mixture, settings)
    assert (shows == Shows.PARTICLE).all()
    assert np.mean(species == 1) == pytest.approx(0.25, abs=0.05)
    variances = []
    for number in (0, 1):
        rows = species == number
        expected = pure[number][rows]
        expected *= np.linalg.norm(images[rows]) / np.linalg.norm(expected)
        np.testing.assert_allclose(images[rows], expected, atol=1e-3)
        variances.append(images[rows].var())
    if equal_signal:
        assert variances[1] / variances[0] == pytest.approx(1, abs=0.1)
    else:
        own = [Simulator(one, settings).signal_variance for one in (FIRST, WEAK)]
        assert variances[1] / variances[0] == pytest.approx(own[1] / own[0], rel=0.1)


def test_all_four_kinds_of_junk():
    settings = SimulationSettings(1000, use_ctf=False, shift_sigma=0.0, seed=5)
    plain, _, _ = all_of((Species(FIRST), Species(SECOND)), settings)
    junk = JunkShares(noise=0.1, blobs=0.1, pairs=0.2, edges=0.2)
    images, species, shows = all_of((Species(FIRST), Species(SECOND)), replace(settings, junk=junk))
    for kind, share in zip((Shows.NOISE, Shows.BLOBS, Shows.PAIR, Shows.EDGE), (0.1, 0.1, 0.2, 0.2), strict=True):
        assert np.mean(shows == kind) == pytest.approx(share, abs=0.04)
    np.testing.assert_array_equal(images[shows == Shows.PARTICLE], plain[shows == Shows.PARTICLE])
    assert not images[shows == Shows.NOISE].any()
    # Two particles that hardly overlap have the variance of both.
    assert images[shows == Shows.PAIR].var() / plain.var() == pytest.approx(2, abs=0.4)
    edges = images[shows == Shows.EDGE]
    variance = edges.var((1, 2)) / plain.var()
    assert variance.min() > 1.9 and variance.max() < 21 and np.median(variance) == pytest.approx(40**0.5, rel=0.3)
    # Smooth on both sides: half of the pixels lie next to one of nearly the same value, in units of the spread.
    steps = np.abs(np.diff(edges, axis=2)) / edges.std((1, 2))[:, None, None]
    assert np.median(steps) < 0.1
    assert set(np.unique(species)) == {0, 1}


@pytest.mark.parametrize("box", [24, 25])
def test_a_pair_is_two_particles_side_by_side(box):
    ball = make_phantom(box, PIXEL_SIZE, 1)
    settings = SimulationSettings(60, use_ctf=False, shift_sigma=0.0, junk=JunkShares(pairs=0.99), seed=2)
    images, _, shows = all_of(ball, settings)
    pairs = torch.from_numpy(images[shows == Shows.PAIR])
    # In low shells a particle is a blob: the middle of a pair is emptier than both places beside it.
    disk = make_fourier_disk(box)
    low = images_to_disk(pairs, disk) * torch.exp(-0.5 * (disk.radius / 3) ** 2)
    offset = torch.from_numpy(draw_pair_offsets(500, np.random.default_rng(0)))
    assert (2 * offset.norm(dim=1)).min() >= 0.349 and (2 * offset.norm(dim=1)).max() <= 0.501

    def value_at(place):
        phase = 2 * math.pi * (place[:, :1] * disk.kx + place[:, 1:] * disk.ky)
        return (low * torch.polar(torch.ones_like(phase), phase)).real.sum(1)

    angles = torch.linspace(0, math.pi, 25)[:-1]
    beside = []
    for angle in angles:
        at = 0.21 * torch.stack((angle.cos(), angle.sin())).expand(len(pairs), 2)
        beside.append(torch.minimum(value_at(at), value_at(-at)))
    assert (torch.stack(beside).max(0).values > value_at(torch.zeros(len(pairs), 2))).float().mean() > 0.9


def test_junk_of_a_mixture_does_not_depend_on_how_many_images_there_are():
    settings = SimulationSettings(1100, 0.0, junk=JunkShares(0.1, 0.1, 0.2, 0.2), seed=1)
    few = all_of((Species(FIRST), Species(SECOND)), settings)
    many = all_of((Species(FIRST), Species(SECOND)), replace(settings, n_particles=1300))
    np.testing.assert_allclose(few[0], many[0][:1100], atol=1e-5)
    np.testing.assert_array_equal(few[1], many[1][:1100])
    np.testing.assert_array_equal(few[2], many[2][:1100])


def test_maps_of_different_boxes_are_refused():
    with pytest.raises(InputError, match="differ in box"):
        Simulator((Species(FIRST), Species(make_phantom(16, PIXEL_SIZE))), SimulationSettings(2))


def run(folder, text, **changes):
    path = folder / "mixture.yaml"
    path.write_text(text)
    options = {"box_size": BOX, "pixel_size": PIXEL_SIZE, "n_particles": 400, "snr_db": 0.0, "quiet": True}
    simulate(mixture=path, **{**options, **changes}, output=folder / "out")
    return folder / "out"


TWO = """
species:
  - {phantom: 1, share: 0.5, name: ribosome}
  - {phantom: 2}
junk: {noise: 0.1, pairs: 0.1, edges: 0.1}
"""


def test_command(tmp_path, capsys):
    folder = run(tmp_path, TWO)
    table = read_particles(folder / "particles.star").source.particles
    said = capsys.readouterr().out
    numbers, shows = table["rlnClassNumber"].astype(int), table["cryoaiShows"]
    assert (numbers == 0).equals(table["cryoaiJunk"].astype(int) == 1)
    for name, number, share in (("ribosome", 1, 0.5), ("species2", 2, 0.2), ("noise", 0, 0.1), ("edge", 0, 0.1)):
        assert set(numbers[shows == name]) == {number}
        assert np.mean(shows == name) == pytest.approx(share, abs=0.07)
    assert f"ribosome {(numbers == 1).sum()}, species2 {(numbers == 2).sum()}" in said
    assert f"{(numbers == 0).sum()} of them are junk" in said
    for number, expected in ((1, FIRST), (2, SECOND)):
        np.testing.assert_array_equal(read_map(folder / f"true_map{number}.mrc").density, expected.density)
    assert not (folder / "true_map.mrc").exists()
    reader = StackReader(folder / "particles.mrcs")
    images = reader.read(np.arange(len(reader)))
    # The SNR of 0 dB is that of each species.
    for number in (1, 2):
        assert images[numbers == number].var() == pytest.approx(1, abs=0.05)


def test_another_simulation_leaves_no_old_maps(tmp_path):
    folder = run(tmp_path, TWO)
    run(tmp_path, "species: [{phantom: 3}]", overwrite=True)
    assert sorted(path.name for path in folder.glob("*.mrc")) == ["true_map.mrc"]
    assert "rlnClassNumber" not in read_particles(folder / "particles.star").source.particles


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("species: []", "species"),
        ("junk: {noise: 0.5}", "species"),
        ("species: [{phantom: 1, share: 0.8}, {phantom: 2, share: 0.3}]", "add up to 1.1"),
        ("species: [{phantom: 1, share: 0.8}, {phantom: 2, share: 0.1}]", "add up to 0.9, not 1"),
        ("species: [{phantom: 1, share: 1.0}, {phantom: 2}]", "nothing is left"),
        ("species: [{phantom: 1, share: 0.9}]\njunk: {edges: 0.2}", "add up to 1.1"),
        ("species: [{phantom: 1, share: 1.5}]", "share"),
        ("species: [{share: 1.0}]", "one of structure, map and phantom"),
        ("species: [{phantom: 1, map: a.mrc}]", "one of structure, map and phantom"),
        ("species: [{phantom: 1, voxel_size: 2.0}]", "voxel_size belongs to a map"),
        ("species: [{structure: lacking.pdb}]", "lacking.pdb: there is no such file"),
        ("species: [{map: lacking.mrc}]", "lacking.mrc"),
        ("species: [{phantom: 1, name: a}, {phantom: 2, name: a}]", "two species are named 'a'"),
        ("species: [{phantom: 1, name: a b}]", "name"),
        ("species: [{phantom: 1, weight: 2}]", "weight"),
        ("species: [{phantom: 1}]\njunk: {ice: 0.1}", "ice"),
        ("{}}", "not a YAML file"),
    ],
)
def test_faults_of_the_file_are_named(tmp_path, text, fault):
    with pytest.raises(InputError, match=fault):
        run(tmp_path, text)
    assert not (tmp_path / "out").exists()


def test_faults_of_the_command_are_named(tmp_path):
    with pytest.raises(InputError, match="junk needs noise"):
        run(tmp_path, TWO, snr_db=None)
    with pytest.raises(InputError, match="--junk and --mixture contradict"):
        run(tmp_path, TWO, junk=0.2)
    with pytest.raises(InputError, match="one molecule, or one mixture"):
        run(tmp_path, TWO, phantom=True)
    with pytest.raises(InputError, match="does not exist"):
        simulate(
            mixture=tmp_path / "none.yaml",
            box_size=BOX,
            pixel_size=PIXEL_SIZE,
            n_particles=2,
            output=tmp_path / "out",
        )
