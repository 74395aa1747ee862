"""One reader for every kind of particle file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from cryoai.errors import InputError
from cryoai.io._compressed import plain_suffix
from cryoai.io._findings import Finding
from cryoai.io._plausible import check_pixel_size
from cryoai.io._sampling import settle_headers
from cryoai.io._star_words import quote_word
from cryoai.io.stack import StackReader, describe_map
from cryoai.types import ParticleSet, SourceTable

_SUFFIXES = (".star", ".cs", ".mrcs", ".mrc")


def read_particles(
    path: str | Path,
    *,
    datadir: str | Path | None = None,
    check_stacks: bool = True,
    pixel_size: float | None = None,
) -> ParticleSet:
    """Read particle metadata: RELION ``.star``, cryoSPARC ``.cs`` or a bare ``.mrcs``/``.mrc`` stack.

    Image stacks are looked for by their whole name in ``datadir``, in the file's folder, in every folder above
    it (so a project's root is found), and in the current folder; then by the ends of their name, the longest
    first, in the same places. ``stack.mrcs.gz`` does where there is no ``stack.mrcs``; only stacks may be
    compressed.

    Parameters
    ----------
    path
        The file; its suffix says which kind it is.
    datadir
        Folder of the image stacks, where the file's own names do not lead to them.
    check_stacks
        Open the header of every stack, and refuse particles that cannot be reconstructed together. With False
        missing stacks keep their name as written, and such problems become notes (for ``cryoai info``).
    pixel_size
        Å, in place of what the file and its stacks say; settles what they contradict each other in.

    Returns
    -------
    ParticleSet
        Lengths in Å, angles in radians; what was missing or assumed is in ``notes``.

    Raises
    ------
    InputError
        The file is missing, of an unknown kind or unreadable; has no particles; a number is not one (names
        the row); and with ``check_stacks``: a stack is missing, truncated, a density map or shorter than the
        file says (names the row), the particles have several box or pixel sizes or others than their stacks,
        a value cannot be meant in its unit, or a stack's path could not be written in a STAR file.
    """
    path = Path(path)
    if pixel_size is not None and not 0 < pixel_size < float("inf"):
        raise InputError(f"the pixel size must be a length in Å, not {pixel_size:g}")
    particles = _read(path, None if datadir is None else Path(datadir), check_stacks, pixel_size)
    if check_stacks:
        for stack in particles.stack_paths:
            # Better now than when the result is written.
            quote_word(str(stack))
    return particles


def _read(path: Path, datadir: Path | None, check_stacks: bool, pixel_size: float | None) -> ParticleSet:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        suffix = Path(path.stem).suffix.lower() + suffix
    if suffix == ".star":
        from cryoai.io.star import read_star

        return read_star(path, datadir=datadir, check_stacks=check_stacks, pixel_size=pixel_size)
    if suffix == ".cs":
        from cryoai.io.cryosparc import read_cryosparc

        return read_cryosparc(path, datadir=datadir, check_stacks=check_stacks, pixel_size=pixel_size)
    if plain_suffix(path) in (".mrcs", ".mrc", ".map", ".ccp4"):
        return _read_bare_stack(path, check_stacks, pixel_size)
    advice = f"particles are read from {', '.join(_SUFFIXES)} files"
    if suffix in (".star.gz", ".cs.gz"):
        advice = "decompress it; only image stacks may stay compressed"
    elif suffix == ".csg":
        advice = "this is cryoSPARC's list of files; give the .cs file that it names"
    raise InputError(f"is of an unknown kind ({suffix or 'no suffix'})", file=path, advice=advice)


def _read_bare_stack(path: Path, check_stacks: bool, given: float | None) -> ParticleSet:
    reader = StackReader(path)
    count = len(reader)
    if reader.is_map:
        raise _refusal(describe_map(reader), path)
    table = pd.DataFrame({"rlnImageName": [f"{number:06d}@{path}" for number in range(1, count + 1)]})
    notes = ["CTF: absent, the images are taken as already corrected"]
    if reader.is_volume:
        notes.append("The header calls the file a volume; its sections are taken as images")
    pixel_size, findings = settle_headers([reader]) if given is None else (given, check_pixel_size(given))
    for finding in findings:
        if finding.stops and check_stacks:
            raise _refusal(finding, path)
        notes.append(finding.as_note())
    return ParticleSet(
        stack_paths=(path.resolve(),),
        stack_index=np.zeros(count, dtype=np.int64),
        image_index=np.arange(count, dtype=np.int64),
        box_size=reader.box_size,
        pixel_size=pixel_size,
        pixel_sizes=() if pixel_size is None else (pixel_size,),
        ctf=None,
        pose=None,
        source=SourceTable("stack", path, table),
        notes=tuple(notes),
    )


def _refusal(finding: Finding, path: Path) -> InputError:
    return InputError(finding.why, file=path, advice=finding.advice)
