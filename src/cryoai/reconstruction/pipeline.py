"""`reconstruct`: from a particle file to a map, poses and an honest resolution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from cryoai.amortized.posing import fit_to_run
from cryoai.errors import CryoAIError, InputError
from cryoai.metrics.fsc import phase_randomised_fsc
from cryoai.particles.contrast import contrast_of_map
from cryoai.particles.dataset import ParticleData
from cryoai.particles.judge import Judgement
from cryoai.physics.slicing import map_from_volume
from cryoai.reconstruction.class_output import write_class_outputs
from cryoai.reconstruction.first_poses import FirstPoses, find_first_poses
from cryoai.reconstruction.output import write_outputs
from cryoai.reconstruction.processes import check_processes, process_rank
from cryoai.reconstruction.reading import read_and_judge, train_on_subset, understand
from cryoai.reconstruction.result import (
    ClassesResult,
    ReconstructionResult,
    lower_confidence,
    mirror_result,
    negate_result,
)
from cryoai.reconstruction.run_folder import prepare_folder
from cryoai.reconstruction.sort_classes import sort_classes, tell_of_states
from cryoai.refinement.rounds import RoundSummary, finish, refine
from cryoai.refinement.state import RefinementState
from cryoai.run.config import ReconstructConfig
from cryoai.run.context import Run
from cryoai.run.progress import Progress
from cryoai.run.streams import torch_stream
from cryoai.types import Map, ParticleSet


def reconstruct(
    particles: str | Path | ParticleSet,
    output: str | Path,
    config: ReconstructConfig | None = None,
    *,
    datadir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ReconstructionResult:
    """Reconstruct one map and all poses from particle images, with nothing known beforehand.

    Parameters
    ----------
    particles
        A RELION ``.star``, a cryoSPARC ``.cs`` or an ``.mrcs`` file, or what `cryoai.io.read_particles` gave.
    output
        Folder for the results.
    config
        Options; defaults otherwise. For several ``classes`` there is `reconstruct_classes`.
    datadir
        Folder of the image stacks, where the file's own paths do not lead to them.
    resume
        Go on from the last finished step of a run that was stopped.
    overwrite
        Replace what an earlier run left in ``output``.
    progress
        Told what is going on.

    Raises
    ------
    InputError
        The input or an option is wrong.
    CryoAIError
        Several processes were started and this is not the first: `cryoai.reconstruction.assist.assist` is theirs.
    """
    if config is not None and config.classes != 1:
        raise InputError("several classes have as many results", advice="call reconstruct_classes")
    options = {"datadir": datadir, "resume": resume, "overwrite": overwrite, "progress": progress}
    (result,) = reconstruct_classes(particles, output, config, **options).classes
    return result


def reconstruct_classes(
    particles: str | Path | ParticleSet,
    output: str | Path,
    config: ReconstructConfig | None = None,
    *,
    datadir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ClassesResult:
    """Reconstruct as many maps as ``config.classes`` says, and the poses of the particles of each.

    Parameters and errors are those of `reconstruct`.
    """
    config = config or ReconstructConfig()
    progress = progress or Progress()
    output = Path(output)
    check_processes(config)
    if process_rank() > 0:
        raise CryoAIError(
            "only the first process reconstructs; the others call cryoai.reconstruction.assist.assist"
        )
    particles = understand(particles, config, datadir, progress)
    checkpoint = prepare_folder(output, particles, config, resume=resume, overwrite=overwrite)
    return _run(particles, output, Run(config, checkpoint, progress))


def _run(particles: ParticleSet, output: Path, run: Run) -> ClassesResult:
    """The steps of a run; each is saved when it is finished."""
    training, contrast = train_on_subset(particles, output, run)
    data = read_and_judge(particles, output, run, contrast)
    try:
        first = sort_classes(data, find_first_poses(data, particles, run, training), run)
        classes = []
        for number, one in enumerate(first.classes, 1):
            folder = output if first.classification is None else output / f"class{number}"
            classes.append(_refine_class(data, particles, folder, one))
    finally:
        data.close()
    hand = [one.mirrored() if run.config.invert_hand else one for one in first.too_small]
    small = tuple(Map(map_from_volume(one).numpy(), data.pixel_size) for one in hand)
    result = ClassesResult(output, tuple(classes), first.classification, small)
    if result.classification is None:
        write_outputs(classes[0], result.label)
        return result
    for number, one in enumerate(classes, 1):
        write_outputs(one, result.label, number)
    write_class_outputs(result)
    return result


def _refine_class(
    data: ParticleData, particles: ParticleSet, folder: Path, first: FirstPoses
) -> ReconstructionResult:
    """Refinement, final maps and verdict of one class."""
    run, state, rounds = first.run, first.state, ()
    if not run.config.known_poses:
        with run.timed("refinement"):
            state, rounds = refine(data, state, run, first.saved_as, first.shared_shells)
    result = _conclude(data, particles, folder, run, first, state, rounds)
    result = _settle_contrast(result, data.judgement, run)
    if run.config.invert_hand:
        result = mirror_result(result)
    return lower_confidence(_tell_of_missing_views(result, run))


def _settle_contrast(result: ReconstructionResult, judgement: Judgement, run: Run) -> ReconstructionResult:
    """Where the images did not tell whether protein is white, the map does: poses do not depend on it."""
    shown = contrast_of_map(torch.from_numpy(result.density))
    open_question = run.config.invert_contrast == "auto" and result.particles.contrast_sign is None
    if open_question and not judgement.contrast_is_sure and shown != 0:
        colour = "white" if judgement.contrast * shown > 0 else "black"
        run.progress.say(f"Protein is {colour} in these images, as the map shows")
        return result if shown > 0 else negate_result(result)
    if shown < 0:
        run.warn("the map looks inside out: protein is darker than the solvent (see --invert-contrast)")
    elif open_question and not judgement.contrast_is_sure:
        run.warn(
            "whether protein is white or black could be told neither from the images nor from the map; white is "
            "assumed (--invert-contrast yes if the map comes out inside out)"
        )
    return replace(result, warnings=tuple(run.warnings))


def _tell_of_missing_views(result: ReconstructionResult, run: Run) -> ReconstructionResult:
    """Warn where views leave Fourier space empty; in the map's final hand, since directions are named."""
    if result.views.is_lacking:
        run.warn(result.views.warning())
    return replace(result, warnings=tuple(run.warnings))


def _conclude(
    data: ParticleData,
    particles: ParticleSet,
    output: Path,
    run: Run,
    first: FirstPoses,
    state: RefinementState,
    rounds: tuple[RoundSummary, ...],
) -> ReconstructionResult:
    """Final maps, their resolution, and what is needed to pose particles that come later."""
    config = run.config
    with run.timed("final maps"):
        done = finish(data, state, run, first.shared_shells)
        state, halves = done.state, done.halves
        tell_of_states(data, state, halves, run)
        generator = torch_stream(config.seed, "random phases")
        fsc = phase_randomised_fsc(*halves.unfiltered, halves.mask, generator, voxel_size=data.pixel_size)
        density = halves.wiener_map().cpu().numpy()
        encoder = None if first.encoder is None else fit_to_run(first.encoder, data, state, halves)
    return ReconstructionResult(
        folder=output, config=config, particles=particles, state=state, halves=halves, fits=done.fits,
        symmetry=done.symmetry, alone=done.alone,
        density=density, voxel_size=data.pixel_size, fsc=fsc, ab_initio=first.ab_initio,
        shared_shells=first.shared_shells, rounds=rounds, warnings=tuple(run.warnings), seconds=dict(run.seconds),
        encoder=encoder, training=first.training,
    )  # fmt: skip
