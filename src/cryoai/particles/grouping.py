"""Which particles show the same thing: copies, boxes that overlap, segments of one filament.

Their noise is the same too, so that two half-sets which share them agree in it. They stay together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from cryoai.types import ParticleSet

# Boxes whose centres are closer than this share of their edge hold the same particle: it spans about half of the
# box, so that its centre lies well inside both. Neighbours in a crowd are a whole particle apart.
_OVERLAP_SHARE = 0.2
# Overlaps that chain so large a share of the set together are a crowd, not copies.
_LARGEST_GROUP_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Grouping:
    """Particles that must stay in one half-set.

    Attributes
    ----------
    group
        (n,) a number for each particle; those that belong together have the same.
    notes
        What was found, for the user.
    """

    group: Int[np.ndarray, " n"]
    notes: tuple[str, ...] = ()


def hash_images(images: Float[np.ndarray, "m box box"]) -> Int[np.ndarray, " m"]:
    """64 bits of a digest of each image's pixels: the same for images that are the same to the last bit."""
    digests = (hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), np.int64)


def group_particles(
    particles: ParticleSet, image_hash: Int[np.ndarray, " n"], usable: Bool[np.ndarray, " n"]
) -> Grouping:
    """Find particles that show the same thing, from their metadata and from their pixels.

    Parameters
    ----------
    particles
        The metadata: names and coordinates in the micrograph, and filaments, as RELION's columns.
    image_hash
        From `hash_images`.
    usable
        Which images count; empty ones are all alike.
    """
    count, table = len(particles), particles.source.particles
    notes = []
    listed = particles.stack_index * (int(particles.image_index.max(initial=0)) + 1) + particles.image_index
    alone = np.arange(count) + np.int64(count)
    copies = [_codes(listed), _codes(np.where(usable, image_hash, -alone))]
    group = _joined(count, copies)
    copied = count - len(np.unique(group))
    if copied:
        notes.append(
            f"{copied:,} of {count:,} images are copies of others (listed twice, or the same to the last bit); "
            "copies stay in one half-set, but they count twice in the map: remove them"
        )
    pairs = _overlapping(particles, table)
    joined = _joined(count, [group], pairs)
    overlaps = len(np.unique(group)) - len(np.unique(joined))
    if overlaps and np.bincount(joined).max() > _LARGEST_GROUP_SHARE * count:
        notes.append(
            f"{overlaps:,} boxes overlap others of the same micrograph so closely that they show the same "
            "particle, and chain too many together to keep them in one half-set: the resolution may be too good"
        )
    elif overlaps:
        notes.append(
            f"{overlaps:,} boxes overlap others of the same micrograph so closely that they show the same "
            "particle; they stay in one half-set"
        )
        group = joined
    tubes = _tubes(table)
    if tubes is not None:
        notes.append(
            f"{len(np.unique(tubes)):,} filaments (rlnHelicalTubeID): the segments of each stay in one half-set; "
            "helical symmetry is not used"
        )
        group = _joined(count, [group, tubes])
    return Grouping(group, tuple(notes))


def split_groups(
    group: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"], generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Half-sets 0 and 1 for some rows, at random, of sizes as equal as whole groups allow; -1 for the others."""
    half = np.full(len(group), -1)
    shuffled = generator.permutation(rows)
    codes, sizes = np.unique(group[shuffled], return_inverse=True, return_counts=True)[1:]
    together = sizes[codes] > 1
    filled = [0, 0]
    members = pd.Series(shuffled[together]).groupby(codes[together], sort=False)
    # The large ones first: the small ones even out what they leave.
    for _, part in sorted(members, key=lambda item: -len(item[1])):
        smaller = int(filled[1] < filled[0])
        half[part.to_numpy()] = smaller
        filled[smaller] += len(part)
    singles = shuffled[~together]
    smaller, lead = int(filled[1] < filled[0]), min(abs(filled[0] - filled[1]), len(singles))
    half[singles[:lead]] = smaller
    half[singles[lead::2]], half[singles[lead + 1 :: 2]] = 0, 1
    return half


def _codes(values: np.ndarray) -> Int[np.ndarray, " n"]:
    return np.unique(values, return_inverse=True)[1]


def _joined(
    count: int, labels: Iterable[np.ndarray], pairs: Int[np.ndarray, "k 2"] | None = None
) -> Int[np.ndarray, " n"]:
    """Groups in which everything with a common label, and every pair, is together."""
    rows, columns, size = [], [], count
    for label in labels:
        # Each label is a node of its own.
        rows.append(np.arange(count))
        columns.append(size + label)
        size += int(label.max(initial=-1)) + 1
    if pairs is not None and len(pairs):
        rows.append(pairs[:, 0])
        columns.append(pairs[:, 1])
    row, column = np.concatenate(rows), np.concatenate(columns)
    graph = coo_matrix((np.ones(len(row), np.int8), (row, column)), shape=(size, size))
    return _codes(connected_components(graph, directed=False)[1][:count])


def _overlapping(particles: ParticleSet, table: pd.DataFrame) -> Int[np.ndarray, "k 2"]:
    """Pairs of boxes of one micrograph whose centres nearly coincide."""
    names = ("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")
    if particles.box_size is None or not all(name in table for name in names):
        return np.empty((0, 2), int)
    place = np.stack([_numbers(table, name) for name in names[1:]], axis=1)
    reach = _OVERLAP_SHARE * particles.box_size * _pixels_of_micrograph(particles)
    known = np.isfinite(place).all(1)
    pairs = [np.empty((0, 2), int)]
    for rows in pd.Series(np.flatnonzero(known)).groupby(_codes(table[names[0]].astype(str).to_numpy(str))[known]):
        at = rows[1].to_numpy()
        if len(at) > 1:
            pairs.append(at[KDTree(place[at]).query_pairs(reach, output_type="ndarray")])
    return np.concatenate(pairs)


def _pixels_of_micrograph(particles: ParticleSet) -> float:
    """Pixels of the micrograph in one of the images, which may have been downsampled; 1 where nothing says."""
    source = particles.source
    for block in (source.particles, source.optics):
        for name in ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize"):
            if block is not None and name in block and particles.pixel_size:
                size = float(np.nanmedian(_numbers(block, name)))
                if np.isfinite(size) and size > 0:
                    return particles.pixel_size / size
    return 1.0


def _tubes(table: pd.DataFrame) -> Int[np.ndarray, " n"] | None:
    """A number for each filament; None where the file has none."""
    if "rlnHelicalTubeID" not in table:
        return None
    tube = table["rlnHelicalTubeID"].astype(str)
    where = table["rlnMicrographName"].astype(str) if "rlnMicrographName" in table else ""
    return _codes((tube + "@" + where).to_numpy(str))


def _numbers(table: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    """A column as numbers; NaN where it holds none."""
    return np.asarray(pd.to_numeric(table[name].astype(object), errors="coerce"), float)
