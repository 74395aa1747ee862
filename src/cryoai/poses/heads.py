"""Pose heads: features to hypotheses about the pose. The paper's single pose, and several anchored ones."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar

import roma
import torch
from jaxtyping import Float
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from cryoai.geometry.so3_grid import make_so3_grid
from cryoai.parts import NamedPart, PartSettings, Registry
from cryoai.precision import full_precision
from cryoai.tensors import PoseHypotheses

HIDDEN = (512, 256)
KEEP = 32
"""Hypotheses of a head that are scored, unless one says otherwise."""

# The translation MLP's unit, in box lengths: about the spread of a picked particle's translations.
_TRANSLATION_SCALE = 0.1


class AbstractPoseHead(nn.Module, NamedPart, ABC):
    """Anything that turns features into poses.

    The rotation algebra of a head is float32 whatever the autocast, so that its rotations are rotations.

    A head is trained in one of two ways. By default the gradient of the image that its best hypothesis explains
    flows through the pose into the head. A head with ``needs_search`` is told poses instead, those of a search
    over its `grid` or known ones: it has `logits` and a `loss` as well.

    One that can be chosen by name is in `HEADS`, has its own ``Settings``, and is made with
    ``(features, box_length, settings)``: the length of the feature vector, and Å.
    """

    needs_search: ClassVar[bool] = False

    def forward(self, features: Float[Tensor, "batch features"]) -> PoseHypotheses:
        """As `propose`, the usual number of them."""
        return self.propose(features)

    @abstractmethod
    def propose(
        self,
        features: Float[Tensor, "batch features"],
        keep: int = KEEP,
        logits: Float[Tensor, "batch rotations"] | None = None,
    ) -> PoseHypotheses:
        """The hypotheses about each image that are worth scoring; log-weights are zero where a head has none.

        Parameters
        ----------
        features
            Of the images.
        keep
            How many are wanted of a grid, the likeliest first; heads with a few give all of them, in their own
            order.
        logits
            From `logits`, where they have been computed already.
        """

    @property
    def grid(self) -> Float[Tensor, "rotations 3 3"]:
        """The rotations to search, where a head needs a search."""
        raise NotImplementedError(f"{type(self).__name__} needs no search")

    def logits(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch rotations"]:
        """Log-probability of each rotation of the `grid`, up to a constant per image."""
        raise NotImplementedError(f"{type(self).__name__} needs no search")

    def loss(
        self,
        features: Float[Tensor, "batch features"],
        logits: Float[Tensor, "batch rotations"],
        rotation: Float[Tensor, "batch 3 3"],
        translation: Float[Tensor, "batch 2"],
    ) -> Float[Tensor, ""]:
        """How far the head is from given poses (translations in Å), where it needs a search."""
        raise NotImplementedError(f"{type(self).__name__} needs no search")


HEADS: Registry[AbstractPoseHead] = Registry("head")
"""The heads by name."""

HeadKind = Annotated[str, AfterValidator(HEADS.check)]
"""A name in `HEADS`."""


class TranslationHead(nn.Module):
    """Translations from features; zero before training.

    Parameters
    ----------
    features
        Length of the feature vector.
    box_length
        Å, edge of the image.
    hypotheses
        Translations per image.
    batch_norm
        Normalise the hidden layers.
    """

    def __init__(self, features: int, box_length: float, hypotheses: int = 1, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.scale = _TRANSLATION_SCALE * box_length
        self.mlp = make_mlp(features, *HIDDEN, 2 * hypotheses, last_scale=0.0, batch_norm=batch_norm)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch h 2"]:
        """Å, xy; positive moves density towards +x, +y."""
        return self.scale * self.mlp(features).float().unflatten(1, (-1, 2))


@HEADS.register("s2s2")
class S2S2Head(AbstractPoseHead):
    """One pose per image through S²×S² (Levy et al. 2022): six numbers, made a rotation by Gram–Schmidt.

    Parameters
    ----------
    features
        Length of the feature vector.
    box_length
        Å, edge of the image.
    settings
        It has none.
    """

    def __init__(self, features: int, box_length: float, settings: PartSettings) -> None:
        super().__init__()
        self.rotation = make_mlp(features, *HIDDEN, 6)
        self.translation = TranslationHead(features, box_length)

    def propose(
        self, features: Float[Tensor, "batch features"], keep: int = KEEP, logits: Tensor | None = None
    ) -> PoseHypotheses:
        """One hypothesis per image."""
        rotation = rotation_from_six(self.rotation(features)[:, None])
        translation = self.translation(features)
        return PoseHypotheses(rotation, translation, torch.zeros_like(translation[..., 0]))


class AnchoredHeadSettings(PartSettings):
    """What an `AnchoredHead` is told."""

    hypotheses: int = Field(default=60, ge=1)
    """Poses per image; their anchors are spread evenly over SO(3)."""


@HEADS.register("anchored")
class AnchoredHead(AbstractPoseHead):
    """Several poses per image that start apart: each is a fixed anchor turned by a predicted rotation.

    Parameters
    ----------
    features
        Length of the feature vector.
    box_length
        Å, edge of the image.
    settings
        How many.
    """

    Settings: ClassVar[type[PartSettings]] = AnchoredHeadSettings

    def __init__(self, features: int, box_length: float, settings: AnchoredHeadSettings) -> None:
        super().__init__()
        self.hypotheses = hypotheses = settings.hypotheses
        self.register_buffer("anchors", make_so3_grid(hypotheses))
        self.rotation = make_mlp(features, *HIDDEN, 6 * hypotheses, last_scale=0.01)
        self.translation = TranslationHead(features, box_length)
        self.translation_delta = TranslationHead(features, box_length, hypotheses)
        self.log_weight = make_mlp(features, *HIDDEN, hypotheses, last_scale=0.0)

    def propose(
        self, features: Float[Tensor, "batch features"], keep: int = KEEP, logits: Tensor | None = None
    ) -> PoseHypotheses:
        """All hypotheses, in the anchors' order; log-weights are logits."""
        six = self.rotation(features).float().unflatten(1, (self.hypotheses, 6))
        identity = six.new_tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        with full_precision(features.device):
            rotation = rotation_from_six(six + identity) @ self.get_buffer("anchors")
        translation = self.translation(features) + self.translation_delta(features)
        return PoseHypotheses(rotation, translation, self.log_weight(features).float())


def make_mlp(*sizes: int, last_scale: float = 1.0, batch_norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between; the last one's weights times ``last_scale``, its bias 0.

    With ``batch_norm`` the hidden layers are normalised.
    """
    layers: list[nn.Module] = []
    for number, (size_in, size_out) in enumerate(itertools.pairwise(sizes), start=2):
        linear = nn.Linear(size_in, size_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if number == len(sizes):
            linear.weight.data *= last_scale
        else:
            layers += [nn.BatchNorm1d(size_out), nn.ReLU(inplace=True)] if batch_norm else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def rotation_from_six(six: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotations from two vectors each, the first two columns before Gram–Schmidt; always valid, in float32.

    Where the first vector is zero, or the second is (nearly) parallel to it, a fixed axis takes its place, through
    which no gradient passes.
    """
    with full_precision(six.device):
        a, b = six.float().unflatten(-1, (2, 3)).unbind(-2)
        axes = torch.eye(3, device=six.device)
        a = torch.where(_is_short(a), axes[0], a)
        a = a / a.norm(dim=-1, keepdim=True)
        b = torch.where(_is_short(b), a, b)
        b = b / b.norm(dim=-1, keepdim=True)
        parallel = torch.linalg.cross(a, b).square().sum(-1, keepdim=True) < 1e-6
        b = torch.where(parallel, axes[a.detach().abs().argmin(-1)], b)
        # The second pass takes away what rounding left of vectors that were close to parallel.
        return roma.special_gramschmidt(roma.special_gramschmidt(torch.stack((a, b), -1)))


def _is_short(vector: Float[Tensor, "*batch 3"]) -> Tensor:
    return vector.detach().abs().amax(-1, keepdim=True) < 1e-12
