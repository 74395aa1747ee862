"""STAR files as the tests look into them and make them, independently of the package's own reader and writer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pandas as pd
import starfile


def read_blocks(path: Path) -> dict[str, pd.DataFrame]:
    """All blocks by name."""
    return cast(dict[str, pd.DataFrame], starfile.read(path, always_dict=True))


def write_blocks(blocks: Mapping[str, pd.DataFrame], path: Path) -> None:
    starfile.write(dict(blocks), path)
