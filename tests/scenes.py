"""Particles of a small molecule with the truth about them, for tests of a refinement's parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from star_blocks import read_blocks

from cryoai import Map, ParticleSet, Pose, read_map, read_particles
from cryoai.geometry.fourier import full_radius
from cryoai.particles.dataset import ParticleData
from cryoai.particles.junk import JunkShares
from cryoai.particles.phantom import make_phantom
from cryoai.particles.simulate import SimulationSettings
from cryoai.particles.write_simulation import write_simulation
from cryoai.physics.image_formation import form_images_quickly
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.refinement.map_particles import References
from cryoai.refinement.state import RefinementState, start_refinement

PARTICLES, BOX, PIXEL_SIZE = 240, 24, 10.0


@dataclass(frozen=True, eq=False)
class Scene:
    """Particles at 0 dB with CTFs and shifts of 1 px.

    The true map is on the scale of the images, so that it explains them with no factor between.
    """

    particles: ParticleSet
    data: ParticleData
    true_map: Map
    true_pose: Pose
    volume: FourierVolume
    noise_power: torch.Tensor
    is_junk: np.ndarray

    @property
    def radius(self) -> float:
        return full_radius(BOX)

    @property
    def state(self) -> RefinementState:
        """The true poses and noise, in two random halves."""
        start = start_refinement(self.data, self.noise_power, seed=0)
        rotation, translation = self.true_pose.rotation, self.true_pose.translation
        return replace(
            start,
            rotation=torch.from_numpy(rotation.astype(np.float32)),
            translation=torch.from_numpy(translation.astype(np.float32)),
        )

    def references(self, state: RefinementState) -> References:
        """The true map for both halves."""
        return References(state.half, (self.volume, self.volume))


def make_scene(folder: Path, junk: float = 0.0) -> Scene:
    """Simulate the particles, a share of them junk, into a folder and read them."""
    settings = SimulationSettings(PARTICLES, snr_db=0.0, shift_sigma=10.0, seed=11, junk=JunkShares.in_halves(junk))
    written = write_simulation(make_phantom(BOX, PIXEL_SIZE), settings, folder)
    particles = read_particles(folder / "particles.star")
    assert particles.pose is not None
    data = ParticleData(particles, PIXEL_SIZE, BOX, memory_limit=2**28, scratch=folder)
    true_map = read_map(folder / "true_map.mrc")
    # Images of unit variance: half of it signal, the other half white noise.
    noise = torch.full((data.disk.shell_count,), written.noise_variance)
    density = torch.from_numpy(true_map.density.copy())
    volume = volume_from_map(density)
    is_junk = np.zeros(PARTICLES, bool)
    if junk:
        is_junk = read_blocks(folder / "particles.star")["particles"]["cryoaiJunk"].to_numpy() == 1
    # The simulation scales the images; the map follows by least squares.
    shown = np.flatnonzero(~is_junk)
    batch = data.batch(shown)
    rotation, translation = (
        torch.from_numpy(t[shown].astype(np.float32)) for t in (particles.pose.rotation, particles.pose.translation)
    )
    model = form_images_quickly(volume, rotation, translation, batch.ctf, batch.disk, batch.pixel_size)
    scale = float((batch.images * model.conj()).real.sum() / (model.abs() ** 2).sum())
    volume = FourierVolume(volume.values * scale, volume.box_size, volume.padding)
    return Scene(particles, data, true_map, particles.pose, volume, noise, is_junk)
