"""STAR files as the tests look into them and make them, independently of the package's own reader and writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pandas as pd
import starfile


def read_blocks(path: Path, as_text: Sequence[str] = ()) -> dict[str, pd.DataFrame]:
    """All blocks by name; the columns ``as_text`` are not taken for numbers."""
    blocks = starfile.read(path, always_dict=True, parse_as_string=list(as_text))
    return cast(dict[str, pd.DataFrame], blocks)


def write_blocks(blocks: Mapping[str, pd.DataFrame], path: Path, float_format: str = "%.6f") -> None:
    starfile.write(dict(blocks), path, float_format=float_format)
