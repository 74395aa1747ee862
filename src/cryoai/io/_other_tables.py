"""What a metadata file is that holds no particle images, so that its user learns which one to give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from cryoai.errors import InputError

_GIVE_PARTICLES = "give the particles STAR file of an extraction, classification or refinement"
_EXTRACT = "extract the particles, and give the STAR file of that job"
_DATA_FILE = "give the job's particles, the file that ends in _data.star"
# Label that only such a file has, what it is, what to do; the first that fits counts.
_STAR_KINDS = (
    ("rlnJobTypeLabel", "it is a job's settings (job.star)", _GIVE_PARTICLES),
    ("rlnPipeLineProcessName", "it is a project's pipeline", _GIVE_PARTICLES),
    ("rlnExperimentalDataStarFile", "it is a refinement's state (optimiser.star)", _DATA_FILE),
    ("rlnReferenceImage", "it is a table of classes (model.star)", _DATA_FILE),
    ("rlnOrientationalPriorMode", "it is a refinement's search settings (sampling.star)", _DATA_FILE),
    ("rlnFourierShellCorrelationCorrected", "it is a resolution curve (postprocess.star)", _GIVE_PARTICLES),
    ("rlnTomoParticleName", "it describes subtomograms", "give a single-particle STAR file"),
    ("rlnTomoName", "it describes tomograms", "give a single-particle STAR file"),
    ("rlnMicrographMovieName", "it is a list of movies", "pick and extract particles first"),
    ("rlnMicrographCoordinates", "it is a list of coordinate files", _EXTRACT),
    ("rlnCoordinateX", "it is a list of picked positions", _EXTRACT),
    ("rlnMicrographName", "it is a list of micrographs", "pick and extract particles first"),
    ("atom_site.id", "it is an atomic model (mmCIF)", "cryoai simulate --structure makes particles of it"),
)  # fmt: skip


def refuse_other_star(labels: Mapping[str, list[str]], path: Path) -> NoReturn:
    """Say what a STAR file without particle images is.

    Parameters
    ----------
    labels
        Columns of each block.
    path
        The file.

    Raises
    ------
    InputError
        Always.
    """
    known = {label for block in labels.values() for label in block}
    if not known:
        raise InputError("is not a readable STAR file: it has no columns", file=path)
    if any(label.startswith("cisTEM") for label in known):
        raise InputError(
            "is a cisTEM file, whose columns (_cisTEM...) are not read",
            file=path,
            advice="export the refinement package from cisTEM in RELION's format, and give that STAR file",
        )
    why = "has no column rlnImageName, so it does not describe particle images"
    if set(labels) == {"optics"}:
        raise InputError(f"{why}: it has optics groups only", file=path, advice=_GIVE_PARTICLES)
    for label, what, advice in _STAR_KINDS:
        if label in known:
            raise InputError(f"{why}: {what}", file=path, advice=advice)
    raise InputError(why, file=path, advice=_GIVE_PARTICLES)


def describe_other_cs(names: Iterable[str]) -> str:
    """What a cryoSPARC table without ``blob/path`` is, as a clause.

    Parameters
    ----------
    names
        Its columns.
    """
    groups = {name.partition("/")[0] for name in names}
    if groups & {"movie_blob", "micrograph_blob", "micrograph_blob_non_dw", "mscope_params"}:
        return "it is a table of micrographs (exposures)"
    if groups & {"map", "map_half_A", "volume"}:
        return "it is a table of maps"
    if "location" in groups and not groups - {"uid", "location", "pick_stats"}:
        return "it is a table of picked positions, or a passthrough file"
    return "it is a passthrough file, or not one of particles"
