"""What a reconstruction can be told: one typed model, filled by the command line, a YAML file, or Python."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from cryoai.errors import InputError
from cryoai.geometry.fourier import full_radius
from cryoai.geometry.point_groups import point_group_name
from cryoai.io.yaml_file import read_yaml_options
from cryoai.parts import explain, shorten
from cryoai.poses.heads import HEADS
from cryoai.poses.settings import EncoderSettings
from cryoai.settings import Settings
from cryoai.training.settings import HybridSettings, TrainingSettings

_FEWEST_SETTLING = 30
"""Ever smaller steps that a short climb ends with."""
_MOST_CLASSES = 64
_USUAL_SUPPORT = 0.3
"""Radius of a particle, box lengths, that the bootstrap's radii are meant for."""


class BootstrapSettings(Settings):
    """The ab initio stage: mini-batch expectation-maximisation at low resolution."""

    images: int = Field(default=20_000, ge=100)
    """At most this many images, drawn at random, are used."""
    steps: int = Field(default=160, ge=5)
    """At most so many mini-batches of each start; fewer where images know their poses earlier."""
    batch_size: int = Field(default=250, ge=10)
    """Images in a mini-batch."""
    first_radius: float = Field(default=10.0, ge=2)
    """Shells (for a particle of radius 0.3 box lengths, fewer for larger ones); the radius marches from here"""
    last_radius: float = Field(default=12.0, ge=4)
    """to here,"""
    march: float = Field(default=0.5, gt=0, lt=1)
    """over this share of the steps, or faster where the images support it."""
    settle: float = Field(default=0.25, gt=0, lt=1)
    """Share of the steps that is left for ever smaller ones."""
    step_size: float = Field(default=0.5, gt=0, le=2)
    """Share of the way to the map that a mini-batch alone would make."""
    last_step_share: float = Field(default=0.05, gt=0, le=1)
    """The last step's size, as a share of ``step_size``."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Share of each step that the next one goes on with."""
    draws: int = Field(default=256, ge=1)
    """Poses drawn from the posterior of each image."""
    max_shift_box_lengths: float = Field(default=0.16, gt=0, lt=0.5)
    """Largest translation tried."""
    held_out_images: int = Field(default=500, ge=20)
    """Images that no start sees, to judge them all by; at most a fifth of the images."""

    @model_validator(mode="after")
    def _march_outwards(self) -> BootstrapSettings:
        if self.first_radius > self.last_radius:
            raise ValueError(f"first_radius {self.first_radius:g} lies beyond last_radius {self.last_radius:g}")
        return self

    @property
    def climbing_steps(self) -> int:
        """At most so many steps at full size."""
        return max(1, round((1 - self.settle) * self.steps))

    def judging_radius(self, support: float) -> int:
        """Shells in which starts are judged: one more than a particle of some radius, box lengths, needs."""
        return int(min(self.last_radius, self.scaled_to(self.last_radius, support) + 1))

    def settling_steps(self, climbed: int) -> int:
        """How many ever smaller steps follow so many at full size."""
        most = self.steps - self.climbing_steps
        return max(min(_FEWEST_SETTLING, most), round(climbed * self.settle / (1 - self.settle)))

    def in_box(self, box_size: int) -> BootstrapSettings:
        """The same settings with radii that exist in a box of so many px."""
        last = min(self.last_radius, full_radius(box_size))
        return self.model_copy(update={"last_radius": last, "first_radius": min(self.first_radius, last)})

    def scaled_to(self, radius: float, support: float) -> float:
        """Shells that mean the same for a particle of some radius, box lengths; no fewer than 4."""
        return max(4.0, min(radius, round(radius * _USUAL_SUPPORT / max(support, 1e-6))))


class SearchRound(Settings):
    """One global search: of the particles that fit badly after a round of the refinement."""

    round: int = Field(ge=1)
    """After which round."""
    doubt: float = Field(gt=0)
    """Standard deviations below a good fit from which a particle is searched again."""
    finer: float = Field(default=1.0, gt=0.2, le=5)
    """How many times closer views lie than the radius needs."""
    reach: float = Field(default=1.0, gt=0, le=1)
    """Share of the largest translation."""
    sharper: float = Field(default=1.0, gt=0)
    """Multiple of the search radius."""
    again: bool = True
    """Also those whose poses the last search has confirmed."""


# Wide searches of the many come first; the last one, deep and at higher resolution, finds those whose low
# frequencies the CTF has weakened.
_SEARCHES = (
    SearchRound(round=1, doubt=1.5, reach=0.8),
    SearchRound(round=2, doubt=2.0, reach=0.8, sharper=1.2, again=False),
    SearchRound(round=3, doubt=2.5, finer=1.2, sharper=1.5),
    SearchRound(round=4, doubt=2.5, finer=1.2, sharper=1.5, again=False),
)


class RefineSettings(Settings):
    """The gold-standard refinement."""

    start_from_input_poses: bool = False
    """Refine the input's poses instead of finding new ones; there is no bootstrap then."""
    max_rounds: int = Field(default=8, ge=0)
    """At most this many rounds of map and poses; with 0 the first poses are final."""
    first_search_radius: float = Field(default=10.0, ge=4)
    """Shells of that search: all that the half-maps have in common."""
    first_search_reach: float = Field(default=1.2, gt=0, le=3)
    """Largest translation when every particle is posed against the bootstrap's map, as a multiple of its own."""
    first_search_keep: int = Field(default=6, ge=1)
    """Views of each particle that are refined then."""
    search_radius: float = Field(default=10.0, ge=4)
    """Shells of the searches of doubtful particles, at least;"""
    largest_search_radius: float = Field(default=14.0, ge=4)
    """and at most, where the map tells poses only there; sharper searches go further."""
    search_gain: float = Field(default=25.0, gt=0)
    """Expected log-likelihood gain of a particle, nats, within the shells that tell its pose."""
    max_shift_box_lengths: float = Field(default=0.28, gt=0, lt=0.5)
    """Largest translation of those searches."""
    search_keep: int = Field(default=32, ge=1)
    """Views of each particle that are refined to the search radius."""
    search_refined: int = Field(default=8, ge=1)
    """How many of those are refined to the full radius."""
    searches: tuple[SearchRound, ...] = _SEARCHES
    """Which particles are searched again, when, and how far."""

    def search_after(self, round_number: int) -> SearchRound | None:
        """The search that follows a round, if there is one."""
        return next((search for search in self.searches if search.round == round_number), None)


class ReconstructConfig(Settings):
    """Every option of ``cryoai reconstruct``; the groups are set through ``--config``."""

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
    classes: int | Literal["auto"] = 1
    """How many different molecules, or states, to look for, or auto; what shows none of them is class 0."""
    symmetry: str = "auto"
    """Point group that every map is given (C1, Cn, Dn, T, O, I, with RELION's axes); auto: none, but it is told
    which one the map has."""
    seeds: int = Field(default=3, ge=1, le=50)
    """Independent starts of the bootstrap, at most: two that agree in every shell are enough."""
    seed: int = Field(default=0, ge=0, le=2**31)
    """Everything random follows from it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    cache_gib: float = Field(default=0.125, ge=0)
    """Memory for the particles' Fourier coefficients; more go to a scratch file in the output folder."""
    bootstrap: BootstrapSettings = BootstrapSettings()
    """The ab initio stage."""
    encoder: EncoderSettings = EncoderSettings()
    """The encoder."""
    amortize: TrainingSettings = TrainingSettings()
    """Training from scratch."""
    hybrid: HybridSettings = HybridSettings()
    """The encoder after a bootstrap."""
    refine: RefineSettings = RefineSettings()
    """The refinement."""

    @field_validator("classes", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        """In words, where the union's own message would name its parts."""
        word = str(value).strip().lower()
        if word == "auto":
            return word
        if isinstance(value, bool) or not word.isdecimal() or not 1 <= int(word) <= _MOST_CLASSES:
            raise ValueError(f"give how many classes, 1 to {_MOST_CLASSES}, or auto")
        return int(word)

    @field_validator("symmetry")
    @classmethod
    def _name_point_group(cls, value: str) -> str:
        if value.strip().lower() == "auto":
            return "auto"
        try:
            return point_group_name(value)
        except InputError as error:
            raise ValueError(f"{error.why}; {error.advice}") from error

    @model_validator(mode="after")
    def _symmetry_is_found_by_search(self) -> ReconstructConfig:
        if self.method == "amortized" and self.imposed_symmetry != "C1":
            raise ValueError("--symmetry and --method amortized exclude each other; use --method search")
        if self.invert_hand and self.imposed_symmetry == "T":
            raise ValueError("--invert-hand would move the axes of T, which differ in the other hand; leave it out")
        return self

    @model_validator(mode="after")
    def _poses_are_refined_in_halves(self) -> ReconstructConfig:
        if self.refine.max_rounds == 0 and self.method != "amortized" and not self.known_poses:
            raise ValueError("refine.max_rounds: 0 is for --method amortized; give at least 1")
        return self

    @model_validator(mode="after")
    def _classes_are_found_by_search(self) -> ReconstructConfig:
        """Several classes come from the bootstrap, and are posed by search."""
        if self.classes == 1:
            return self
        if self.has_poses:
            raise ValueError("--classes is for poses that are to be found; leave the input's poses out")
        if self.method == "amortized" or (self.method == "hybrid" and self.hybrid.encoder == "always"):
            raise ValueError("--classes and an encoder exclude each other; use --method search")
        return self

    @model_validator(mode="after")
    def _check_head(self) -> ReconstructConfig:
        """A head must be able to learn from what a method has."""
        name, head = self.encoder.head, HEADS[self.encoder.head]
        if self.amortize.symmetrized and head.needs_search:
            others = " and ".join(other for other, other_head in HEADS.items() if not other_head.needs_search)
            raise ValueError(
                f"amortize.symmetrized is for the heads {others}: {name} scores all rotations; "
                "leave it out, or choose another encoder.head"
            )
        if self.method == "hybrid" and self.hybrid.encoder != "never" and not head.needs_search:
            able = " or ".join(other for other, other_head in HEADS.items() if other_head.needs_search)
            raise ValueError(
                f"--method hybrid trains a {able} head, not {name}; "
                "use --method amortized, or leave encoder.head out"
            )
        return self

    @property
    def imposed_symmetry(self) -> str:
        """What maps are given: the symmetry asked for, or C1."""
        return "C1" if self.symmetry == "auto" else self.symmetry

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
    values = {} if path is None else read_yaml_options(path)
    for name, value in overrides.items():
        group, _, key = name.rpartition(".")
        if not group:
            values[key] = value
        elif isinstance(inside := {} if values.get(group) is None else values[group], dict):
            # What else the file holds there is refused below.
            values[group] = {**inside, key: value}
    try:
        return ReconstructConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error), file=path) from error


def _explain(error: ValidationError) -> str:
    """The first fault in words: which option, what is wrong with it, and the nearest name that exists."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return explain(error)
    name = shorten(name)
    group, _, key = name.rpartition(".")
    model = getattr(ReconstructConfig(), group, None)
    known = type(model).model_fields if isinstance(model, Settings) else ReconstructConfig.model_fields
    # A unit may be missing: max_shift for max_shift_box_lengths.
    near = [option for option in known if option.startswith(key + "_")] or difflib.get_close_matches(key, known, 1)
    return f"there is no option '{name}'" + (f"; did you mean '{near[0]}'?" if near else "")
