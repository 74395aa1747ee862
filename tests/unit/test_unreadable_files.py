"""A file that the system does not hand over is not said to have wrong content: nobody has seen it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryoai.errors import InputError
from cryoai.io import StackReader, read_map, read_particles, read_structure
from cryoai.run.config import load_config

READERS: dict[str, Callable[[Path], Any]] = {
    "particles.star": read_particles,
    "particles.cs": read_particles,
    "stack.mrcs": read_particles,
    "images.mrcs": StackReader,
    "map.mrc": read_map,
    "model.pdb": read_structure,
    "options.yaml": lambda path: load_config(path, {}),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO], ids=["forbidden", "broken disk"])
def test_the_reason_is_the_system_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / name).write_text("text")
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(InputError, match=rf"{name}: .*cannot be read \({os.strerror(code)}\)"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_a_folder_is_no_damaged_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name}: .*cannot be read \(Is a directory\)"):
        READERS[name](tmp_path / name)
