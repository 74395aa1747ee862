"""How well classes that were found agree with the true ones, particle by particle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import comb

SINK = 0
"""The class of what belongs to none: of junk, and of what is taken for it."""
_CONFIDENT = 0.5


@dataclass(frozen=True)
class ClassAgreement:
    """Found classes against the true ones.

    Attributes
    ----------
    accuracy
        Share of the true particles (true class above 0) that are in a class whose majority they belong to; a
        particle in the sink is wrong. NaN without particles.
    ari
        Adjusted Rand index of the true particles: 1 for the same division, 0 on average for one by chance. The
        sink is one of the found classes. NaN where there is one true class.
    majority
        Of each found class but the sink, the true class that most of its particles have (0: it is mostly junk).
    particles_in_sink
        Share of the true particles in the sink.
    junk_told_apart
        Share of the junk that is in the sink, or not confident; NaN without junk.
    """

    accuracy: float
    ari: float
    majority: dict[int, int]
    particles_in_sink: float
    junk_told_apart: float


def compare_classes(
    found: Int[np.ndarray, " n"], true: Int[np.ndarray, " n"], confidence: Float[np.ndarray, " n"] | None = None
) -> ClassAgreement:
    """Compare each particle's class with the true one; the names of classes may differ.

    Parameters
    ----------
    found, true
        Classes, 0 for the sink and for junk.
    confidence
        Of the particles, 0 to 1; junk of no more than 0.5 is told apart, wherever it is.
    """
    classes = np.unique(found[found != SINK]).tolist()
    majority = {one: int(np.bincount(true[found == one]).argmax()) for one in classes}
    particles = true != SINK
    several = len(np.unique(true[particles])) > 1
    right = np.array([majority.get(one, SINK) for one in found.tolist()], int) == true
    apart = found == SINK if confidence is None else (found == SINK) | (confidence <= _CONFIDENT)
    return ClassAgreement(
        accuracy=_share(right, particles),
        ari=adjusted_rand_index(found[particles], true[particles]) if several else float("nan"),
        majority=majority,
        particles_in_sink=_share(found == SINK, particles),
        junk_told_apart=_share(apart, ~particles),
    )


def adjusted_rand_index(first: Int[np.ndarray, " n"], second: Int[np.ndarray, " n"]) -> float:
    """Agreement of two divisions of the same things (Hubert & Arabie 1985, eq. 5); 1 where both are trivial.

    It counts pairs that are together in both, compared with what is expected of classes of these sizes by chance.
    """
    counts = pd.crosstab(first, second).to_numpy()
    both, one, other = (float(np.sum(comb(c, 2))) for c in (counts, counts.sum(1), counts.sum(0)))
    expected = one * other / max(len(first) * (len(first) - 1) / 2, 1)
    most = (one + other) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _share(chosen: Bool[np.ndarray, " n"], among: Bool[np.ndarray, " n"]) -> float:
    return float(chosen[among].mean()) if among.any() else float("nan")
