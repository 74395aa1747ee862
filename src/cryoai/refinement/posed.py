"""Maps of particles that keep their poses, and how well such maps explain others: no pose is looked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cryoai.metrics.alignment import MapAlignment
from cryoai.particles.dataset import ParticleData
from cryoai.physics.insertion import Inserter
from cryoai.physics.slicing import FourierVolume, volume_from_map
from cryoai.physics.symmetrize import symmetrize
from cryoai.poses.local import fit_poses, score_poses
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.map_particles import Portion, References, map_particles
from cryoai.refinement.mates import apply_mate
from cryoai.refinement.state import RefinementState


@dataclass(frozen=True, eq=False)
class PosedParticles:
    """Particles at their poses or, under some symmetry, at all mates of these.

    Attributes
    ----------
    data, state
        The particles and their poses.
    radius
        Shells that are used.
    elements
        Of the symmetry, without the identity; shifts in px. The pose itself comes before its mates.
    """

    data: ParticleData
    state: RefinementState
    radius: float
    elements: tuple[MapAlignment, ...] = ()

    def volume_of(
        self, rows: Int[np.ndarray, " m"], weight: Float[Tensor, "m mates"], halves: HalfMaps, share: float
    ) -> FourierVolume:
        """The map that particles make, each at its mates by their weights.

        Parameters
        ----------
        rows
            The particles, ascending.
        weight
            Of each at each mate; its certainty and presence are taken into account besides.
        halves
            Whose mask, signal to noise and symmetry the map has.
        share
            Of one half-map's signal to noise.
        """
        inserter = Inserter(self.data.disk.box_size, self.radius, device=self.data.device)
        place = np.searchsorted(rows, np.arange(len(self.data)))
        counts_for = self.state.certainty * self.state.presence

        def insert(portion: Portion) -> None:
            at = portion.rows
            rotation, translation = self._poses(at)
            own = weight[torch.from_numpy(place[at])] * counts_for[at][:, None]
            image_of = torch.arange(len(at)).repeat(len(self.elements) + 1)
            inserter.add(
                portion.own_batch, rotation, translation, self.state.noise_power, image_of, own.T.flatten()
            )

        map_particles(self.data, self._of(rows), insert, rows, self.radius)
        total = symmetrize(inserter.result(), halves.accumulators[0].symmetry)
        density = replace(halves, radius=self.radius).filtered_map(total, share)
        return volume_from_map(density, self.radius).to(self.data.device)

    def log_likelihoods(self, rows: Int[np.ndarray, " m"], volume: FourierVolume) -> Float[Tensor, "m mates"]:
        """Of each particle at each of its mates, up to a constant of its own."""
        found = torch.zeros(len(self.data), len(self.elements) + 1, dtype=torch.float64)

        def score(portion: Portion) -> None:
            at = portion.rows
            rotation, translation = self._poses(at)
            image_of = torch.arange(len(at)).repeat(len(self.elements) + 1)
            cost = score_poses(
                portion.own_batch, portion.volume, self.state.noise_power, rotation, translation, image_of
            )
            found[at] = -cost.view(-1, len(at)).T.double()

        map_particles(self.data, self._of(rows, volume), score, rows, self.radius)
        return found[rows]

    def gains(self, rows: Int[np.ndarray, " m"], references: References | FourierVolume) -> Float[Tensor, " m"]:
        """Log-likelihood gain of each particle at its pose and at the contrast that fits it best, nats.

        With ``⟨x, m⟩`` the product of image and projection over the noise it is ``⟨x, m⟩² / ⟨m, m⟩``: a map that
        is only stronger or weaker than another gains as much.

        Parameters
        ----------
        rows
            The particles, ascending.
        references
            The map that all are compared with, or which map is whose.
        """
        found = torch.zeros(len(self.data), dtype=torch.float64)

        def compare(portion: Portion) -> None:
            at = portion.rows
            gain, power = fit_poses(
                portion.own_batch, portion.volume, self.state.noise_power, self.state.rotation[at],
                self.state.translation[at],
            )  # fmt: skip
            product = (gain + power).clamp(min=0) / 2
            found[at] = (product**2 / power.clamp(min=1e-6)).double().cpu()

        if isinstance(references, FourierVolume):
            references = self._of(rows, references)
        map_particles(self.data, references, compare, rows, self.radius)
        return found[rows]

    def _of(self, rows: Int[np.ndarray, " m"], *volumes: FourierVolume) -> References:
        index = np.full(len(self.data), -1)
        index[rows] = 0
        return References(index, volumes)

    def _poses(self, at: Int[np.ndarray, " m"]) -> tuple[Tensor, Tensor]:
        own = self.state.rotation[at], self.state.translation[at]
        every = [own, *(apply_mate(element, *own, self.data.pixel_size) for element in self.elements)]
        return torch.cat([rotation for rotation, _ in every]), torch.cat([shift for _, shift in every])
