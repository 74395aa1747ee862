from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoai.io import StackWriter


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a stack of four images of 16 px, for the files that name it."""
    folder = tmp_path_factory.mktemp("fuzz")
    with StackWriter(folder / "stack.mrcs", 4, 16, 2.0) as writer:
        writer.write(np.random.default_rng(0).normal(size=(4, 16, 16)))
    return folder
