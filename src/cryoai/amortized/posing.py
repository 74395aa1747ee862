"""Poses of many particles by an encoder: its hypotheses, scored against a map, then refined locally."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.particles.dataset import ParticleData
from cryoai.physics.slicing import FourierVolume
from cryoai.poses.encoder import fold_batch_norm
from cryoai.poses.encoder_input import make_encoder_images, pose_both_ways
from cryoai.poses.pose_encoder import PoseEncoder
from cryoai.poses.search import make_translation_grid, search_translations, translation_step
from cryoai.precision import product_dtype
from cryoai.refinement.confidence import measure_fit_scale
from cryoai.refinement.global_search import refine_in_stages
from cryoai.refinement.halfmaps import HalfMaps
from cryoai.refinement.map_particles import Portion, map_particles, one_reference
from cryoai.refinement.state import RefinementState
from cryoai.refinement.unseen import unseen_fit
from cryoai.run.progress import Progress
from cryoai.tensors import ParticleBatch, PoseHypotheses

_IMAGES_AT_ONCE = 512
# Hypotheses of each particle that are refined locally.
_REFINED = 12
# How far translations are searched around the encoder's, in steps of the lattice of a global search.
_MOVES = 1.5


class EncoderInference:
    """A trained encoder ready to pose particles.

    Parameters
    ----------
    trained
        The encoder; it is copied, with its normalisation folded into the convolutions.
    device
        Where to run it.
    bf16
        Matrix products and convolutions in bfloat16; by default where the device is fast at it.
    """

    def __init__(
        self, trained: TrainedEncoder, device: torch.device | str = "cpu", bf16: bool | None = None
    ) -> None:
        self._trained = trained
        self._encoder: PoseEncoder = fold_batch_norm(trained.encoder).to(device)
        self._device = torch.device(device)
        self._bf16 = product_dtype(device) == torch.bfloat16 if bf16 is None else bf16

    @torch.no_grad()
    def hypotheses(self, batch: ParticleBatch) -> PoseHypotheses:
        """The encoder's best poses of each particle, best first by its own weights; in the host's memory."""
        settings = self._encoder.settings
        inside = batch.prefix(self._trained.radius)
        images = make_encoder_images(inside, settings.box_size, ctf=settings.ctf).to(self._device)
        images = images * self._trained.input_sign
        found = pose_both_ways(self._encode, images) if self._trained.symmetrized else self._encode(images)
        if self._trained.mirrored:
            mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
            found = PoseHypotheses(mirror @ found.rotation @ mirror, found.translation, found.log_weight)
        return found

    def _encode(self, images: Float[Tensor, "batch box box"]) -> PoseHypotheses:
        parts = []
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            for part in images.split(_IMAGES_AT_ONCE):
                parts.append(self._encoder(part))
        return PoseHypotheses(
            torch.cat([p.rotation for p in parts]).cpu(),
            torch.cat([p.translation for p in parts]).cpu(),
            torch.cat([p.log_weight for p in parts]).cpu(),
        )


def pose_all(
    data: ParticleData,
    state: RefinementState,
    trained: TrainedEncoder,
    volume: FourierVolume,
    radius: float,
    progress: Progress,
    *,
    refine: bool = True,
) -> RefinementState:
    """One pass of the encoder over all particles; its hypotheses are scored against a map and refined locally.

    Parameters
    ----------
    data, state
        The particles; the state's noise spectrum is used.
    trained
        The encoder.
    volume
        The map its poses belong to.
    radius
        Shells at which hypotheses are scored and refined.
    progress
        Of the run.
    refine
        Refine them; otherwise the rotations are the encoder's, and only translations are searched around its own.
    """
    inference = EncoderInference(trained, data.device)
    rotation, translation = state.rotation.clone(), state.translation.clone()

    def pose(portion: Portion) -> None:
        rotation[portion.rows], translation[portion.rows] = best_of_encoder(
            portion.own_batch, inference, portion.volume, state.noise_power, radius, refine
        )

    with progress.step("Posing every particle with the encoder", len(state.used)) as done:
        map_particles(data, one_reference(data, volume), pose, state.used, on_chunk=done)
    return replace(state, rotation=rotation, translation=translation)


def best_of_encoder(
    batch: ParticleBatch,
    inference: EncoderInference,
    volume: FourierVolume,
    noise_power: Float[Tensor, " shells"],
    radius: float,
    refine: bool = True,
) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 2"]]:
    """Rotations and translations (Å) of the encoder's best hypotheses.

    Translations are searched on a lattice around the encoder's; local refinement only if asked.
    """
    inside = batch.prefix(radius)
    step = translation_step(radius, batch.box_length)
    moves = make_translation_grid(_MOVES * step, 0.5 * step)
    best = search_translations(inside, volume, noise_power, inference.hypotheses(batch), moves).sorted(_REFINED)
    if refine:
        best = refine_in_stages(inside, volume, noise_power, best, ((radius, 1),))
    return best.rotation[:, 0], best.translation[:, 0]


def fit_to_run(
    trained: TrainedEncoder, data: ParticleData, state: RefinementState, halves: HalfMaps
) -> TrainedEncoder:
    """The encoder with what `cryoai infer` compares new particles with: noise, contrast, and a good fit's scale.

    Parameters
    ----------
    trained
        As it left training.
    data, state
        The run's particles and final poses.
    halves
        The run's final maps.
    """
    scale = measure_fit_scale(*unseen_fit(data, state, halves))
    return replace(
        trained, noise_power=state.noise_power, contrast=int(data.judgement.contrast),
        fit_centre=scale.centre, fit_spread=scale.spread,
    )  # fmt: skip
