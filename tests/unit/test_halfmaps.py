"""Half-maps, their filter and their mask, as a run makes them: from inserted particles at known poses."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from cryoai.ab_initio.agreement import AbInitioResult
from cryoai.ab_initio.bootstrap import BootstrapResult
from cryoai.geometry.fourier import crop_or_pad, full_radius, images_to_disk, make_fourier_disk
from cryoai.geometry.rotations import random_rotations, rotation_from_vector
from cryoai.geometry.shells import radial_distance
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.alignment import mirror_volume
from cryoai.metrics.fsc import FscCurve, compute_fsc, phase_randomised_fsc
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings, Simulator
from cryoai.physics.ctf import compute_ctf
from cryoai.physics.insertion import Inserter
from cryoai.physics.slicing import VolumeAccumulator, slice_volume, volume_from_map
from cryoai.reconstruction.result import ReconstructionResult, mirror_result
from cryoai.refinement.confidence import FitSummary
from cryoai.refinement.halfmaps import HalfMaps, make_half_maps
from cryoai.refinement.masks import lowpass, make_solvent_mask
from cryoai.refinement.poses import RefinementState
from cryoai.run.config import ReconstructConfig
from cryoai.tensors import ParticleBatch
from cryoai.types import Map, ParticleSet, SourceTable

VOXEL_SIZE = 8.0


@dataclass(frozen=True, eq=False)
class Scene:
    """What the half-maps are made from, and the map in the units of the images."""

    truth: Tensor
    accumulators: tuple[VolumeAccumulator, VolumeAccumulator]
    radius: float

    def half_maps(self, diameter_px: float | None = None) -> HalfMaps:
        return make_half_maps(self.accumulators, self.radius, VOXEL_SIZE, diameter_px)


def make_particle(kind: str, box: int) -> Tensor:
    if kind == "compact":
        return torch.from_numpy(make_phantom(box, VOXEL_SIZE).density.copy())
    if kind == "large":  # spans 0.95 of the box
        return crop_or_pad(
            torch.from_numpy(make_phantom(int(1.7 * box), VOXEL_SIZE).density), box, (0, 1, 2)
        ).clone()
    distance = radial_distance(box, 3)
    texture = torch.randn(box, box, box, generator=torch.Generator().manual_seed(3))
    texture = torch.nn.functional.avg_pool3d(texture[None], 3, 1, 1)[0]
    return ((distance < 0.36 * box) & (distance > 0.25 * box)) * (1 + 1.5 * texture)


@lru_cache
def make_scene(
    kind: str, box: int, snr_db: float, count: int = 300, first_share: int = 2, jitter_deg: float = 0.0
) -> Scene:
    density = make_particle(kind, box)
    simulator = Simulator(
        Map(density.numpy(), VOXEL_SIZE), SimulationSettings(count, snr_db=snr_db, shift_sigma=8.0, seed=1)
    )
    (chunk,) = simulator.chunks()
    assert chunk.ctf is not None
    disk = make_fourier_disk(box)
    batch = ParticleBatch(
        images_to_disk(torch.from_numpy(chunk.images), disk),
        compute_ctf(chunk.ctf, disk, VOXEL_SIZE),
        disk,
        VOXEL_SIZE,
    )
    variance = simulator.signal_variance + simulator.noise_variance
    noise = torch.full((disk.shell_count,), simulator.noise_variance / variance)
    rotation, translation = torch.from_numpy(chunk.pose.rotation), torch.from_numpy(chunk.pose.translation)
    vectors = torch.randn(count, 3, generator=torch.Generator().manual_seed(2)) * np.deg2rad(jitter_deg)
    rotation = rotation_from_vector(vectors) @ rotation
    in_first = torch.arange(count) % first_share == 0
    inserters = []
    for half in (in_first, ~in_first):
        inserters.append(Inserter(box, full_radius(box)))
        inserters[-1].add(batch[half], rotation[half], translation[half], noise)
    first, second = (inserter.result() for inserter in inserters)
    return Scene(density / variance**0.5, (first, second), full_radius(box))


def covered(scene: Scene, halves: HalfMaps) -> float:
    """Share of the particle's power that the mask keeps."""
    density = scene.truth.clamp(min=0)
    return float(((density * halves.mask) ** 2).sum() / (density**2).sum())


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_solvent_mask_holds_the_particle_and_little_else(noise):
    density = make_particle("compact", 48)
    generator = torch.Generator().manual_seed(0)
    first, second = (noise * density.max() * torch.randn(density.shape, generator=generator) for _ in range(2))
    mask = make_solvent_mask(density + first, second)
    density = density.clamp(min=0)
    assert ((density * mask) ** 2).sum() / (density**2).sum() > 0.98
    assert 0.03 < float(mask.mean()) < 0.12
    assert (mask[radial_distance(48, 3) > 22] == 0).all()


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize("kind", ["compact", "large", "hollow"])
def test_mask_does_not_grow_with_noise_and_holds_the_particle(kind, box):
    clean = make_scene(kind, box, 10.0)
    size = float(clean.half_maps().mask.mean())
    assert covered(clean, clean.half_maps()) > 0.998
    for snr_db in (-15.0, -20.0, -25.0):
        scene = make_scene(kind, box, snr_db)
        halves = scene.half_maps()
        assert 0.7 * size < float(halves.mask.mean()) < 1.3 * size
        assert covered(scene, halves) > 0.98


def test_mask_of_a_shell_holds_its_inside():
    mask = make_scene("hollow", 32, -15.0).half_maps().mask
    assert (mask[radial_distance(32, 3) < 0.36 * 32] > 0.99).all()


@pytest.mark.parametrize("snr_db", [10.0, -20.0])
def test_nothing_outside_the_given_diameter(snr_db):
    scene = make_scene("compact", 32, snr_db)
    halves = scene.half_maps(20.0)
    # The mask is grown by 1 px and has an edge of 4 px.
    assert (halves.mask[radial_distance(32, 3) > 10 + 5] == 0).all()
    assert covered(scene, halves) > 0.98


def test_mask_where_the_halves_differ_in_size_or_poses_are_off():
    right = float(make_scene("compact", 32, -15.0).half_maps().mask.mean())
    for scene in (
        make_scene("compact", 32, -15.0, first_share=6),
        make_scene("compact", 32, -15.0, jitter_deg=5.0),
    ):
        halves = scene.half_maps()
        assert covered(scene, halves) > 0.98
        assert float(halves.mask.mean()) < 1.3 * right


def test_pure_noise_gets_the_sphere():
    box, count = 32, 300
    disk, generator = make_fourier_disk(box), torch.Generator().manual_seed(0)
    noise = torch.ones(disk.shell_count)
    halves = []
    for _ in range(2):
        images = torch.randn(count, box, box, generator=generator)
        batch = ParticleBatch(images_to_disk(images, disk), torch.ones(count, len(disk)), disk, VOXEL_SIZE)
        inserter = Inserter(box, full_radius(box))
        inserter.add(batch, random_rotations(count, generator), torch.zeros(count, 2), noise)
        halves.append(inserter.result())
    found = make_half_maps((halves[0], halves[1]), full_radius(box), VOXEL_SIZE, None)
    torch.testing.assert_close(found.mask, make_soft_sphere(box, (box - 2) / 2 + 2, 4.0))
    assert np.abs(found.fsc.correlation[2:]).max() < 0.2


@pytest.mark.parametrize("box", [32, 33])
@pytest.mark.parametrize(("snr_db", "correlation"), [(0.0, 0.96), (-15.0, 0.88)])
def test_wiener_map_is_the_particle_with_its_amplitude(box, snr_db, correlation):
    scene = make_scene("compact", box, snr_db)
    halves = scene.half_maps()
    truth = scene.truth * halves.mask
    errors = []
    for half in (0, 1, None):
        density = halves.wiener_map(half)
        assert (density[halves.mask == 0] == 0).all()
        assert float(torch.corrcoef(torch.stack((density.flatten(), truth.flatten())))[0, 1]) > correlation
        # A Wiener filter is the multiple of the data that lies closest to the truth.
        error = [float(((factor * density - truth) ** 2).sum() / (truth**2).sum()) for factor in (0.85, 1.0, 1.2)]
        assert error[1] < min(error[0], error[2])
        errors.append(error[1])
    assert errors[2] < 0.87 * min(errors[:2])
    unfiltered = (halves.unfiltered[0] + halves.unfiltered[1]) / 2 * halves.mask
    assert errors[2] <= float(((unfiltered - truth) ** 2).sum() / (truth**2).sum())


def test_half_map_fsc_foretells_the_agreement_with_the_truth():
    scene = make_scene("compact", 48, -20.0, count=500)
    halves = scene.half_maps()
    assert halves.fsc.voxel_size == VOXEL_SIZE
    with_truth = compute_fsc(halves.wiener_map(), scene.truth, make_soft_sphere(48)).crossing(0.5)
    assert halves.fsc.crossing(0.143) == pytest.approx(with_truth, abs=2.0)
    # What the mask makes is not believed: where the half-maps hardly agree, the mask alone would show more.
    masked = compute_fsc(*halves.unfiltered, halves.mask).correlation
    np.testing.assert_allclose(halves.fsc.correlation[:3], masked[:3])
    assert (halves.fsc.correlation - masked).max() < 0.05 and (masked - halves.fsc.correlation).mean() > 0.002


def test_ssnr_from_the_fsc():
    halves = make_scene("compact", 32, -15.0).half_maps()
    correlation = np.array([1.0, 0.9, 0.5, 0.8, 0.2, 0.04, 0.6] + [0.3] * 8)
    ssnr = replace(halves, fsc=FscCurve(np.arange(1, 16), correlation, 32)).ssnr()
    # Shell 0 and a perfect one count as very good, not as infinite; beyond the first without agreement is nothing.
    np.testing.assert_allclose(ssnr[2:6], [9, 1, 4, 0.25], rtol=1e-5)
    assert 1e3 < ssnr[0] < 1e5 and ssnr[1] == ssnr[0]
    assert (ssnr[6:] == 1e-3).all()


def test_reference_is_the_wiener_map_of_its_own_half():
    halves = make_scene("compact", 32, -15.0).half_maps()
    disk, rotation = make_fourier_disk(32, 12.0), random_rotations(4, torch.Generator().manual_seed(0))
    for half in (0, 1):
        expected = volume_from_map(halves.wiener_map(half))
        found = halves.reference(half)
        torch.testing.assert_close(slice_volume(found, rotation, disk), slice_volume(expected, rotation, disk))
    other = halves.accumulators[1].scaled(3.0)
    changed = replace(halves, accumulators=(halves.accumulators[0], other))
    torch.testing.assert_close(changed.reference(0).values, halves.reference(0).values)


@pytest.mark.parametrize("box", [32, 33])
def test_lowpass_halves_a_wave_at_its_radius(box):
    x = torch.arange(box) - box // 2
    wave = torch.cos(2 * torch.pi * 5 * x / box).expand(box, box, box)
    torch.testing.assert_close(lowpass(wave, 5.0), wave / 2, atol=1e-5, rtol=0)
    torch.testing.assert_close(lowpass(wave.mT, 10.0), wave.mT * 0.5 ** (1 / 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(lowpass(torch.ones(box, box, box), 5.0), torch.ones(box, box, box))


@pytest.mark.parametrize("box", [32, 33])
def test_mirrored_halves_give_the_mirrored_maps(box):
    halves = make_scene("compact", box, -5.0).half_maps()
    mirrored = halves.mirrored()
    # The first plane of an even box has no partner inside the box.
    inner = slice(1 if box % 2 == 0 else 0, None)
    for half in (0, 1, None):
        expected = mirror_volume(halves.wiener_map(half))
        found = mirrored.wiener_map(half)
        size = float(expected.abs().max())
        torch.testing.assert_close(found[inner], expected[inner], atol=2e-4 * size, rtol=0)
    torch.testing.assert_close(mirrored.mask, mirror_volume(halves.mask))
    again = mirrored.mirrored()
    torch.testing.assert_close(again.wiener_map(), halves.wiener_map())
    # Nothing else depends on the hand.
    anew = make_half_maps(mirrored.accumulators, halves.radius, VOXEL_SIZE, None)
    for found, expected in zip(anew.unfiltered, mirrored.unfiltered, strict=True):
        torch.testing.assert_close(found[inner], expected[inner], atol=1e-4 * float(expected.max()), rtol=0)
    one, other = (compute_fsc(*maps.unfiltered, maps.mask).correlation for maps in (anew, halves))
    np.testing.assert_allclose(one, other, atol=0.02)


@pytest.mark.parametrize("box", [32, 33])
def test_a_mirrored_result_is_the_other_hand_throughout(box, tmp_path):
    scene, count = make_scene("compact", box, -5.0), 4
    halves = scene.half_maps()
    rotation = random_rotations(count, torch.Generator().manual_seed(0))
    zeros = torch.zeros(count)
    volume = volume_from_map(scene.truth)
    best = BootstrapResult((volume,), (1.0,), torch.ones(5), 1.0, 0, 4.0)
    source = SourceTable("relion", tmp_path / "in.star", pd.DataFrame({"rlnImageName": ["1@a.mrcs"] * count}))
    rows = np.arange(count)
    particles = ParticleSet((tmp_path / "a.mrcs",), 0 * rows, rows, box, VOXEL_SIZE, None, None, source)
    state = RefinementState(
        rotation, torch.ones(count, 2), rows % 2, torch.ones(box // 2), zeros, zeros, zeros,
        torch.ones(count), np.zeros(count, bool), torch.ones(count),
    )  # fmt: skip
    result = ReconstructionResult(
        tmp_path, ReconstructConfig(), particles, state, halves,
        FitSummary(0.0, 1.0, 50.0, -5.0, 1.0, 1.0), halves.wiener_map().numpy(), VOXEL_SIZE,
        phase_randomised_fsc(*halves.unfiltered, halves.mask),
        AbInitioResult(best, 1, (1.0,), (1.0,)), 10.0, (), (), {},
    )  # fmt: skip
    mirrored = mirror_result(result)
    assert mirrored.ab_initio is not None
    density = torch.from_numpy(mirrored.density)
    torch.testing.assert_close(density, mirror_volume(torch.from_numpy(result.density)))
    inner = slice(1 if box % 2 == 0 else 0, None)
    torch.testing.assert_close(
        mirrored.halves.wiener_map()[inner], density[inner], atol=2e-4 * float(density.max()), rtol=0
    )
    # The same projections at the new poses, of the final map and of the bootstrap's.
    disk = make_fourier_disk(box, 10.0)
    for before, after in (
        (volume_from_map(torch.from_numpy(result.density)), volume_from_map(density)),
        (volume, mirrored.ab_initio.best.volume),
    ):
        expected = slice_volume(before, result.state.rotation, disk)
        found = slice_volume(after, mirrored.state.rotation, disk)
        torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)
    assert torch.equal(mirrored.state.translation, result.state.translation)
    torch.testing.assert_close(mirror_result(mirrored).state.rotation, result.state.rotation)
