"""Central slices and projections of a map as small embedded pictures."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_SMALLEST_SIDE = 192
# Share of the highest density below which a voxel may be cropped away.
_OUTSTANDING = 0.1
# Axis of the map looked along: the array axis, and what is seen to the right and upwards.
_AXES = (("z", 0, "x →, y ↑"), ("y", 1, "x →, z ↑"), ("x", 2, "y →, z ↑"))


@dataclass(frozen=True)
class Thumbnail:
    """A picture for the report.

    Attributes
    ----------
    title, caption
        What it shows.
    uri
        PNG as a ``data:`` address.
    """

    title: str
    caption: str
    uri: str


def make_slices(density: Float[np.ndarray, "box box box"]) -> list[Thumbnail]:
    """The three central slices, all on one grey scale; protein is white."""
    density = _crop(density)
    images = [density.take(density.shape[0] // 2, axis) for _, axis, _ in _AXES]
    return _thumbnails(images, "Slice across {}")


def make_projections(density: Float[np.ndarray, "box box box"]) -> list[Thumbnail]:
    """The sums along the three axes, all on one grey scale; protein is white."""
    density = _crop(density)
    return _thumbnails([density.sum(axis) for _, axis, _ in _AXES], "Projection along {}")


def png_uri(png: bytes) -> str:
    """A PNG as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _crop(density: Float[np.ndarray, "box box box"]) -> Float[np.ndarray, "new new new"]:
    """The central cube that holds all that stands out; the rest of the box is empty."""
    centre = density.shape[0] // 2
    outstanding = np.argwhere(density > _OUTSTANDING * max(float(density.max()), 0.0))
    reach = centre if len(outstanding) == 0 else min(centre, int(1.15 * np.abs(outstanding - centre).max()) + 2)
    kept = slice(centre - reach, centre + reach)
    return density[kept, kept, kept]


def _thumbnails(images: list[np.ndarray], title: str) -> list[Thumbnail]:
    low, high = np.percentile(np.stack(images), (1, 99.9))
    return [
        Thumbnail(title.format(name), caption, _encode((image - low) / max(high - low, 1e-20)))
        for image, (name, _, caption) in zip(images, _AXES, strict=True)
    ]


def _encode(image: Float[np.ndarray, "h w"]) -> str:
    from PIL import Image

    # Rows count upwards in a map and downwards on a screen.
    grey = Image.fromarray((255 * np.clip(image[::-1], 0, 1)).round().astype(np.uint8))
    if grey.width < _SMALLEST_SIDE:
        grey = grey.resize((_SMALLEST_SIDE, _SMALLEST_SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    grey.save(buffer, format="PNG", optimize=True)
    return png_uri(buffer.getvalue())
