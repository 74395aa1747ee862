"""A trained encoder on disk: what `cryoai infer` needs beside the map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from cryoai.errors import InputError
from cryoai.io.tensor_file import read_tensors, write_tensors
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
    write_tensors(path, {"format": _FORMAT, "kind": "cryoai encoder", **values})


def read_encoder(path: Path) -> TrainedEncoder:
    """The inverse of `write_encoder`; nothing is unpickled but tensors, numbers and strings.

    Raises
    ------
    InputError
        The file is missing, may not be read, is damaged, not an encoder, or of another version.
    CryoAIError
        Memory does not suffice to read it.
    """
    advice = "train the encoder again with cryoai reconstruct"
    try:
        saved = read_tensors(path, "the encoder file", advice)
    except FileNotFoundError as error:
        raise InputError(
            "there is no trained encoder here",
            file=path,
            advice="make one with cryoai reconstruct --method amortized, or --method hybrid --encoder always",
        ) from error
    # As text, since a file that is not ours may hold a tensor there.
    if not isinstance(saved, dict) or str(saved.get("kind")) != "cryoai encoder":
        raise InputError("is not a cryoai encoder", file=path, advice=advice)
    if str(saved.get("format")) != str(_FORMAT):
        raise InputError("the encoder was written by another version of cryoai", file=path, advice=advice)
    try:
        for name, kind in _PARTS.items():
            if not isinstance(saved[name], kind):
                raise TypeError(name)
        encoder = _make_encoder(saved)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError(f"the encoder file is incomplete ({error})", file=path, advice=advice) from error
    rest = {name: saved[name] for name in _PARTS if name not in ("settings", "weights")}
    return TrainedEncoder(encoder.eval(), **rest)


def _make_encoder(saved: dict[str, Any]) -> PoseEncoder:
    settings, box_length = _read_settings(saved["settings"]), saved["box_size"] * saved["pixel_size"]
    if not (saved["box_size"] > 0 and 0 < saved["pixel_size"] < math.inf):
        raise ValueError(f"box of {saved['box_size']} px of {saved['pixel_size']} Å")
    shapes = _shapes_of_weights(settings, box_length)
    if shapes and shapes != {name: getattr(weight, "shape", None) for name, weight in saved["weights"].items()}:
        raise ValueError("its weights are not those of its settings")
    encoder = PoseEncoder(settings, box_length)
    encoder.load_state_dict(saved["weights"])
    return encoder


def _shapes_of_weights(settings: EncoderSettings, box_length: float) -> dict[str, torch.Size]:
    """What an encoder's weights are like, found without memory: its settings may ask for any size."""
    try:
        with torch.device("meta"):
            return {name: part.shape for name, part in PoseEncoder(settings, box_length).state_dict().items()}
    except (NotImplementedError, RuntimeError):
        # A part written by someone else may need numbers to be made.
        return {}


def _read_settings(saved: dict[str, Any]) -> EncoderSettings:
    try:
        return EncoderSettings(**saved)
    except ValidationError as error:
        raise ValueError(explain(error)) from error
