"""What every reader owes its user, whatever the file: a sentence or a result, soon, in little memory."""

from __future__ import annotations

import io
import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from cryoai.cli import main
from cryoai.errors import CryoAIError
from cryoai.io import read_particles, write_particles_star
from cryoai.types import Pose

MEMORY_BASE = 32 << 20
"""Bytes that reading the smallest file may take: modules, the parser's buffers."""
MEMORY_RATIO = 4
HANG_SECONDS = 60
"""Far beyond any of these small files, even on a busy machine."""


class Hang(BaseException):
    """Not an Exception, which a reader might take for a damaged file."""


@contextmanager
def well_behaved(*files: Path) -> Iterator[None]:
    """Fails on whatever is raised but our own errors, on a hang, and on too much memory for the files read."""

    def stop(number: int, frame: object) -> None:
        raise Hang(f"still reading after {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_SECONDS)
    tracemalloc.start()
    try:
        yield
    except CryoAIError as error:
        sentence = str(error)
        assert sentence.strip() and len(sentence) < 2000, sentence[:3000]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    size = sum(file.stat().st_size for file in files)
    assert peak <= MEMORY_RATIO * size + MEMORY_BASE, f"{peak >> 20} MiB for {size} bytes"


def check_particles(path: Path) -> None:
    """Both ways of reading, what is written of it, and ``cryoai info``."""
    for check_stacks in (True, False):
        with well_behaved(path):
            write_again(path, check_stacks=check_stacks)
    check_info(path)


def write_again(path: Path, *, check_stacks: bool) -> None:
    particles = read_particles(path, check_stacks=check_stacks)
    pose = particles.pose
    if pose is None:
        pose = Pose(np.tile(np.eye(3), (len(particles), 1, 1)), np.zeros((len(particles), 2)))
    output = path.parent / "written" / "particles.star"
    output.unlink(missing_ok=True)
    try:
        write_particles_star(output, particles, pose)
    except CryoAIError:
        # What has been checked can be written.
        assert not check_stacks
        assert not output.parent.exists() or not list(output.parent.iterdir())
        return
    assert [file.name for file in output.parent.iterdir()] == ["particles.star"]
    again = read_particles(output, check_stacks=False)
    np.testing.assert_array_equal(again.image_index, particles.image_index)
    np.testing.assert_array_equal(again.stack_index, particles.stack_index)


def check_info(path: Path) -> None:
    """``cryoai info`` ends with 0, or with 1 or 2 and a sentence of ours."""
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with well_behaved(path), redirect_stdout(output), redirect_stderr(errors):
        try:
            main(["info", str(path)])
        except SystemExit as exit_:
            code = exit_.code
    message = errors.getvalue()
    assert code in (0, 1, 2) and "run again with --debug" not in message and "Traceback" not in message, message
    assert bool(code) == bool(message), (code, message)
