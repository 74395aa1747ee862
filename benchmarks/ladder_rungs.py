"""What the ladder consists of: molecules, and molecule × SNR × number of images × seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

BOX = 64
SNRS, DEEPER = (-10.0, -13.0, -16.0), -19.0
SEEDS = (0, 1, 2)
IMAGES = 20_000
OTHER_IMAGES = (5_000, 50_000)
WITH_OTHER_IMAGES = ("70S", "6VYB")
# A limit that resolves worse, in px, or poses worse (median squared Frobenius distance; 9°), is not worth reaching.
ATTAINABLE_PX, RIGHT_ROTATION = 6.0, 0.05
# How much worse than the limit's the map of a run may be that found the molecule.
RIGHT_PX_RATIO = 1.35
# What `cryoai simulate` makes of each set beside its noise.
REALISTIC = ("--contrast-spread", "0.15", "--noise-colour", "2")
# The option that makes a run the limit.
LIMIT = {"refine.start_from_input_poses": True}


@dataclass(frozen=True)
class Molecule:
    """What to simulate, at a pixel size (Å) at which it spans about half of 64 px; shifts in Å.

    What spans: 99 % of the atoms; of the maps, of the voxels above 15 % of their 99.9th percentile. 70S 264 Å, 5NRL
    376 Å, 6VYB 163 Å, 4AKE 68 Å, β-galactosidase 181 Å, TRPV1 160 Å.
    """

    source: tuple[str, ...]
    pixel_size: float
    shift_sigma: float
    symmetry: str = "C1"


MOLECULES = {
    "70S": Molecule(("--structure", "structures/4v5a_70S.cif.gz"), 8.25, 20.0),
    "5NRL": Molecule(("--structure", "structures/5nrl.cif.gz"), 11.75, 20.0),
    "6VYB": Molecule(("--structure", "structures/6vyb.pdb"), 5.1, 20.0),
    "4AKE": Molecule(("--structure", "structures/4ake_A.pdb"), 2.1, 10.5),
    "bgal": Molecule(("--map", "maps/bgal_3.54A_100.mrc"), 5.0, 25.0, "D2"),
    "trpv1": Molecule(("--map", "maps/trpv1_4.88A_48.mrc"), 4.88, 24.4, "C4"),
}
TRIALS = {"phantom": Molecule(("--phantom",), 2.5, 5.0)}
"""To try the ladder itself; no part of it."""


@dataclass(frozen=True)
class Rung:
    """One simulated set, and the run that gets the same seed."""

    molecule: str
    snr_db: float
    images: int
    seed: int
    box: int = BOX

    @property
    def name(self) -> str:
        return f"{self.molecule}{self.snr_db:+g}dB-{self.images}-{self.box}px-seed{self.seed}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The limit is measured on one set of each molecule, SNR and number of images."""
        return ("limit", "run") if self.seed == 0 else ("run",)

    def key(self, kind: str, version: str, extra: dict[str, Any]) -> dict[str, Any]:
        """What no two lines of the results share; ``version`` is a label or a commit."""
        return {
            "kind": kind, "molecule": self.molecule, "snr_db": self.snr_db, "images": self.images,
            "seed": self.seed, "box": self.box, "version": version, "extra": extra,
        }  # fmt: skip


def plan(
    molecules: Iterable[str],
    snrs: Iterable[float] | None = None,
    images: Iterable[int] | None = None,
    seeds: Iterable[int] = SEEDS,
    box: int = BOX,
) -> list[Rung]:
    """Rungs in the order in which they are climbed: one seed of everything comes before the next seed.

    Without ``images`` two of the molecules also have smaller and larger sets, after all others. Without ``snrs``
    the rungs at `DEEPER` come last; which of them are climbed depends on the others (`is_within_reach`).
    """
    molecules, seeds = list(molecules), list(seeds)

    def climb(snrs: Iterable[float]) -> Iterator[Rung]:
        snrs = list(snrs)
        for count in (IMAGES, *OTHER_IMAGES) if images is None else images:
            for seed in seeds:
                for molecule in molecules:
                    if images is None and count != IMAGES and molecule not in WITH_OTHER_IMAGES:
                        continue
                    yield from (Rung(molecule, snr, count, seed, box) for snr in snrs)

    return [*climb(SNRS), *climb([DEEPER])] if snrs is None else list(climb(snrs))


def find_limit(step: dict[str, Any], lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The limit on a step, of the same version and options if it has been measured, else the newest."""
    limits = [line for line in lines if line["kind"] == "limit" and step_of(line) == step_of(step)]
    same = [line for line in limits if (line["version"], line["extra"]) == (step.get("version"), step.get("extra"))]
    return (same or limits or [None])[-1]


def step_of(line: dict[str, Any]) -> tuple[str, int, int, float]:
    """Molecule, number of images, box and SNR: what runs of several seeds and one limit share."""
    return line["molecule"], line["images"], line["box"], line["snr_db"]


def is_within_reach(key: dict[str, Any], lines: Iterable[dict[str, Any]]) -> bool:
    """Whether a rung at `DEEPER` is worth climbing: the one above it was, by the limit or by any of the runs."""
    lines, above = list(lines), {**key, "snr_db": min(SNRS)}
    limit = find_limit(above, lines)
    if key["kind"] == "limit":
        return limit is not None and is_attainable(limit)
    runs = [
        line for line in lines
        if line["kind"] == "run" and step_of(line) == step_of(above)
        and (line["version"], line["extra"]) == (key["version"], key["extra"])
    ]  # fmt: skip
    return any(is_right(run, limit) for run in runs)


def is_attainable(limit: dict[str, Any]) -> bool:
    """Whether refinement from the true poses resolves the molecule."""
    return (
        "failed" not in limit
        and limit["fsc_0.5_px"] < ATTAINABLE_PX
        and limit["rotation_error_median"] < RIGHT_ROTATION
    )


def is_right(run: dict[str, Any], limit: dict[str, Any] | None) -> bool | None:
    """Whether a run found the molecule, judged by the limit on its rung; None where that has not been measured."""
    if "failed" in run:
        return False
    if limit is None or "failed" in limit:
        return None
    return (
        run["fsc_0.5_px"] <= RIGHT_PX_RATIO * limit["fsc_0.5_px"] and run["rotation_error_median"] < RIGHT_ROTATION
    )
