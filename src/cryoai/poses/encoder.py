"""Encoders: images to features. The paper's convolutional one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cryoai.parts import NamedPart, PartSettings, Registry
from cryoai.precision import full_precision

_Module = TypeVar("_Module", bound=nn.Module)
_KERNEL_REACH = 5


class BackboneSettings(PartSettings):
    """What every encoder is told; the defaults suit a CPU."""

    box_size: int = Field(default=32, ge=8)
    """px of the images it looks at; larger ones are Fourier cropped."""


class AbstractEncoder(nn.Module, NamedPart, ABC):
    """Anything that turns images into features, whatever the images' scale and offset.

    One that can be chosen by name is in `BACKBONES`, has its own ``Settings``, and is made with them alone.
    ``features`` is the length of the feature vector.
    """

    Settings: ClassVar[type[PartSettings]] = BackboneSettings
    features: int

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch box box"]) -> Float[Tensor, "batch features"]:
        """Features of each image."""


BACKBONES: Registry[AbstractEncoder] = Registry("backbone")
"""The encoders by name."""

BackboneKind = Annotated[str, AfterValidator(BACKBONES.check)]
"""A name in `BACKBONES`."""


class VggSettings(BackboneSettings):
    """What a `VggEncoder` is told."""

    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(16, 32, 64, 128), min_length=1)
    """Channels of each stage; a stage halves the image. The first three are VGG16's (2, 2 and 3 convolutions, max
    pooling); each further one has 2 convolutions and average pooling."""
    filter_sigmas: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        default=(0.1, 0.7, 1.2, 2.0, 3.2), min_length=1
    )
    """px, standard deviations of the Gaussian low-pass filters."""
    final_pool: bool = False
    """Whether one more max pooling comes last."""

    @model_validator(mode="after")
    def _check(self) -> VggSettings:
        if self.features < 1:
            raise ValueError(
                f"box_size {self.box_size} is too small for {len(self.widths)} stages; "
                "give fewer widths or a larger box_size"
            )
        return self

    @property
    def features(self) -> int:
        """Length of the feature vector."""
        return self.widths[-1] * (self.box_size >> (len(self.widths) + self.final_pool)) ** 2


# Variances 0.01 · 10^i px², as in the published code.
PAPER_ENCODER = VggSettings(
    box_size=128,
    widths=(64, 128, 256, 256, 256),
    filter_sigmas=tuple((0.01 * 10**i) ** 0.5 for i in range(5)),
    final_pool=True,
)


@BACKBONES.register("vgg")
class VggEncoder(AbstractEncoder):
    """Filter bank, standardisation and a VGG16-style backbone (Levy et al. 2022, section 3.1).

    Parameters
    ----------
    settings
        Sizes.
    """

    Settings: ClassVar[type[PartSettings]] = VggSettings

    def __init__(self, settings: VggSettings) -> None:
        super().__init__()
        self.features = settings.features
        self.register_buffer("blur", make_blur_matrices(settings.box_size, settings.filter_sigmas))
        self.backbone = _make_backbone(settings)
        self.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, images: Float[Tensor, "batch box box"]) -> Float[Tensor, "batch features"]:
        """Features of images whose scale and offset do not matter."""
        with full_precision(images.device):
            images = standardise(images.float())
        channels = standardise(blur_images(images, self.get_buffer("blur")))
        return self.backbone(channels.contiguous(memory_format=torch.channels_last)).flatten(1)


def make_blur_matrices(box_size: int, sigmas: tuple[float, ...]) -> Float[Tensor, "filters box box"]:
    """One-dimensional Gaussian filters of 11 taps as matrices; images are reflected at their edges."""
    place = torch.arange(box_size)[:, None] + torch.arange(-_KERNEL_REACH, _KERNEL_REACH + 1)
    source = _reflect(place, box_size)
    tap = torch.arange(-_KERNEL_REACH, _KERNEL_REACH + 1, dtype=torch.float64)
    matrices = []
    for sigma in sigmas:
        kernel = torch.exp(-(tap**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum()).expand(box_size, -1)
        matrices.append(torch.zeros(box_size, box_size, dtype=torch.float64).scatter_add_(1, source, kernel))
    return torch.stack(matrices).float()


def blur_images(
    images: Float[Tensor, "batch box box"], blur: Float[Tensor, "filters box box"]
) -> Float[Tensor, "batch filters box box"]:
    """Each image through each filter, which are separable and faster as matrix products than as convolutions."""
    return blur @ images[:, None] @ blur.mT


def standardise(images: Float[Tensor, "*batch box box"]) -> Float[Tensor, "*batch box box"]:
    """Mean 0 and standard deviation 1 in each image, whatever its scale; a constant image becomes 0."""
    rms = torch.linalg.vector_norm(images, dim=(-2, -1), keepdim=True) / images.shape[-1]
    scaled = images / rms.clamp_min(torch.finfo(images.dtype).tiny)
    return F.layer_norm(scaled, images.shape[-2:], eps=1e-8)


def fold_batch_norm(module: _Module) -> _Module:
    """A copy for inference, in evaluation mode, with each BatchNorm folded into the convolution before it."""
    folded = copy.deepcopy(module).eval()
    for sequence in [m for m in folded.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(sequence) - 1):
            convolution, norm = sequence[i], sequence[i + 1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[i] = fuse_conv_bn_eval(convolution, norm)
                sequence[i + 1] = nn.Identity()
    return folded.requires_grad_(False)


def _reflect(index: Int[Tensor, "box taps"], box_size: int) -> Int[Tensor, "box taps"]:
    index = index.abs()
    return torch.where(index < box_size, index, 2 * (box_size - 1) - index)


def _make_backbone(settings: VggSettings) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = len(settings.filter_sigmas)
    for stage, width in enumerate(settings.widths):
        for _ in range(3 if stage == 2 else 2):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        if stage < 3:
            # Max pooling and ReLU commute, and ReLU is cheaper on the smaller image.
            layers.insert(-1, nn.MaxPool2d(2))
        else:
            layers.append(nn.AvgPool2d(2))
    if settings.final_pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)
