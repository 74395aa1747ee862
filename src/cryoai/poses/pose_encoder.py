"""Encoder and head together: images to poses, rebuilt from a few settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoai.poses.encoder import Encoder, EncoderSettings
from cryoai.poses.grid_head import GridHead
from cryoai.poses.heads import AbstractPoseHead, AnchoredHead, S2S2Head
from cryoai.tensors import PoseHypotheses

HeadKind = Literal["s2s2", "anchored", "so3_grid"]


@dataclass(frozen=True)
class PoseEncoderSettings:
    """What a `PoseEncoder` is built from: with the weights, all that a checkpoint needs.

    Attributes
    ----------
    box_length
        Å, edge of the images.
    head
        See `make_head`.
    hypotheses
        Poses per image (``"anchored"``) or grid rotations (``"so3_grid"``); ``"s2s2"`` has one.
    encoder
        The backbone.
    """

    box_length: float
    head: HeadKind = "so3_grid"
    hypotheses: int = 4608
    encoder: EncoderSettings = field(default_factory=EncoderSettings)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        plain = asdict(self)
        for name, value in plain["encoder"].items():
            plain["encoder"][name] = list(value) if isinstance(value, tuple) else value
        return plain

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> PoseEncoderSettings:
        """The settings that `to_dict` wrote."""
        encoder: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in plain["encoder"].items()}
        return PoseEncoderSettings(**{**plain, "encoder": EncoderSettings(**encoder)})


class PoseEncoder(nn.Module):
    """Poses from images.

    Parameters
    ----------
    settings
        Kept as an attribute; see `make_pose_encoder`.
    """

    def __init__(self, settings: PoseEncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings.encoder)
        self.head = make_head(
            settings.head, settings.encoder.features, settings.box_length, hypotheses=settings.hypotheses
        )

    def forward(self, images: Float[Tensor, "batch box box"]) -> PoseHypotheses:
        """The head's hypotheses about each image."""
        return self.head(self.encoder(images))

    def propose(self, images: Float[Tensor, "batch box box"], keep: int) -> PoseHypotheses:
        """As many as are wanted, see `AbstractPoseHead.propose`."""
        return self.head.propose(self.encoder(images), keep)


def make_head(kind: HeadKind, features: int, box_length: float, *, hypotheses: int) -> AbstractPoseHead:
    """A pose head: the paper's (``"s2s2"``), several hypotheses (``"anchored"``), or a classifier (``"so3_grid"``).

    Parameters
    ----------
    kind
        Which.
    features
        Length of the feature vector.
    box_length
        Å, edge of the image.
    hypotheses
        Poses per image, or grid rotations; ``"s2s2"`` has one whatever is asked.
    """
    if kind == "s2s2":
        return S2S2Head(features, box_length)
    if kind == "anchored":
        return AnchoredHead(features, box_length, hypotheses)
    return GridHead(features, box_length, hypotheses)


def make_pose_encoder(settings: PoseEncoderSettings, seed: int) -> PoseEncoder:
    """A pose encoder whose first weights depend on ``seed`` alone; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PoseEncoder(settings)
