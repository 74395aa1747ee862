"""RELION's names of images, ``000012@stack.mrcs``."""

from __future__ import annotations

import os

import numpy as np
from jaxtyping import Int

from cryoai.errors import InputError
from cryoai.types import SourceTable

_BEYOND_ANY_STACK = 10**10
"""Image numbers from here on are mistakes: MRC counts images in 32 bits."""
_ROWS = 50_000
"""Names taken apart at once, as that needs much more memory than its result."""


def split_image_names(
    source: SourceTable,
) -> tuple[list[str], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The distinct stacks of ``rlnImageName`` ("000012@stack.mrcs"), which is whose, and the image from 0.

    Raises
    ------
    InputError
        A name is empty or can be no file's, or its number is none or beyond any stack.
    """
    column = source.particles["rlnImageName"]
    stack_index, image_index = np.empty((2, len(column)), dtype=np.int64)
    place: dict[str, int] = {}
    for start in range(0, len(column), _ROWS):
        rows = slice(start, start + _ROWS)
        texts = column.iloc[rows].astype(object).where(column.iloc[rows].notna(), "").astype(str).tolist()
        parts = [text.partition("@") if "@" in text else ("1", "@", text) for text in texts]
        numbers = [_image_number(number) if name else 0 for number, _, name in parts]
        bad = next((row for row, number in enumerate(numbers) if not 1 <= number < _BEYOND_ANY_STACK), None)
        if bad is not None:
            reason = "is not of the form 000001@stack.mrcs" if numbers[bad] < 1 else "has a number beyond any stack"
            why = f"rlnImageName {_shortened(texts[bad])!r} {reason}"
            raise InputError(why, file=source.path, row=start + bad + 1)
        known = len(place)
        stack_index[rows] = [place.setdefault(name, len(place)) for _, _, name in parts]
        image_index[rows] = np.array(numbers) - 1
        impossible = next((name for name in list(place)[known:] if _is_no_file_name(name)), None)
        if impossible is not None:
            row = start + int(np.argmax(stack_index[rows] == place[impossible])) + 1
            raise InputError(f"{_shortened(impossible)!r} can be no file's name", file=source.path, row=row)
    return list(place), stack_index, image_index


def _image_number(text: str) -> int:
    """The number before the @ of an image name; 0 where it is none."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()):
        return 0
    digits = digits.lstrip("0")
    # Python refuses to convert thousands of digits.
    return int(digits or "0") if len(digits) < len(str(_BEYOND_ANY_STACK)) else _BEYOND_ANY_STACK


def _is_no_file_name(name: str) -> bool:
    # The limits of every file system in use; beyond them even asking for the file is an error.
    return "\0" in name or len(name) > 4000 or any(len(os.fsencode(part)) > 255 for part in name.split("/"))


def _shortened(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:50]}...{text[-45:]}"
