"""Ab initio single-particle cryo-EM: from a particle stack to a map, poses and an honest resolution.

The names below load on first use, so that importing the package is quick and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryoai.errors import CryoAIError, InputError
    from cryoai.io import read_map, read_particles, write_map
    from cryoai.metrics.evaluation import evaluate_reconstruction
    from cryoai.particles.phantom import make_phantom
    from cryoai.particles.simulate import SimulationSettings, Simulator
    from cryoai.reconstruction.evidence import Evidence
    from cryoai.reconstruction.infer import InferredPoses, infer
    from cryoai.reconstruction.pipeline import reconstruct, reconstruct_classes
    from cryoai.reconstruction.result import ClassesResult, ReconstructionResult
    from cryoai.reconstruction.verdict import Verdict
    from cryoai.run.config import ReconstructConfig
    from cryoai.types import CtfParameters, Map, ParticleSet, Pose

_HOME = {
    "ClassesResult": "cryoai.reconstruction.result",
    "CryoAIError": "cryoai.errors",
    "CtfParameters": "cryoai.types",
    "Evidence": "cryoai.reconstruction.evidence",
    "InferredPoses": "cryoai.reconstruction.infer",
    "InputError": "cryoai.errors",
    "Map": "cryoai.types",
    "ParticleSet": "cryoai.types",
    "Pose": "cryoai.types",
    "ReconstructConfig": "cryoai.run.config",
    "ReconstructionResult": "cryoai.reconstruction.result",
    "SimulationSettings": "cryoai.particles.simulate",
    "Simulator": "cryoai.particles.simulate",
    "Verdict": "cryoai.reconstruction.verdict",
    "evaluate_reconstruction": "cryoai.metrics.evaluation",
    "infer": "cryoai.reconstruction.infer",
    "make_phantom": "cryoai.particles.phantom",
    "read_map": "cryoai.io",
    "read_particles": "cryoai.io",
    "reconstruct": "cryoai.reconstruction.pipeline",
    "reconstruct_classes": "cryoai.reconstruction.pipeline",
    "write_map": "cryoai.io",
}

__all__ = [
    "ClassesResult",
    "CryoAIError",
    "CtfParameters",
    "Evidence",
    "InferredPoses",
    "InputError",
    "Map",
    "ParticleSet",
    "Pose",
    "ReconstructConfig",
    "ReconstructionResult",
    "SimulationSettings",
    "Simulator",
    "Verdict",
    "evaluate_reconstruction",
    "infer",
    "make_phantom",
    "read_map",
    "read_particles",
    "reconstruct",
    "reconstruct_classes",
    "write_map",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
