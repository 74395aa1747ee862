"""What a pose encoder is told: its backbone, its head, and what it looks at."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

# The registries are filled where the heads are defined.
import cryoai.poses.grid_head  # noqa: F401
from cryoai.parts import PartSettings
from cryoai.poses.encoder import BACKBONES, BackboneKind, VggSettings
from cryoai.poses.encoder_input import CtfTreatment
from cryoai.poses.heads import HEADS, KEEP, HeadKind
from cryoai.precision import Precision


class EncoderSettings(VggSettings):
    """The encoder: what it looks at, its size, and its head. With the weights, all that a file of one needs.

    The options of the built-in parts stand beside each other; a part with others finds them in its ``*_options``.
    """

    backbone: BackboneKind = "vgg"
    """Images to features."""
    backbone_options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of another backbone."""
    head: HeadKind = "so3_grid"
    """so3_grid classifies over a grid of rotations; anchored has several hypotheses; s2s2 is the paper's."""
    hypotheses: Annotated[int, Field(ge=1)] | None = None
    """Rotations of the grid, or hypotheses of the anchored head; by default the head's own number of them."""
    head_options: dict[str, Any] = Field(default_factory=dict)
    """Further settings of another head."""
    ctf: CtfTreatment = "flip"
    """What is done about the CTF in its input: none, flip (the phases), or multiply."""
    keep: int = Field(default=KEEP, ge=1)
    """Its best hypotheses that are scored against the map."""
    precision: Precision = "auto"
    """Of matrix products and convolutions; auto is bf16-mixed where the processor is fast at it, else 32-true."""

    # In place of VGG's own: another backbone knows itself what fits.
    @model_validator(mode="after")
    def _check(self) -> EncoderSettings:
        self.backbone_settings()
        self.head_settings()
        return self

    def backbone_settings(self) -> PartSettings:
        """The backbone's own settings."""
        shared = {name: getattr(self, name) for name in VggSettings.model_fields}
        return BACKBONES.read_settings(self.backbone, shared, self.backbone_options)

    def head_settings(self) -> PartSettings:
        """The head's own settings."""
        return HEADS.read_settings(self.head, {"hypotheses": self.hypotheses}, self.head_options)
