"""Which box and pixel size are right, where the metadata, the stacks' headers and the user differ.

What the user gives counts, then the metadata, then the headers: many programs write 0 or 1 Å there. A stack that
was rescaled without its metadata shows in the box, or in a header that is far off; then nobody can tell which is
right, and a wrong guess makes every length of the result wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cryoai.errors import InputError
from cryoai.io._columns import optional_column
from cryoai.io._findings import Finding
from cryoai.io._plausible import POSSIBLE_PIXEL_SIZES, check_pixel_size
from cryoai.io.stack import StackReader
from cryoai.types import SourceTable

_ROUNDING = 1e-2
"""Relative difference between a header and a table that is taken for rounding."""
_RESCALED = 1.2
"""Ratio of pixel sizes from which images were rescaled; calibrations differ by a few per cent."""
_CRYOSPARC_NAMES = {"rlnImagePixelSize": "blob/psize_A", "rlnImageSize": "blob/shape"}


@dataclass(frozen=True)
class Sampling:
    """What was settled.

    Attributes
    ----------
    pixel_sizes
        (n,) Å, one per particle; None where nothing says.
    findings
        What was contradictory or assumed.
    """

    pixel_sizes: Float[np.ndarray, " n"] | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Stated:
    """A pixel size in the metadata, and the name of its column."""

    sizes: Float[np.ndarray, " n"]
    name: str

    @property
    def median(self) -> float:
        return float(np.median(self.sizes))


def settle_sampling(source: SourceTable, readers: Sequence[StackReader], given: float | None = None) -> Sampling:
    """The pixel size of each particle, and all contradictions about it.

    Parameters
    ----------
    source
        With RELION's columns.
    readers
        The stacks that were looked at, of one box size.
    given
        Å, from the user, who so settles every contradiction.

    Raises
    ------
    InputError
        A stated size is not a number.
    """
    count = len(source.particles)
    box = _check_boxes(source, readers, given)
    if given is not None:
        return Sampling(np.broadcast_to(float(given), (count,)), (*box, *check_pixel_size(given)))
    stated, others = _stated(source)
    if stated is not None:
        findings = [*box, *others]
        if not box:
            findings += _compare_with_headers(stated, source, readers)
        if stated.sizes.min() > 0:
            findings += check_pixel_size(stated.median)
        return Sampling(stated.sizes, tuple(findings))
    size, findings = settle_headers(readers)
    return Sampling(None if size is None else np.broadcast_to(size, (count,)), (*box, *findings))


def settle_headers(readers: Sequence[StackReader]) -> tuple[float | None, list[Finding]]:
    """The pixel size, Å, that the headers of stacks agree on, with what is to be said about it."""
    known = [(reader.pixel_size, reader) for reader in readers if reader.pixel_size]
    if not known:
        return None, [Finding("Pixel size: unknown")]
    size, reader = known[0]
    name = reader.path.name
    other = next(((s, r) for s, r in known if abs(s - size) > _ROUNDING * size), None)
    if other is not None:
        second = f"{other[0]:.4g} Å in {other[1].path.name}"
        why = f"the stacks' headers have two pixel sizes: {size:.4g} Å in {name}, {second}"
        return None, [Finding(why, "give the right one with --pixel-size", stops=True)]
    if _is_oblong(reader):
        why = f"{name} has pixels of {size:.4g} x {reader.pixel_size_y:.4g} Å in its header, which are not square"
        return None, [Finding(why, "give the right size with --pixel-size", stops=True)]
    if not POSSIBLE_PIXEL_SIZES[0] <= size <= POSSIBLE_PIXEL_SIZES[1]:
        why = f"the pixel size in the header of {name}, {size:.4g} Å, cannot be meant"
        return None, [Finding(why, f"give --pixel-size (Å){_guess(size, reader.box_size)}", stops=True)]
    doubt = "; many programs write 1 where they do not know it" if size == 1 else ""
    note = Finding(f"Pixel size: {size:.4g} Å, from the image stack's header{doubt}")
    return size, [note, *check_pixel_size(size)]


def _guess(size: float, box: int) -> str:
    # Some programs write the box's length and one sample, or the pixel size as the box's length.
    fits = [s for s in (size / box, size * box) if 0.5 <= s <= 10]
    return f", perhaps {fits[0]:.4g}" if fits else ""


def _is_oblong(reader: StackReader) -> bool:
    x, y = reader.pixel_size, reader.pixel_size_y
    return x is not None and y is not None and abs(x - y) > _ROUNDING * max(x, y)


def _stated(source: SourceTable) -> tuple[_Stated | None, list[Finding]]:
    """What the metadata say, by the column that counts, and how other columns differ."""
    pixels = optional_column(source, "rlnImagePixelSize")
    if pixels is not None:
        return _Stated(pixels, _label(source, "rlnImagePixelSize")), []
    pixels, magnified = optional_column(source, "rlnPixelSize"), _from_magnification(source)
    if pixels is None:
        name = "rlnDetectorPixelSize and rlnMagnification"
        return None if magnified is None else _Stated(magnified, name), []
    stated = _Stated(pixels, "rlnPixelSize")
    if magnified is None or not _differ(stated.median, float(np.median(magnified))):
        return stated, []
    why = (
        f"the pixel size is {stated.median:.4g} Å by rlnPixelSize, "
        f"{np.median(magnified):.4g} Å by rlnDetectorPixelSize and rlnMagnification"
    )
    return stated, [Finding(why, "correct either, or give the right size with --pixel-size", stops=True)]


def _from_magnification(source: SourceTable) -> Float[np.ndarray, " n"] | None:
    """RELION 3.0's: the detector's pixel is in µm."""
    detector = optional_column(source, "rlnDetectorPixelSize")
    magnification = optional_column(source, "rlnMagnification")
    if detector is None or magnification is None or not (magnification > 0).all():
        return None
    return detector * 1e4 / magnification


def _label(source: SourceTable, name: str) -> str:
    return _CRYOSPARC_NAMES.get(name, name) if source.format == "cryosparc" else name


def _differ(one: float, other: float) -> bool:
    return abs(one - other) > _ROUNDING * max(one, other)


def _boxes(source: SourceTable) -> Float[np.ndarray, " n"] | None:
    try:
        return optional_column(source, "rlnImageSize")
    except InputError:
        # A size that is no number says nothing, and is not needed where the stacks are there.
        return None


def _check_boxes(source: SourceTable, readers: Sequence[StackReader], given: float | None) -> list[Finding]:
    """Whether the metadata describe images of another size than the stacks hold."""
    boxes = _boxes(source) if readers else None
    if boxes is None:
        return []
    reader = readers[0]
    wrong = boxes[boxes != reader.box_size]
    if not len(wrong):
        return []
    said, box, in_header = int(wrong[0]), reader.box_size, _header_size(readers)
    name, stack = _label(source, "rlnImageSize"), reader.path.name
    if given is not None:
        return [Finding(f"{name} says {said} px, {stack} has {box} px; taken with {given:.4g} Å, as given")]
    try:
        stated, _ = _stated(source)
    except InputError:
        stated = None
    at = "" if stated is None else f" at {stated.median:.4g} Å"
    header = "" if in_header is None else f" at {in_header:.4g} Å by its header"
    why = f"{name} says {said} px{at}, the images of {stack} have {box} px{header}"
    return [Finding(why, _box_advice(source, said, box, stated, in_header), stops=True)]


def _box_advice(source: SourceTable, said: int, box: int, stated: _Stated | None, in_header: float | None) -> str:
    old = None if stated is None else stated.median
    if old is None and in_header is None:
        return f"give --pixel-size (Å, of the images of {box} px)"
    if in_header is not None and (old is None or _differ(old, in_header)):
        choice = f"--pixel-size {in_header:.4g}"
        size = in_header
    else:
        assert old is not None
        size = old * said / box
        choice = f"--pixel-size {size:.4g} if they were rescaled, --pixel-size {old:.4g} if they were cut"
    if source.format == "cryosparc":
        return f"give {choice}"
    return f"write rlnImageSize {box} and rlnImagePixelSize {size:.4g} in the STAR file, or give {choice}"


def _header_size(readers: Sequence[StackReader]) -> float | None:
    """The first pixel size in a header that says something."""
    sizes = (reader.pixel_size for reader in readers)
    low, high = POSSIBLE_PIXEL_SIZES
    return next((s for s in sizes if s and low <= s <= high and abs(s - 1) > 1e-3), None)


def _compare_with_headers(stated: _Stated, source: SourceTable, readers: Sequence[StackReader]) -> list[Finding]:
    """Headers of 0 and 1 Å say nothing; others are told, and stop where no box shows that they are wrong."""
    informative = [r for r in readers if r.pixel_size and abs(r.pixel_size - 1) > 1e-3]
    odd = next((r for r in informative if _is_oblong(r) or _differ(r.pixel_size or 0, stated.median)), None)
    if odd is None or odd.pixel_size is None:
        return []
    by_header = f"{odd.pixel_size:.4g}" + (f" x {odd.pixel_size_y:.4g}" if _is_oblong(odd) else "")
    why = (
        f"the pixel size is {stated.median:.4g} Å by {stated.name}, {by_header} Å by the header of {odd.path.name}"
    )
    size = _header_size([odd])
    ratio = 1.0 if size is None or stated.median <= 0 else max(size / stated.median, stated.median / size)
    if ratio < _RESCALED or _is_oblong(odd) or _boxes(source) is not None:
        return [Finding(f"{why}; the first is taken")]
    advice = f"give --pixel-size {size:.4g}, or --pixel-size {stated.median:.4g} if the header is wrong"
    return [Finding(why, advice, stops=True)]
