"""The words of a STAR file's line: how they are told apart, and how one is written so that it reads back.

The rules (S. R. Hall, J. Chem. Inf. Comput. Sci. 31, 326, 1991): words are separated by white space; a ``#``
begins a comment, and a quote a quoted word, only where a word begins; a quoted word ends at the same quote
before white space or the line's end.
"""

from __future__ import annotations

import re

from cryoai.errors import InputError

_WORD = re.compile(
    r"""
    "(?P<double>(?:[^"]|"(?!\s|$))*)"(?=\s|$)
    | '(?P<single>(?:[^']|'(?!\s|$))*)'(?=\s|$)
    | (?P<comment>\#.*)
    | (?P<plain>\S+)
    """,
    # Only ASCII white space separates: a no-break or ideographic space may be part of a file's name.
    re.VERBOSE | re.ASCII,
)
_RESERVED = ("data_", "loop_", "save_", "stop_", "global_")
_UNWRITABLE = re.compile(r"[\0\n\r\x1f]")
NEEDS_QUOTES = rf"^$|^[#\"'_;]|^(?:{'|'.join(_RESERVED)})|[\0-\x20]"
"""Regular expression of the words that can't be written as they are."""


def split_words(line: str) -> list[str]:
    """The words of a line, without their quotes and without comments.

    A quote that nothing closes is part of a plain word, as in ``5'end.mrc`` or ``'tis``.
    """
    if line.isascii() and "#" not in line and '"' not in line and "'" not in line:
        return line.split()
    words = []
    for match in _WORD.finditer(line):
        if match.lastgroup == "comment":
            break
        words.append(match[match.lastgroup or 0])
    return words


def quote_word(word: str) -> str:
    """The word as it stands in a STAR file: quoted where it must be.

    Raises
    ------
    InputError
        No quotes can hold it: a line break or another control character, or both kinds of quotes followed
        by white space.
    """
    if not re.search(NEEDS_QUOTES, word):
        return word
    if not _UNWRITABLE.search(word):
        for quote in "\"'":
            if not re.search(rf"{quote}\s", word, re.ASCII):
                return f"{quote}{word}{quote}"
    raise InputError(
        f"{word!r} cannot be written in a STAR file", advice="rename the file or the folder it comes from"
    )
