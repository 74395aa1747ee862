"""A pose head that classifies over a grid of rotations and corrects each class locally."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cryoai.geometry.rotations import rotation_from_vector
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.poses.heads import AbstractPoseHead, TranslationHead, make_mlp
from cryoai.precision import full_precision
from cryoai.tensors import PoseHypotheses

_OFFSET_WIDTH = 128
_HIDDEN = (512, 512)
# Measured: small first logits and normalised hidden layers find the right class in a quarter of the steps.
_FIRST_LOGITS = 0.1


class GridHead(AbstractPoseHead):
    """Classification over an SO(3) grid, with a predicted offset from each grid rotation.

    Parameters
    ----------
    features
        Length of the feature vector.
    box_length
        Å, edge of the image.
    rotations
        Size of the grid.
    """

    def __init__(self, features: int, box_length: float, rotations: int = 4608) -> None:
        super().__init__()
        self.register_buffer("anchors", make_so3_grid(rotations))
        self.largest_offset = so3_grid_spacing(rotations)
        self.classifier = make_mlp(features, *_HIDDEN, rotations, last_scale=_FIRST_LOGITS, batch_norm=True)
        self.translation = TranslationHead(features, box_length, batch_norm=True)
        self.offset_of_image = make_mlp(features, 2 * _OFFSET_WIDTH, _OFFSET_WIDTH, batch_norm=True)
        self.offset_of_anchor = nn.Linear(9, _OFFSET_WIDTH, bias=False)
        self.offset_mlp = make_mlp(_OFFSET_WIDTH, _OFFSET_WIDTH, 3, last_scale=0.0)

    def logits(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch rotations"]:
        """Log-probability of each grid rotation, up to a constant per image."""
        return self.classifier(features).float()

    def offset(
        self, features: Float[Tensor, "batch features"], index: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k 3"]:
        """Rotation vectors ω, radians, from grid rotations to the image's own: ``R = exp([ω]×) R_grid``.

        No component is larger than the grid's spacing.
        """
        anchors = self.get_buffer("anchors").flatten(1)
        # A linear layer on the concatenation of image and anchor, done once per image and once per anchor.
        hidden = self.offset_of_image(features)[:, None] + self.offset_of_anchor(anchors)[index]
        return self.largest_offset * torch.tanh(self.offset_mlp(torch.relu(hidden)).float())

    def rotate(
        self, offset: Float[Tensor, "batch k 3"], index: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k 3 3"]:
        """Grid rotations, each turned by its offset."""
        with full_precision(offset.device):
            return rotation_from_vector(offset) @ self.get_buffer("anchors")[index]

    def forward(self, features: Float[Tensor, "batch features"], keep: int = 32) -> PoseHypotheses:
        """The ``keep`` likeliest grid rotations with their offsets, best first."""
        log_probability = torch.log_softmax(self.logits(features), 1)
        log_weight, index = log_probability.topk(keep, dim=1)
        rotation = self.rotate(self.offset(features, index), index)
        translation = self.translation(features).expand(-1, keep, -1)
        return PoseHypotheses(rotation, translation, log_weight)
