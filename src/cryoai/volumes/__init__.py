"""Volumes that can be trained: neural networks and explicit grids behind one interface.

Another one is one file: a subclass of `AbstractVolume` under ``@VOLUMES.register("name")``, imported here (or by
whoever uses it) so that it is known.
"""

from __future__ import annotations

from cryoai.volumes.abstract import VOLUMES, AbstractVolume, VolumeKind
from cryoai.volumes.fourier_grid import FourierGrid
from cryoai.volumes.fourier_net import FourierNet
from cryoai.volumes.make import count_parameters, make_volume, width_for_budget
from cryoai.volumes.positional_mlp import PositionalMLP
from cryoai.volumes.real_grid import RealGrid
from cryoai.volumes.siren import Siren

__all__ = [
    "VOLUMES",
    "AbstractVolume",
    "FourierGrid",
    "FourierNet",
    "PositionalMLP",
    "RealGrid",
    "Siren",
    "VolumeKind",
    "count_parameters",
    "make_volume",
    "width_for_budget",
]
