"""Reading and writing of every file format. Units, signs and origins are converted here and nowhere else.

The names below load on first use, so that ``import cryoai.io`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryoai.io.atomic import atomic_path, write_text_atomic
    from cryoai.io.mrc import read_map, write_map
    from cryoai.io.particle_files import read_particles
    from cryoai.io.stack import StackReader, StackWriter
    from cryoai.io.star import ParticleStarWriter, write_particles_star
    from cryoai.io.structure import density_from_structure, read_structure

_HOME = {
    "ParticleStarWriter": "star",
    "StackReader": "stack",
    "StackWriter": "stack",
    "atomic_path": "atomic",
    "density_from_structure": "structure",
    "read_map": "mrc",
    "read_particles": "particle_files",
    "read_structure": "structure",
    "write_map": "mrc",
    "write_particles_star": "star",
    "write_text_atomic": "atomic",
}

__all__ = [
    "ParticleStarWriter",
    "StackReader",
    "StackWriter",
    "atomic_path",
    "density_from_structure",
    "read_map",
    "read_particles",
    "read_structure",
    "write_map",
    "write_particles_star",
    "write_text_atomic",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
