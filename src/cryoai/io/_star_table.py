"""The tables of a STAR file."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pandas as pd
import starfile

from cryoai.errors import InputError
from cryoai.types import SourceTable

_LABEL = re.compile(rb"^[ \t]*_(\w+)", re.MULTILINE)
_BLOCK_NAMES = ("particles", "images", "")


def read_star_table(path: Path) -> SourceTable:
    """The particles and optics tables of a RELION STAR file, of any version since 3.0.

    Raises
    ------
    InputError
        Not a STAR file, or one without a table of particle images.
    """
    blocks = _read_blocks(path)
    name = _particles_block_name(blocks, path)
    particles = _as_table(blocks[name])
    if not len(particles):
        raise InputError("holds no particles", file=path)
    optics = _as_table(blocks["optics"]) if "optics" in blocks else None
    if optics is not None and not len(optics):
        optics = None
    return SourceTable("relion", path, particles.reset_index(drop=True), optics, name)


def _read_blocks(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as stream:
            start = stream.read(1 << 16)
            if b"\0" in start:
                raise InputError("is not a STAR file but a binary one", file=path)
            stream.seek(0)
            text = stream.read()
    except FileNotFoundError as error:
        raise InputError("there is no such file", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    # A micrograph called 0012 must not come back as 12, so names stay text.
    labels = {label.decode() for label in _LABEL.findall(text)}
    del text
    try:
        blocks: Any = starfile.read(
            path, always_dict=True, parse_as_string=[n for n in labels if n.endswith("Name")]
        )
    except (ValueError, TypeError, KeyError, IndexError) as error:
        # pandas and shlex report broken rows in their own words, on one line or several.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"is not a readable STAR file ({reason.strip()})", file=path) from error
    finally:
        linecache.clearcache()
    if not blocks:
        raise InputError("is not a STAR file: it has no data block", file=path)
    return blocks


def _particles_block_name(blocks: dict[str, Any], path: Path) -> str:
    # Other programs name the block as they like, so any table with images will do.
    others = [name for name in blocks if name not in _BLOCK_NAMES and name != "optics"]
    for name in (*_BLOCK_NAMES, *others):
        if name in blocks and "rlnImageName" in blocks[name]:
            return name
    raise InputError(
        "has no column rlnImageName, so it does not describe particle images",
        file=path,
        advice="give the particles STAR file of an extraction, classification or refinement",
    )


def _as_table(block: Any) -> pd.DataFrame:
    # A block of one row may be written without a loop.
    return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])
