"""A pose head that classifies over a grid of rotations and corrects each class locally."""

from __future__ import annotations

from typing import ClassVar

import roma
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from cryoai.geometry.rotations import rotation_from_vector
from cryoai.geometry.so3_grid import make_so3_grid, so3_grid_spacing
from cryoai.parts import PartSettings
from cryoai.poses.heads import HEADS, KEEP, AbstractPoseHead, TranslationHead, make_mlp
from cryoai.precision import full_precision
from cryoai.tensors import PoseHypotheses

_OFFSET_WIDTH = 128
_HIDDEN = (512, 512)
# Measured: small first logits and normalised hidden layers find the right class in a quarter of the steps.
_FIRST_LOGITS = 0.1
# Soft classes: this many times the Frobenius distance between neighbours of the grid.
_TARGET_WIDTH = 0.8
# Offsets (radians) and translations (a tenth of the box) are small numbers beside the cross-entropy. A larger
# weight of the translations costs right rotations, and translations are easily searched afterwards.
_OFFSET_WEIGHT, _TRANSLATION_WEIGHT = 5.0, 1.0


class GridHeadSettings(PartSettings):
    """What a `GridHead` is told."""

    hypotheses: int = Field(default=4608, ge=1)
    """Rotations of the grid."""


@HEADS.register("so3_grid")
class GridHead(AbstractPoseHead):
    """Classification over an SO(3) grid, with a predicted offset from each grid rotation.

    Parameters
    ----------
    features
        Length of the feature vector.
    box_length
        Å, edge of the image.
    settings
        Size of the grid.
    """

    Settings: ClassVar[type[PartSettings]] = GridHeadSettings
    needs_search: ClassVar[bool] = True

    def __init__(self, features: int, box_length: float, settings: GridHeadSettings) -> None:
        super().__init__()
        rotations = settings.hypotheses
        self.register_buffer("anchors", make_so3_grid(rotations))
        self.largest_offset = so3_grid_spacing(rotations)
        self.classifier = make_mlp(features, *_HIDDEN, rotations, last_scale=_FIRST_LOGITS, batch_norm=True)
        self.translation = TranslationHead(features, box_length, batch_norm=True)
        self.offset_of_image = make_mlp(features, 2 * _OFFSET_WIDTH, _OFFSET_WIDTH, batch_norm=True)
        self.offset_of_anchor = nn.Linear(9, _OFFSET_WIDTH, bias=False)
        self.offset_mlp = make_mlp(_OFFSET_WIDTH, _OFFSET_WIDTH, 3, last_scale=0.0)

    @property
    def grid(self) -> Float[Tensor, "rotations 3 3"]:
        """The rotations that are classes."""
        return self.get_buffer("anchors")

    def logits(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch rotations"]:
        """Log-probability of each grid rotation, up to a constant per image."""
        return self.classifier(features).float()

    def offset(
        self, features: Float[Tensor, "batch features"], index: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k 3"]:
        """Rotation vectors ω, radians, from grid rotations to the image's own: ``R = exp([ω]×) R_grid``.

        No component is larger than the grid's spacing.
        """
        anchors = self.grid.flatten(1)
        # A linear layer on the concatenation of image and anchor, done once per image and once per anchor.
        hidden = self.offset_of_image(features)[:, None] + self.offset_of_anchor(anchors)[index]
        return self.largest_offset * torch.tanh(self.offset_mlp(torch.relu(hidden)).float())

    def rotate(
        self, offset: Float[Tensor, "batch k 3"], index: Int[Tensor, "batch k"]
    ) -> Float[Tensor, "batch k 3 3"]:
        """Grid rotations, each turned by its offset."""
        with full_precision(offset.device):
            return rotation_from_vector(offset) @ self.grid[index]

    def propose(
        self,
        features: Float[Tensor, "batch features"],
        keep: int = KEEP,
        logits: Float[Tensor, "batch rotations"] | None = None,
    ) -> PoseHypotheses:
        """The ``keep`` likeliest grid rotations (or all) with their offsets, best first."""
        log_probability = torch.log_softmax(self.logits(features) if logits is None else logits, 1)
        keep = min(keep, log_probability.shape[1])
        log_weight, index = log_probability.topk(keep, dim=1)
        translation = self.translation(features).expand(-1, keep, -1)
        rotation = self.rotate(self.offset(features, index), index)
        return PoseHypotheses(rotation, translation, log_weight)

    def loss(
        self,
        features: Float[Tensor, "batch features"],
        logits: Float[Tensor, "batch rotations"],
        rotation: Float[Tensor, "batch 3 3"],
        translation: Float[Tensor, "batch 2"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy with soft classes around the rotation, and the errors of the offset and of the shift."""
        anchors = self.grid
        rotation = rotation.to(anchors)
        with full_precision(anchors.device):
            target = soft_classes(rotation, anchors, _TARGET_WIDTH * self.largest_offset * 2**0.5)
            nearest = target.argmax(1, keepdim=True)
            wanted = roma.rotmat_to_rotvec(rotation @ anchors[nearest[:, 0]].transpose(1, 2))
        entropy = -(target * torch.log_softmax(logits, 1)).sum(1).mean()
        offset = self.offset(features, nearest)[:, 0]
        shift_error = (self.translation(features)[:, 0] - translation.to(anchors)) / self.translation.scale
        errors = _OFFSET_WEIGHT * (offset - wanted).square().sum(1)
        errors = errors + _TRANSLATION_WEIGHT * shift_error.square().sum(1)
        return entropy + errors.mean()


def soft_classes(
    rotation: Float[Tensor, "batch 3 3"], anchors: Float[Tensor, "rotations 3 3"], width: float
) -> Float[Tensor, "batch rotations"]:
    """Soft classes over a grid of rotations: a Gaussian in the Frobenius distance, summing to one.

    Parameters
    ----------
    rotation
        What is to be classified.
    anchors
        The grid.
    width
        Standard deviation of the Frobenius distance, which is about √2 times the angle in radians.
    """
    squared = 6 - 2 * rotation.flatten(1) @ anchors.flatten(1).T
    return torch.softmax(-squared / (2 * width**2), 1)
