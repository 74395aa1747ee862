"""Which sets are hard, in what way, and which runs they get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

BOX, IMAGES = 64, 10_000
PARTS = ("apoferritin", "real", "views", "shapes", "junk")
# Å per pixel at `BOX`, at which shapes span some 130 Å; their shifts are 5 px.
SHAPE_PIXEL_SIZE, SHAPE_SHIFT_SIGMA = 4.0, 20.0
# A whole cone of preferred views, and how many of all.
PREFERRED_ANGLE_DEG, PREFERRED_SHARE = 20.0, 0.7
# Views of the sets with junk: half of them from one side.
_UNEVEN = ("--preferred-share", "0.5", "--preferred-angle", "40")
JUNK = (0.0, 0.15, 0.5)
# So little that nothing can be seen of it in any number of images.
_NOTHING_DB = -80.0


@dataclass(frozen=True)
class Simulated:
    """A set to simulate: a molecule of the ladder, or a shape."""

    snr_db: float
    molecule: str | None = None
    shape: str | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Real:
    """Particles that lie in the test data.

    Attributes
    ----------
    particles
        Path below ``particles/``.
    stack
        Name of the stack that lies beside, and the name that the STAR file has for it, where they differ.
    model
        Path of an atomic model of the truth.
    options
        Of the run, where the file does not say what it must know; the pixel size (Å) is a guess.
    """

    particles: str
    stack: tuple[str, str] | None = None
    model: str | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class HardSet:
    """Particles, and how often they are reconstructed.

    Attributes
    ----------
    part
        One of `PARTS`.
    name
        Unique.
    source
        Where they come from.
    seeds
        Of simulation and run.
    has_limit
        Whether refinement from the true poses is measured as well, with seed 0.
    told_apart
        Of a shape: whether its views differ, so that it must be found.
    """

    part: str
    name: str
    source: Simulated | Real
    seeds: tuple[int, ...] = (0,)
    has_limit: bool = False
    told_apart: bool = True

    def kinds(self, seed: int) -> tuple[str, ...]:
        return ("limit", "run") if self.has_limit and seed == 0 else ("run",)

    def folder(self, seed: int) -> str:
        """A name without spaces."""
        return f"{self.part}-{self.name.replace(' % ', '-percent-').replace(' ', '-')}-seed{seed}"

    def key(
        self, kind: str, seed: int, version: str, extra: dict[str, Any], box: int = BOX, images: int = IMAGES
    ) -> dict[str, Any]:
        """What no two lines of the results share; ``version`` is a label or a commit."""
        key = {"part": self.part, "set": self.name, "kind": kind, "seed": seed, "version": version, "extra": extra}
        return key if isinstance(self.source, Real) else {**key, "box": box, "images": images}


def _shape(name: str, told_apart: bool) -> HardSet:
    return HardSet("shapes", name, Simulated(-10.0, shape=name), has_limit=told_apart, told_apart=told_apart)


def _views(name: str, share: float, **other: Any) -> HardSet:
    options = ("--preferred-share", f"{share:g}", "--preferred-angle", f"{PREFERRED_ANGLE_DEG:g}")
    return HardSet("views", name, Simulated(-10.0, "70S", options=options), **other)


def _junk(share: float) -> HardSet:
    options = (*_UNEVEN, "--junk", f"{share:g}")
    return HardSet("junk", junk_name(share), Simulated(-8.0, "70S", options=options))


def junk_name(share: float) -> str:
    """Of the set with that share of junk."""
    return f"{100 * share:g} % junk"


MOST_PREFERRED, ONLY_PREFERRED = f"{100 * PREFERRED_SHARE:g} % from one side", "only from one side"
NOISE = "pure noise"
APOFERRITIN = "apoferritin"
SETS = (
    HardSet(
        "apoferritin", APOFERRITIN,
        Real("apoferritin_64/apoferritin.star", model="structures/apoferritin_24mer_CA.pdb"), (0, 1, 2, 3, 4),
    ),
    HardSet("real", "220 ribosome tilts", Real("subtomo_ribosome_220x64/sta_testing_bin8.star")),
    HardSet("real", "17 particles", Real("unnamed_17x200/sample_particles_relion31.star")),
    HardSet(
        "real", "10 particles",
        Real("trpv1_10x48/trpv1_small_stack.star", ("trpv1_small_stack.mrcs", "./batch_0_restacked.mrc")),
    ),
    HardSet("real", "7 particles", Real("empiar10076_7x320/empiar_10076_7.star")),
    HardSet(
        "real", "100 class averages",
        Real("class_averages_100x96/mixture_2D.mrcs", options=(("pixel_size", 4.0), ("no_ctf", True))),
    ),
    _views(MOST_PREFERRED, PREFERRED_SHARE, seeds=(0, 1, 2), has_limit=True),
    _views(ONLY_PREFERRED, 1.0),
    _shape("hollow sphere", told_apart=False),
    _shape("tube", told_apart=True),
    _shape("dimer", told_apart=True),
    _shape("ball", told_apart=False),
    HardSet("shapes", NOISE, Simulated(_NOTHING_DB, shape="ball"), told_apart=False),
    *(_junk(share) for share in JUNK),
)  # fmt: skip
"""Every set, part by part."""


@dataclass(frozen=True)
class Planned:
    """One simulated (or real) set of one seed, with all its runs."""

    hard_set: HardSet
    seed: int

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.hard_set.kinds(self.seed)


def plan(parts: Iterable[str] = PARTS, seeds: Iterable[int] | None = None) -> list[Planned]:
    """What is run, in this order: part by part, in each of them one seed of everything before the next.

    Without ``seeds`` each set has its own.
    """
    seeds = None if seeds is None else tuple(seeds)

    def of_part(part: str) -> Iterator[Planned]:
        sets = [hard_set for hard_set in SETS if hard_set.part == part]
        for seed in dict.fromkeys(seed for hard_set in sets for seed in (seeds or hard_set.seeds)):
            yield from (Planned(hard_set, seed) for hard_set in sets if seed in (seeds or hard_set.seeds))

    return [planned for part in parts for planned in of_part(part)]
