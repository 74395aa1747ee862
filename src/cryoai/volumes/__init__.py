"""Volumes that can be trained: neural networks and explicit grids behind one interface."""

from __future__ import annotations

from cryoai.volumes.abstract import AbstractVolume
from cryoai.volumes.fourier_grid import FourierGrid
from cryoai.volumes.fourier_net import FourierNet
from cryoai.volumes.make import NetworkKind, VolumeKind, count_parameters, make_volume, width_for_budget
from cryoai.volumes.positional_mlp import PositionalMLP
from cryoai.volumes.real_grid import RealGrid
from cryoai.volumes.siren import Siren

__all__ = [
    "AbstractVolume",
    "FourierGrid",
    "FourierNet",
    "NetworkKind",
    "PositionalMLP",
    "RealGrid",
    "Siren",
    "VolumeKind",
    "count_parameters",
    "make_volume",
    "width_for_budget",
]
