"""What a reconstruction can be told: one typed model, filled by the command line, a YAML file, or Python."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cryoai.errors import InputError
from cryoai.geometry.fourier import full_radius
from cryoai.poses.encoder_input import CtfTreatment
from cryoai.poses.pose_encoder import HeadKind
from cryoai.training.losses import Domain
from cryoai.training.settings import Precision
from cryoai.volumes import VolumeKind


class BootstrapConfig(BaseModel):
    """The ab initio stage: mini-batch expectation-maximisation at low resolution."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    images: int = Field(default=20_000, ge=100)
    """At most this many images, drawn at random, are used."""
    steps: int = Field(default=60, ge=5)
    """Mini-batches of each start."""
    batch_size: int = Field(default=500, ge=10)
    """Images in a mini-batch."""
    rotations: int = Field(default=4608, ge=500)
    """Points of the SO(3) grid."""
    first_radius: float = Field(default=4.0, ge=2)
    """Shells (of a box that the particle half fills); the radius marches from here"""
    last_radius: float = Field(default=10.0, ge=4)
    """to here,"""
    march: float = Field(default=0.7, gt=0, le=1)
    """linearly over this share of the steps."""
    max_shift_box_lengths: float = Field(default=0.16, gt=0, lt=0.5)
    """Largest translation tried."""
    keep: int = Field(default=16, ge=1)
    """Poses of each image that are inserted, with their posterior weights."""
    learning_rate: float = Field(default=0.3, gt=0, le=1)
    """Share of a new mini-batch in the decaying sums, and in the noise spectrum."""
    held_out_images: int = Field(default=500, ge=20)
    """Images that no start sees, to judge them all by; at most a fifth of the images."""

    @model_validator(mode="after")
    def _march_outwards(self) -> BootstrapConfig:
        if self.first_radius > self.last_radius:
            raise ValueError(f"first_radius {self.first_radius:g} lies beyond last_radius {self.last_radius:g}")
        return self

    def in_box(self, box_size: int) -> BootstrapConfig:
        """The same settings with radii that exist in a box of so many px."""
        last = min(self.last_radius, full_radius(box_size))
        return self.model_copy(update={"last_radius": last, "first_radius": min(self.first_radius, last)})


class EncoderConfig(BaseModel):
    """The encoder: what it looks at, its size, and its head."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head: HeadKind = "so3_grid"
    """so3_grid classifies over a grid of rotations; anchored has several hypotheses; s2s2 is the paper's."""
    hypotheses: Annotated[int, Field(ge=1)] | None = None
    """Rotations of the grid (default 4,608), or hypotheses of the anchored head (default 60)."""
    box_size: int = Field(default=32, ge=8)
    """px of the images it looks at; larger ones are Fourier cropped."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = (16, 32, 64, 128)
    """Channels of each stage."""
    filter_sigmas: tuple[Annotated[float, Field(gt=0)], ...] = (0.1, 0.7, 1.2, 2.0, 3.2)
    """px of the Gaussian low-pass filters."""
    final_pool: bool = False
    """One more max pooling at the end."""
    ctf: CtfTreatment = "flip"
    """What is done about the CTF in its input: none, flip (the phases), or multiply."""
    keep: int = Field(default=32, ge=1)
    """Its best hypotheses that are scored against the map."""
    precision: Precision = "auto"
    """Of matrix products and convolutions; auto is bf16-mixed where the processor is fast at it, else 32-true."""


class AmortizeConfig(BaseModel):
    """Training encoder and volume from scratch (``--method amortized``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(default=50_000, ge=50)
    """At most this many images, drawn at random, are trained on."""
    steps: int = Field(default=500, ge=1)
    """Mini-batches."""
    batch_size: int = Field(default=256, ge=2)
    """Particles in a mini-batch (of each process)."""
    volume: VolumeKind = "fourier_net"
    """The volume that is trained."""
    volume_width: int = Field(default=128, ge=8)
    """Neurons of a network's layers."""
    encoder_learning_rate: float = Field(default=3e-3, gt=0)
    """Of Adam, for the encoder."""
    volume_learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam, for the volume; a grid wants about 50 times a network's."""
    amsgrad: bool = False
    """Adam's variant."""
    decay: bool = True
    """Lower the learning rates along a cosine."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the encoder's gradient."""
    first_radius: float = Field(default=4.0, ge=1)
    """Shells (of a box that the particle half fills); the radius of the loss marches from here"""
    last_radius: float = Field(default=16.0, ge=2)
    """to here,"""
    march_steps: int = Field(default=220, ge=0)
    """in so many steps."""
    search_radius: float = Field(default=10.0, ge=2)
    """Shells at which hypotheses are scored."""
    max_shift: float = Field(default=0.16, gt=0, lt=0.5)
    """Largest translation tried, box lengths."""
    sampling_steps: int = Field(default=180, ge=0)
    """In the first steps the winner is drawn from the posterior."""
    encoder_start: int = Field(default=140, ge=0)
    """Step at which an so3_grid head begins to learn."""
    own_proposals_start: int = Field(default=240, ge=0)
    """Step from which most particles are scored at the encoder's own hypotheses alone."""
    own_proposals_share: float = Field(default=0.75, ge=0, le=1)
    """How many of them."""
    symmetrized: bool = False
    """The paper's symmetrised loss: the better of the image and its copy turned by π is trained."""
    whiten: bool = True
    """Divide residuals by the noise spectrum, in the loss and where hypotheses are scored."""
    domain: Domain = "fourier"
    """Where residuals are measured."""
    mask_radius: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Box lengths; with domain real, only pixels closer to the centre count."""
    points_per_step: int = Field(default=24_576, ge=256)
    """Coefficients per step that the volume is trained on."""
    refresh: int = Field(default=4, ge=1)
    """Steps between two renderings of the volume for scoring."""
    save_every: int = Field(default=100, ge=1)
    """Steps between two checkpoints."""


class HybridConfig(BaseModel):
    """The encoder after a bootstrap (``--method hybrid``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder: Literal["auto", "always", "never"] = "auto"
    """Whether to train one; auto does where posing by exhaustive search would take longer."""
    fewest_particles: int | None = Field(default=None, ge=0)
    """What auto goes by; by default 700,000 on a CPU, and no number on a GPU, which searches as fast."""
    simulated_steps: int = Field(default=1300, ge=1)
    """Mini-batches of images simulated from the bootstrap's map."""
    real_steps: int = Field(default=100, ge=0)
    """Mini-batches of real images after that."""
    batch_size: int = Field(default=256, ge=2)
    """Images in a mini-batch."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Of Adam."""


class SearchRound(BaseModel):
    """One global search: of the particles that fit badly after a round of the refinement."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    round: int = Field(ge=1)
    """After which round."""
    doubt: float = Field(gt=0)
    """Standard deviations below a good fit from which a particle is searched again."""
    finer: int = Field(default=1, ge=1)
    """How many times more rotations than ``search_rotations``."""
    reach: float = Field(default=1.0, gt=0, le=1)
    """Share of the largest translation."""
    sharper: float = Field(default=1.0, gt=0)
    """Multiple of the search radius."""


# Wide searches of the many come first; the last one, deep and at higher resolution, finds those whose low
# frequencies the CTF has weakened.
_SEARCHES = (
    SearchRound(round=1, doubt=1.5, reach=0.8),
    SearchRound(round=2, doubt=1.3, reach=0.8),
    SearchRound(round=3, doubt=2.5, finer=4),
    SearchRound(round=4, doubt=2.5, finer=4, reach=0.75, sharper=1.5),
)


class RefineConfig(BaseModel):
    """The gold-standard refinement."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    start_from_input_poses: bool = False
    """Refine the input's poses instead of finding new ones; there is no bootstrap then."""
    max_rounds: int = Field(default=8, ge=0)
    """At most this many rounds of map and poses; with 0 the first poses are final."""
    first_search_reach: float = Field(default=1.2, gt=0, le=3)
    """Largest translation when every particle is posed against the bootstrap's map, as a multiple of its own."""
    first_search_keep: int = Field(default=8, ge=1)
    """Grid poses of each particle that are refined then."""
    search_rotations: int = Field(default=18_432, ge=500)
    """Points of the SO(3) grid when doubtful particles are searched again."""
    search_radius: float = Field(default=12.0, ge=4)
    """Shells of those searches."""
    max_shift_box_lengths: float = Field(default=0.28, gt=0, lt=0.5)
    """Largest translation of those searches."""
    search_keep: int = Field(default=32, ge=1)
    """Grid poses of each particle that are refined to the search radius; finer grids keep as many more."""
    search_refined: int = Field(default=8, ge=1)
    """How many of those are refined to the full radius."""
    searches: tuple[SearchRound, ...] = _SEARCHES
    """Which particles are searched again, when, and how far."""

    def search_after(self, round_number: int) -> SearchRound | None:
        """The search that follows a round, if there is one."""
        return next((search for search in self.searches if search.round == round_number), None)


class ReconstructConfig(BaseModel):
    """Every option of ``cryoai reconstruct``; the groups are set through ``--config``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    method: Literal["search", "amortized", "hybrid"] = "hybrid"
    """How poses are found: by exhaustive search, by an encoder trained from scratch, or by whichever is faster."""
    known_poses: bool = False
    """Insert at the input's poses; nothing is searched."""
    box_size: Annotated[int, Field(ge=16)] | None = None
    """px of the map; images are Fourier cropped. Default: the images' box, at most 128."""
    pixel_size: Annotated[float, Field(gt=0)] | None = None
    """Å, of the images, in place of what the file says."""
    particle_diameter: Annotated[float, Field(gt=0)] | None = None
    """Å; nothing outside this sphere is taken for particle."""
    max_particles: Annotated[int, Field(ge=2)] | None = None
    """Use only so many particles, spread over the file."""
    invert_contrast: Literal["auto", "yes", "no"] = "auto"
    """Whether protein is black in the images."""
    invert_hand: bool = False
    """Mirror the result; the hand cannot be known from the images."""
    no_ctf: bool = False
    """Take the images as not modulated by a CTF."""
    seeds: int = Field(default=3, ge=1, le=50)
    """Independent starts of the bootstrap."""
    seed: int = Field(default=0, ge=0, le=2**31)
    """Everything random follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    cache_gib: float = Field(default=0.125, ge=0)
    """Memory for the particles' Fourier coefficients; more go to a scratch file in the output folder."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """The ab initio stage."""
    encoder: EncoderConfig = EncoderConfig()
    """The encoder."""
    amortize: AmortizeConfig = AmortizeConfig()
    """Training from scratch."""
    hybrid: HybridConfig = HybridConfig()
    """The encoder after a bootstrap."""
    refine: RefineConfig = RefineConfig()
    """The refinement."""

    @model_validator(mode="after")
    def _poses_are_refined_in_halves(self) -> ReconstructConfig:
        if self.refine.max_rounds == 0 and self.method != "amortized" and not self.known_poses:
            raise ValueError("refine.max_rounds: 0 is for --method amortized; give at least 1")
        return self

    @property
    def has_poses(self) -> bool:
        """Whether the input's poses are used instead of finding new ones."""
        return self.known_poses or self.refine.start_from_input_poses


def load_config(path: Path | None, overrides: dict[str, Any]) -> ReconstructConfig:
    """A configuration from a YAML file (or none) and options that take precedence.

    Parameters
    ----------
    path
        YAML file with the names of `ReconstructConfig`.
    overrides
        Options given explicitly; ``"group.name"`` for one of a group.

    Raises
    ------
    InputError
        The file can't be read, a name is unknown (with the nearest known one), or a value is out of range.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = yaml.safe_load(path.read_text())
        except FileNotFoundError as error:
            raise InputError("does not exist", file=path) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"is not a YAML file ({error})", file=path) from error
        if loaded is not None and not isinstance(loaded, dict):
            raise InputError("holds no options", file=path, advice="write one 'name: value' per line")
        values = dict(loaded or {})
    for name, value in overrides.items():
        group, _, key = name.rpartition(".")
        if group:
            values[group] = {**(values.get(group) or {}), key: value}
        else:
            values[key] = value
    try:
        return ReconstructConfig(**values)
    except ValidationError as error:
        raise InputError(_explain(error), file=path) from error


def _explain(error: ValidationError) -> str:
    """The first fault in words: which option, what is wrong with it, and the nearest name that exists."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "value_error":
        # Ours, from a model's own check: a whole clause.
        clause = first["msg"].removeprefix("Value error, ")
        return f"{name}: {clause}" if name else clause
    if first["type"] != "extra_forbidden":
        return f"option '{name}': {first['msg'].lower()} (it is {first['input']!r})"
    group, _, key = name.rpartition(".")
    model = getattr(ReconstructConfig(), group) if group in ReconstructConfig.model_fields else ReconstructConfig()
    known = type(model).model_fields if isinstance(model, BaseModel) else ReconstructConfig.model_fields
    near = difflib.get_close_matches(key, known, 1)
    return f"there is no option '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")
