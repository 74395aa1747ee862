"""Encoder and head together: images to poses, rebuilt from a few settings."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cryoai.poses.encoder import BACKBONES
from cryoai.poses.heads import HEADS
from cryoai.poses.settings import EncoderSettings
from cryoai.tensors import PoseHypotheses


class PoseEncoder(nn.Module):
    """Poses from images.

    Parameters
    ----------
    settings
        Backbone and head; kept as an attribute.
    box_length
        Å, edge of the images.
    """

    def __init__(self, settings: EncoderSettings, box_length: float) -> None:
        super().__init__()
        self.settings, self.box_length = settings, box_length
        self.encoder = BACKBONES.make(settings.backbone, settings.backbone_settings())
        self.head = HEADS.make(settings.head, self.encoder.features, box_length, settings.head_settings())

    def forward(self, images: Float[Tensor, "batch box box"]) -> PoseHypotheses:
        """As `propose`, as many as the settings say."""
        return self.propose(images, self.settings.keep)

    def propose(self, images: Float[Tensor, "batch box box"], keep: int) -> PoseHypotheses:
        """The head's hypotheses about each image, see `AbstractPoseHead.propose`."""
        return self.head.propose(self.encoder(images), keep)


def make_pose_encoder(settings: EncoderSettings, box_length: float, seed: int) -> PoseEncoder:
    """A pose encoder whose first weights depend on ``seed`` alone; the global random state is left as it was.

    Parameters
    ----------
    settings
        Backbone and head.
    box_length
        Å, edge of the images.
    seed
        Of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PoseEncoder(settings, box_length)
