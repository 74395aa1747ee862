"""Encoders, heads and volumes of other people: one class, registered, and a configuration can name it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from pydantic import Field
from torch import Tensor

from cryoai import InputError
from cryoai.parts import PartSettings, Registry
from cryoai.poses.encoder import BACKBONES, AbstractEncoder, BackboneSettings
from cryoai.poses.heads import HEADS, KEEP, AbstractPoseHead, S2S2Head
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.run.config import load_config
from cryoai.tensors import PoseHypotheses
from cryoai.volumes import VOLUMES, RealGrid, make_volume


class MeansSettings(BackboneSettings):
    patch: int = Field(default=4, ge=1)


class Means(AbstractEncoder):
    """Means over patches of the image."""

    Settings: ClassVar[type[PartSettings]] = MeansSettings

    def __init__(self, settings: MeansSettings) -> None:
        super().__init__()
        self.patch = settings.patch
        self.features = (settings.box_size // settings.patch) ** 2

    def forward(self, images: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(images[:, None], self.patch).flatten(1)


class SharpSettings(PartSettings):
    hypotheses: int = 5
    sharpness: float = Field(default=1.0, gt=0)


class Sharp(AbstractPoseHead):
    """As S2S2, with a log-weight."""

    Settings: ClassVar[type[PartSettings]] = SharpSettings

    def __init__(self, features: int, box_length: float, settings: SharpSettings) -> None:
        super().__init__()
        self.settings = settings
        self.one = S2S2Head(features, box_length, PartSettings())

    def propose(self, features: Tensor, keep: int = KEEP, logits: Tensor | None = None) -> PoseHypotheses:
        found = self.one(features)
        return PoseHypotheses(found.rotation, found.translation, found.log_weight + self.settings.sharpness)


class Slow(RealGrid):
    learning_rate: ClassVar[float] = 1e-6


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for registry in (BACKBONES, HEADS, VOLUMES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    BACKBONES.register("means")(Means)
    HEADS.register("sharp")(Sharp)
    VOLUMES.register("slow")(Slow)
    yield


def test_a_registered_part_can_be_chosen_with_settings_of_its_own() -> None:
    config = load_config(None, {
        "method": "amortized", "encoder.backbone": "means", "encoder.backbone_options": {"patch": 8},
        "encoder.head": "sharp", "encoder.head_options": {"sharpness": 3.0}, "amortize.volume": "slow",
        "amortize.symmetrized": True,
    })  # fmt: skip
    encoder = make_pose_encoder(config.encoder, 100.0, seed=0)
    assert isinstance(encoder.encoder, Means) and encoder.encoder.features == 16
    assert isinstance(encoder.head, Sharp) and encoder.head.settings == SharpSettings(hypotheses=5, sharpness=3.0)
    assert (encoder(torch.randn(2, 32, 32)).log_weight == 3.0).all()
    assert config.amortize.make_volume(16, scale=1.0, seed=0).learning_rate == 1e-6


def test_another_encoder_need_not_fit_the_stages_of_vgg() -> None:
    config = load_config(None, {"encoder.backbone": "means", "encoder.box_size": 8})
    assert make_pose_encoder(config.encoder, 100.0, seed=0).encoder(torch.randn(2, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder.backbone_options": {"patch": 4}}, "encoder: backbone_options: vgg has no option 'patch'"),
        ({"encoder.backbone": "means", "encoder.backbone_options": {"patch": 0}}, "encoder: option 'patch'.*is 0"),
        ({"encoder.head": "sharp"}, "so3_grid head, not sharp"),
        ({"encoder.head": "blunt"}, "no head 'blunt', but s2s2, anchored, so3_grid, sharp"),
        ({"amortize.volume": "blob"}, "option 'amortize.volume': there is no volume 'blob', but .*real_grid.*slow"),
    ],
)
def test_what_a_registered_part_cannot_be_told_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_config(None, options)
    assert "\n" not in str(error.value)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="there is a head 'sharp' already"):
        HEADS.register("sharp")(Sharp)
    assert list(Registry("thing")) == []


def test_volumes_refuse_options_that_they_lack() -> None:
    with pytest.raises(ValueError, match="real_grid has no option 'padding'; it has none"):
        make_volume("real_grid", 16, padding=1)
    with pytest.raises(ValueError, match="no volume 'blob'"):
        make_volume("blob", 16)
