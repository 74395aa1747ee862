"""Every particle's first pose: the input's, or found from nothing by one of three ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from cryoai.ab_initio.agreement import AbInitioResult, Starts
from cryoai.ab_initio.classify import Classification, classify
from cryoai.ab_initio.starts import FEWEST_OF_CLASS, find_starts, tell_of_class
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.from_scratch import AmortizedResult, train_from_scratch
from cryoai.amortized.on_a_map import train_on_map, uses_encoder
from cryoai.amortized.posing import pose_all
from cryoai.geometry.fourier import full_radius
from cryoai.particles.dataset import ParticleData
from cryoai.particles.sampling import sample_rows
from cryoai.physics.noise import estimate_shell_power
from cryoai.physics.slicing import FourierVolume
from cryoai.reconstruction.processes import cores_shared
from cryoai.refinement.poses import reconstruct_halves, update_noise
from cryoai.refinement.rounds import assign_all, diameter_px, own_references
from cryoai.refinement.state import RefinementState, start_refinement
from cryoai.run.context import Run
from cryoai.training.trainer import StepRecord
from cryoai.types import ParticleSet

# Images that the first noise spectrum is measured on.
_FOR_SPECTRUM = 2000
_ASSIGNED = "assigned"
CLASSIFIED = "classified"
"""The step that gives every particle a class."""


@dataclass(frozen=True, eq=False)
class FirstPoses:
    """Poses of one class to refine, and where they come from.

    Attributes
    ----------
    state
        The poses; what is not of this class takes no part.
    saved_as
        The checkpoint that keeps them; None where they are the input's.
    shared_shells
        Shells within which both half-sets have seen the same map or encoder, so that their agreement there is no
        evidence; 0 where they have not met.
    run
        With the options, checkpoints and progress of these poses: of its own, where there are several classes.
    ab_initio
        The starts of the bootstrap, if there was one.
    encoder, training
        The trained encoder and its history, if there is one.
    """

    state: RefinementState
    saved_as: str | None
    shared_shells: float
    run: Run
    ab_initio: AbInitioResult | None = None
    encoder: TrainedEncoder | None = None
    training: tuple[StepRecord, ...] = ()


@dataclass(frozen=True, eq=False)
class FirstClasses:
    """The first poses of every class.

    Attributes
    ----------
    classes
        In the order of their numbers, the largest first.
    classification
        Which particle is in which, where there are several.
    too_small
        Maps of the classes that follow, which have too few particles to be refined.
    """

    classes: tuple[FirstPoses, ...]
    classification: Classification | None = None
    too_small: tuple[FourierVolume, ...] = ()


def find_first_poses(
    data: ParticleData, particles: ParticleSet, run: Run, training: AmortizedResult | None
) -> FirstClasses:
    """The first poses, by the way that the options choose.

    Parameters
    ----------
    data, particles
        Images and metadata.
    run
        Options, checkpoints and progress.
    training
        Of encoder and volume, where it was done on a part of the set before all of it was read.
    """
    if run.config.has_poses:
        state = _input_poses(data, particles, run)
        if run.config.known_poses:
            state = _whiten(data, state, run)
        return FirstClasses((FirstPoses(state, None, 0.0, run),))
    if run.config.method == "amortized":
        return FirstClasses((_by_encoder_from_scratch(data, run, training),))
    return _by_bootstrap(data, run)


def _input_poses(data: ParticleData, particles: ParticleSet, run: Run) -> RefinementState:
    """The input's poses and, if it has them, its half-sets."""
    pose, usable = particles.pose, data.judgement.usable
    assert pose is not None
    start = start_refinement(data, _first_noise(data), run.config.seed)
    half = start.half
    subset = particles.random_subset
    if subset is None:
        run.warn(
            "the input has poses but no half-sets: its poses may come from one common map, and the resolution "
            "is then too good"
        )
    elif min(np.sum(usable & (subset == k)) for k in (1, 2)) < 2:
        run.warn(
            "the input's half-sets leave one half empty; a random split is used, and the resolution may be too good"
        )
    else:
        half = np.where(usable, subset - 1, -1)
        group = data.grouping.group
        straddling = np.intersect1d(group[half == 0], group[half == 1])
        if len(straddling):
            run.warn(
                f"{len(straddling)} images or filaments of the input have copies in both of its half-sets: the "
                "resolution is too good"
            )
    return replace(
        start,
        rotation=torch.from_numpy(pose.rotation.astype(np.float32)),
        translation=torch.from_numpy(pose.translation.astype(np.float32)),
        half=half,
    )


def _whiten(data: ParticleData, state: RefinementState, run: Run) -> RefinementState:
    """The noise spectrum that belongs to fixed poses."""
    full = full_radius(data.disk.box_size)
    with run.progress.step("Noise spectrum", len(state.used)) as done:
        halves = reconstruct_halves(
            data, state, full, diameter_px(run.config, data), done, run.config.imposed_symmetry
        )
    return update_noise(data, state, own_references(data, state, halves), full)


def _first_noise(data: ParticleData) -> torch.Tensor:
    batch = data.batch(sample_rows(data.usable_rows, _FOR_SPECTRUM))
    return estimate_shell_power(batch.images, batch.disk).clamp(min=1e-12)


def _by_encoder_from_scratch(data: ParticleData, run: Run, training: AmortizedResult | None) -> FirstPoses:
    """Encoder and volume from scratch, then every particle's pose from them."""
    config = run.config
    if training is None:
        with run.timed("training"), cores_shared():
            training = train_from_scratch(data, config, run.checkpoint, run.progress)
    # Half-maps that start from one wrong map agree; only another beginning tells.
    run.progress.say("Trained once: whether another --seed would find the same map is not known")
    if training.skipped:
        run.warn(f"{training.skipped} batches had no finite loss and were skipped in training")
    refine = config.refine.max_rounds > 0
    if not refine:
        run.warn(
            "all poses come from one volume and were not refined in halves: the resolution is too good "
            "(refine.max_rounds)"
        )
    trained, volume = training.trained, training.volume
    radius = min(config.amortize.search_radius, config.amortize.last_radius)

    def pose() -> RefinementState:
        state = start_refinement(data, trained.noise_power, config.seed)
        return pose_all(data, state, trained, volume, radius, run.progress, refine=refine)

    with run.timed("posing"):
        inputs = {"refine": refine, "search_radius": radius, "seed": config.seed}
        state = run.checkpoint.step(_ASSIGNED, RefinementState, inputs, pose, after="training")
    return FirstPoses(state, _ASSIGNED, training.shared_shells, run, encoder=trained, training=training.history)


def _by_bootstrap(data: ParticleData, run: Run) -> FirstClasses:
    """Maps from nothing, and the poses of the particles of each."""
    with run.timed("bootstrap"):
        starts = find_starts(data, run)
    if run.config.classes == 1:
        tell_of_class(starts.classes[0], None, run)
        everything = start_refinement(data, _first_noise(data), run.config.seed)
        return FirstClasses((_pose_by_bootstrap(data, everything, starts.classes[0], run, starts.saved_as),))
    with run.timed("classification"):
        classification = _classify(data, starts, run)
    classification, order = classification.largest_first()
    label, counts = classification.label, classification.counts
    everything = start_refinement(data, _first_noise(data), run.config.seed)
    classes, too_small = [], []
    for number, index in enumerate(order, 1):
        ab_initio = starts.classes[index]
        if number > 1 and counts[number] < FEWEST_OF_CLASS:
            too_small.append(ab_initio.best.volume)
            continue
        # Halves are those of the whole set, so that a particle that changes its class stays in its half.
        state = replace(everything, half=np.where(label == number, everything.half, -1))
        classes.append(_pose_by_bootstrap(data, state, ab_initio, run.of_class(number, CLASSIFIED)))
    return FirstClasses(tuple(classes), classification, tuple(too_small))


def _classify(data: ParticleData, starts: Starts, run: Run) -> Classification:
    def compute() -> Classification:
        return classify(data, starts.best, starts.images, run.progress)

    inputs = {"classes": run.config.classes}
    return run.checkpoint.step(CLASSIFIED, Classification, inputs, compute, starts.saved_as)


def _pose_by_bootstrap(
    data: ParticleData, state: RefinementState, ab_initio: AbInitioResult, run: Run, after: str | None = None
) -> FirstPoses:
    """Every particle's pose against a bootstrap's map: by search, or by an encoder trained on it.

    Parameters
    ----------
    data, state
        The particles, and which of them take part.
    ab_initio
        The map.
    run
        Options, checkpoints and progress.
    after
        The checkpoint that keeps the map; None where the run's own begin with it.
    """
    config, best = run.config, ab_initio.best
    radius = min(config.refine.first_search_radius, best.radius)
    encoder, history = None, ()
    if uses_encoder(config, len(data.usable_rows), data.device):
        with run.timed("training"):
            encoder, history = train_on_map(data, best, config, run.checkpoint, run.progress, after)
        after = "encoder_training"

    def pose() -> RefinementState:
        noise = state.noise_power.clone()
        noise[: len(best.noise_power)] = best.noise_power
        start = replace(state, noise_power=noise)
        if encoder is None:
            return assign_all(data, start, best.volume, radius, config, run.progress)
        return pose_all(data, start, encoder, best.volume, encoder.radius, run.progress)

    with run.timed("posing"):
        inputs = {
            "bootstrap": config.bootstrap, "reach": config.refine.first_search_reach,
            "keep": config.refine.first_search_keep, "radius": config.refine.first_search_radius,
            "diameter": config.particle_diameter, "seed": config.seed, "symmetry": config.imposed_symmetry,
        }  # fmt: skip
        posed = run.checkpoint.step(_ASSIGNED, RefinementState, inputs, pose, after)
    return FirstPoses(posed, _ASSIGNED, radius, run, ab_initio, encoder, history)
