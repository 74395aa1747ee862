"""A trained encoder on disk: what `cryoai infer` needs beside the map."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from cryoai.errors import InputError
from cryoai.io import atomic_path
from cryoai.parts import explain
from cryoai.poses.pose_encoder import PoseEncoder
from cryoai.poses.settings import EncoderSettings

ENCODER_FILE = "encoder.pt"
_FORMAT = 2
_PARTS = {
    "settings": dict, "weights": dict, "symmetrized": bool, "box_size": int, "pixel_size": float,
    "radius": float, "noise_power": torch.Tensor, "image_power": torch.Tensor, "mirrored": bool,
    "contrast": int, "input_sign": int, "fit_centre": float, "fit_spread": float,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrainedEncoder:
    """An encoder and what its images were like.

    Attributes
    ----------
    encoder
        Images to poses; what its input is like, and how many of its hypotheses are scored, is in its settings.
    symmetrized
        Whether it is shown each image's copy turned by π as well.
    box_size, pixel_size
        px and Å, of the run's maps.
    radius
        Shells that the encoder is shown.
    noise_power, image_power
        Mean ``|noise|²`` and ``|image|²`` per shell of the run's particles; not always of equally many shells.
    mirrored
        Whether the run's map was mirrored after training, so that its poses have to be, too.
    contrast
        1 where the run's images had white protein, -1 where it was black.
    input_sign
        -1 where the encoder learned from images with black protein, taken for white.
    fit_centre, fit_spread
        How well the run's particles fit its map: what the fit of new ones is compared with.
    """

    encoder: PoseEncoder
    symmetrized: bool
    box_size: int
    pixel_size: float
    radius: float
    noise_power: Float[Tensor, " noise_shells"]
    image_power: Float[Tensor, " image_shells"]
    mirrored: bool = False
    contrast: int = 1
    input_sign: int = 1
    fit_centre: float = 0.0
    fit_spread: float = 1.0

    @property
    def box_length(self) -> float:
        """Å, edge of the images."""
        return self.box_size * self.pixel_size


def write_encoder(trained: TrainedEncoder, path: Path) -> None:
    """Write tensors, numbers and strings; nothing in the file is code."""
    values = {name: getattr(trained, name) for name in _PARTS if name not in ("settings", "weights")}
    values["settings"] = trained.encoder.settings.model_dump(mode="json")
    values["weights"] = {name: tensor.cpu() for name, tensor in trained.encoder.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, "kind": "cryoai encoder", **values}, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_encoder(path: Path) -> TrainedEncoder:
    """The inverse of `write_encoder`; nothing is unpickled but tensors, numbers and strings.

    Raises
    ------
    InputError
        The file is missing, damaged, not an encoder, or of another version.
    """
    if not path.exists():
        raise InputError(
            "there is no trained encoder here",
            file=path,
            advice="make one with cryoai reconstruct --method amortized, or --method hybrid --encoder always",
        )
    advice = "train the encoder again with cryoai reconstruct"
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise InputError("the encoder file is damaged", file=path, advice=advice) from error
    if not isinstance(saved, dict) or saved.get("kind") != "cryoai encoder":
        raise InputError("is not a cryoai encoder", file=path, advice=advice)
    if saved.get("format") != _FORMAT:
        raise InputError("the encoder was written by another version of cryoai", file=path, advice=advice)
    try:
        for name, kind in _PARTS.items():
            if not isinstance(saved[name], kind):
                raise TypeError(name)
        encoder = PoseEncoder(_read_settings(saved["settings"]), saved["box_size"] * saved["pixel_size"])
        encoder.load_state_dict(saved["weights"])
    except Exception as error:
        raise InputError(f"the encoder file is incomplete ({error})", file=path, advice=advice) from error
    rest = {name: saved[name] for name in _PARTS if name not in ("settings", "weights")}
    return TrainedEncoder(encoder.eval(), **rest)


def _read_settings(saved: dict[str, Any]) -> EncoderSettings:
    try:
        return EncoderSettings(**saved)
    except ValidationError as error:
        raise ValueError(explain(error)) from error
