"""``cryoai select``: the particles of a finished run to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Bool

_Flag = Parameter(negative=())
_CLASS, _CONFIDENCE = "rlnClassNumber", "cryoaiConfidence"


def select(
    run: Path,
    *,
    class_: Annotated[list[int] | None, Parameter(name="--class", consume_multiple=True, negative="")] = None,
    min_confidence: float = 0.0,
    cs: Path | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    overwrite: Annotated[bool, _Flag] = False,
) -> None:
    """Choose particles of a finished run by their class and confidence, to go on with here or elsewhere.

    Parameters
    ----------
    run
        Folder of the run, or its particles.star.
    class_
        Numbers of the classes that are kept; by default all but 0, which shows no particle.
    min_confidence
        Keep particles whose pose is at least so likely to be right, 0 to 1.
    cs
        The cryoSPARC file that was reconstructed: its rows of these particles are written, as they are there.
    output
        STAR file to write; with --cs a .cs file.
    overwrite
        Replace the output file.
    """
    from cryoai.errors import InputError
    from cryoai.io import ParticleStarWriter, read_particles
    from cryoai.io.cs_rows import copy_cs_rows

    suffix = ".star" if cs is None else ".cs"
    if output.suffix != suffix:
        raise InputError(f"is not named {suffix}", file=output, advice=f"give -o NAME{suffix}")
    if output.exists() and not overwrite:
        raise InputError("already exists", file=output, advice="replace it with --overwrite, or give another -o")
    if not 0 <= min_confidence <= 1:
        raise InputError(f"--min-confidence {min_confidence:g} is not a probability", advice="use 0 to 1")
    source = run / "particles.star" if run.is_dir() else run
    particles = read_particles(source, check_stacks=False)
    table, optics = particles.source.particles, particles.source.optics
    kept = _choose(table, source, class_, min_confidence)
    if not kept.any():
        raise InputError(
            f"none of its {len(kept):,} particles is chosen", file=source, advice="choose other classes, or a "
            "lower --min-confidence",
        )  # fmt: skip
    if cs is not None:
        copy_cs_rows(cs, kept, output)
    else:
        assert optics is not None
        with ParticleStarWriter(output, optics) as writer:
            writer.append(table.loc[kept])
    print(f"Chose {kept.sum():,} of {len(kept):,} particles. Written to {output}")


def _choose(
    table: pd.DataFrame, source: Path, classes: list[int] | None, min_confidence: float
) -> Bool[np.ndarray, " n"]:
    """Which rows are kept."""
    import numpy as np
    import pandas as pd

    from cryoai.errors import InputError

    for name in (_CLASS, _CONFIDENCE):
        if name not in table:
            raise InputError(f"has no column {name}", file=source, advice="give the folder of a cryoai run")
    number = np.asarray(pd.to_numeric(table[_CLASS], errors="coerce"), dtype=float)
    confidence = np.asarray(pd.to_numeric(table[_CONFIDENCE], errors="coerce"), dtype=float)
    known = sorted({int(one) for one in number[np.isfinite(number)]})
    for wanted in classes or ():
        if wanted not in known:
            raise InputError(
                f"there is no class {wanted}", file=source, advice=f"choose from {', '.join(map(str, known))}"
            )
    of_class = number > 0 if classes is None else np.isin(number, classes)
    return of_class & (confidence >= min_confidence)
