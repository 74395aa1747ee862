"""The folder of a run: made, refused, cleared or taken up again."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cryoai.errors import InputError
from cryoai.io import write_text_atomic
from cryoai.reconstruction.output import OUTPUTS
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import ReconstructConfig
from cryoai.types import ParticleSet

# Options that change how a run is done or written, but not what its steps find.
_WITHOUT_CONSEQUENCE = {"device", "cache_gib", "invert_hand"}
# Options that take a run further: what it has done stays, and only what depends on them is done again.
_TAKES_FURTHER = {"seeds", "refine.max_rounds"}


def prepare_folder(
    output: Path, particles: ParticleSet, config: ReconstructConfig, *, resume: bool, overwrite: bool
) -> Checkpoint:
    """Make the output folder ready for a run.

    Parameters
    ----------
    output
        The folder.
    particles, config
        What the run depends on; a resumed run must have the same, but for more starts or rounds.
    resume
        Go on with what the folder holds.
    overwrite
        Remove what an earlier run left there first.

    Raises
    ------
    InputError
        The folder holds another run, the input itself, or cannot be made.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite exclude each other")
    if output.exists() and not output.is_dir():
        raise InputError("is a file, not a folder", file=output, advice="give another -o")
    _refuse_own_input(output, particles)
    record = output / "checkpoint" / "run.json"
    run = {
        "version": version("cryoai"),
        "particles": fingerprint(particles, config),
        "options": _flat(config.model_dump(mode="json", exclude=_WITHOUT_CONSEQUENCE)),
    }
    used = output.exists() and any(output.iterdir())
    if used and not (resume or overwrite):
        raise InputError(
            "already holds files of another run",
            file=output,
            advice="go on with --resume, replace it with --overwrite, or give another -o",
        )
    if used and resume:
        _check_same_run(record, run)
    if used and overwrite:
        shutil.rmtree(output / "checkpoint", ignore_errors=True)
        for folder in (output, *output.glob("class[1-9]*")):
            for name in OUTPUTS:
                (folder / name).unlink(missing_ok=True)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot be created ({error.strerror})", file=output, advice="give another -o") from error
    write_text_atomic(record, json.dumps(run, indent=1))
    header = f"# cryoai reconstruct {particles.source.path} -o {output}\n"
    write_text_atomic(output / "config.yaml", header + yaml.safe_dump(config.model_dump(), sort_keys=False))
    return Checkpoint(output / "checkpoint", run["particles"])


def _refuse_own_input(output: Path, particles: ParticleSet) -> None:
    results = {(output / name).resolve() for name in OUTPUTS}
    for path in (particles.source.path, *particles.stack_paths):
        if Path(path).resolve() in results:
            raise InputError("would be replaced by the result", file=path, advice="give another -o")


def _check_same_run(record: Path, run: dict) -> None:
    if not record.exists():
        raise InputError(
            "holds files, but no run to go on with", file=record.parent.parent, advice="give another -o"
        )
    folder = record.parent.parent
    try:
        earlier = json.loads(record.read_text())
        options, other = dict(earlier["options"]), earlier["version"]
        same = earlier["particles"] == run["particles"]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=record) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("is damaged", file=record, advice="start again with --overwrite") from error
    if other != run["version"]:
        raise InputError(
            f"the run there was made by cryoai {other}, this is {run['version']}",
            file=folder,
            advice="finish it with that version, or start again with --overwrite",
        )
    changed = {name for name, value in run["options"].items() if options.get(name) != value} - _TAKES_FURTHER
    if changed:
        raise InputError(
            f"the run there was made with other options ({', '.join(sorted(changed))})",
            file=folder,
            advice="give those of its config.yaml, or start again with --overwrite",
        )
    if not same:
        raise InputError(
            "the run there was made from other particles, or their files have changed since",
            file=folder,
            advice="start again with --overwrite",
        )


def _flat(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the groups under ``group.name``."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat.update({f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value})
    return flat


def fingerprint(particles: ParticleSet, config: ReconstructConfig) -> str:
    """A digest of the data as a run reads it: metadata, size and time of the image files, box and contrast."""
    digest = hashlib.sha256(f"{config.box_size} {config.invert_contrast}".encode())
    digest.update(f"{particles.box_size} {particles.pixel_size} {particles.contrast_sign}".encode())
    for path in particles.stack_paths:
        status = path.stat()
        digest.update(f"{path}:{status.st_size}:{status.st_mtime_ns}".encode())
    arrays = [particles.stack_index, particles.image_index, particles.random_subset]
    for group in (particles.ctf, particles.pose):
        arrays += [] if group is None else [getattr(group, field.name) for field in fields(group)]
    for array in arrays:
        digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
