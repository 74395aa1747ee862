"""Whether the bytes of MRC mode 0 are signed, which programs disagree on.

MRC2014 says signed. IMOD, whose bytes were unsigned before, stamps its files: the integer at byte 152 is "IMOD",
and bit 0 of the flags at byte 156 is set where the bytes are signed (IMOD's description of the format). Files
with neither a stamp nor telling statistics are decided by their pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import UInt8

_IMOD_STAMP = 1146047817
_STAMP_WORD, _FLAGS_WORD = 152 // 4, 156 // 4
_LOWEST_WORD, _HIGHEST_WORD = 76 // 4, 80 // 4
_CLEARLY_LESS = 0.8
"""Share of the other reading's jumps below which a reading is right; white noise over all bytes has 1."""


def header_says_signed(raw: bytes, order: Literal["<", ">"]) -> bool | None:
    """What the stamp says, or the statistics of a file without one; None where they say nothing.

    Parameters
    ----------
    raw
        The 1024 bytes of the header.
    order
        Its byte order, as NumPy writes it.
    """
    words = np.frombuffer(raw, f"{order}i4")
    if words[_STAMP_WORD] == _IMOD_STAMP:
        return bool(words[_FLAGS_WORD] & 1)
    lowest, highest = np.frombuffer(raw, f"{order}f4")[[_LOWEST_WORD, _HIGHEST_WORD]].tolist()
    if not lowest < highest or not (lowest.is_integer() and highest.is_integer()):
        # Not computed, or those of the numbers that the bytes were made from.
        return None
    if -128 <= lowest < 0 and highest <= 127:
        return True
    return False if lowest >= 0 and 127 < highest <= 255 else None


def looks_signed(pixels: UInt8[np.ndarray, " n"]) -> bool | None:
    """Which reading of some consecutive pixels jumps less from one to the next; None where neither does.

    Read wrongly, neighbours on either side of the middle grey differ by 255 instead of 1.
    """
    if not (pixels > 127).any():
        return True
    unsigned = int(np.abs(np.diff(pixels.astype(np.int16))).sum())
    signed = int(np.abs(np.diff(pixels.view(np.int8).astype(np.int16))).sum())
    if max(signed, unsigned) == 0 or min(signed, unsigned) > _CLEARLY_LESS * max(signed, unsigned):
        return None
    return signed < unsigned
