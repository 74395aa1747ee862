"""A shaded picture of a map, rendered in software: no browser, no OpenGL, nothing to install."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryoai.io.atomic import atomic_path
from cryoai.report.surface import choose_level, resample_map

# Rotations about x, y and z in degrees; z of the map points at the viewer in the first.
DEFAULT_VIEWS = ((0.0, 0.0, 0.0), (0.0, 90.0, 0.0), (-90.0, 0.0, 0.0))
_SUPERSAMPLING = 2
_LARGEST_BOX = 160
_MARGIN = 1.12
_LIGHT = np.array((-0.45, -0.60, 0.66))
_FILL_LIGHT = np.array((0.75, 0.25, 0.45))
# From the centre of the particle to its rim.
_COLOURS = np.array(
    ((0.93, 0.55, 0.28), (0.96, 0.80, 0.56), (0.80, 0.88, 0.83), (0.42, 0.70, 0.84), (0.20, 0.47, 0.72))
)
# Scales, in shares of the box, at which neighbouring density takes away ambient light.
_OCCLUSION_SCALES = (0.012, 0.03, 0.06)


@dataclass(frozen=True, eq=False)
class _Scene:
    """A map resampled for rendering, with what shading needs."""

    density: Float[np.ndarray, "z y x"]
    spline: Float[np.ndarray, "z y x"]
    slopes: tuple[Float[np.ndarray, "z y x"], ...]
    occlusion: tuple[Float[np.ndarray, "z y x"], ...]
    level: float
    centre: Float[np.ndarray, " 3"]
    offsets: Float[np.ndarray, "inside 3"]
    radius: float
    inner_radius: float

    @property
    def box_size(self) -> int:
        return len(self.density)


def render_map(
    density: Float[np.ndarray, "box box box"],
    voxel_size: float,
    path: Path,
    size: tuple[int, int] = (1500, 540),
    views: tuple[tuple[float, float, float], ...] = DEFAULT_VIEWS,
    level: float | None = None,
) -> None:
    """Write a PNG of a map's isosurface, several views side by side.

    Parameters
    ----------
    density
        Protein positive.
    voxel_size
        Å; gives the scale bar.
    path
        The PNG.
    size
        Width and height, px.
    views
        One picture each: rotations about the map's x, y and z axes, degrees. All share one scale.
    level
        Density at the surface; chosen automatically if None.
    """
    from PIL import Image

    pixels, pixel_size = _render(density, voxel_size, size, views, level)
    image = Image.fromarray(pixels)
    if pixel_size > 0:
        _draw_scale_bar(image, pixel_size)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def _render(
    density: Float[np.ndarray, "box box box"],
    voxel_size: float,
    size: tuple[int, int],
    views: tuple[tuple[float, float, float], ...],
    level: float | None,
) -> tuple[np.ndarray, float]:
    """RGB pixels and their size in Å (0 for an empty picture)."""
    width, height = size
    canvas = np.full((height, width, 3), 255, np.uint8)
    scene = _prepare(density, level)
    if scene is None:
        return canvas, 0.0
    columns = np.linspace(0, width, len(views) + 1).round().astype(int)
    extents = [np.abs(scene.offsets @ _axes(view)[:2].T).max(0) + 1 for view in views]
    room = np.array((np.diff(columns).min(), height)) / 2
    scale = float((room / (_MARGIN * np.max(extents, axis=0))).min())
    for view, left, right in zip(views, columns[:-1], columns[1:], strict=True):
        canvas[:, left:right] = _render_view(scene, view, (int(right - left), height), scale)
    return canvas, voxel_size * density.shape[0] / scene.box_size / scale


def _prepare(density: Float[np.ndarray, "box box box"], level: float | None) -> _Scene | None:
    level = choose_level(density) if level is None else level
    if not density.min() < level < density.max():
        return None
    # Padding to a finer box is exact interpolation: what is left to do by splines is harmless.
    fine = resample_map(density, min(_LARGEST_BOX, 2 * density.shape[0]))
    inside = np.argwhere(fine > level)
    if len(inside) == 0:
        return None
    centre = (inside.min(0) + inside.max(0)) / 2
    distance = np.linalg.norm(inside - centre, axis=1)
    soft = np.clip((fine - 0.5 * level) / level, 0, 1).astype(np.float32)
    occlusion = tuple(ndimage.gaussian_filter(soft, s * len(fine), mode="constant") for s in _OCCLUSION_SCALES)
    return _Scene(
        fine, ndimage.spline_filter(fine, 3).astype(np.float32), tuple(np.gradient(fine)), occlusion, level, centre,
        (inside - centre)[:, ::-1], float(distance.max()), float(np.percentile(distance, 25)),
    )  # fmt: skip


def _axes(view: tuple[float, float, float]) -> Float[np.ndarray, "3 3"]:
    """The picture's right, down and towards the viewer, one row each, as directions of the map (xyz)."""
    return np.diag((1.0, -1.0, 1.0)) @ Rotation.from_euler("xyz", view, degrees=True).as_matrix()


def _render_view(
    scene: _Scene, view: tuple[float, float, float], size: tuple[int, int], scale: float
) -> np.ndarray:
    """RGB pixels of one view; ``scale`` is pixels per voxel."""
    width, height = (_SUPERSAMPLING * n for n in size)
    axes = _axes(view)
    step = 1 / (_SUPERSAMPLING * scale)
    x = (np.arange(width) - (width - 1) / 2) * step
    y = (np.arange(height) - (height - 1) / 2) * step
    depth = _first_hit(scene, axes, x, y)
    hit = np.isfinite(depth)
    rows, columns = np.nonzero(hit)
    seen = np.stack((x[columns], y[rows], depth[hit]), 1)
    points = (seen @ axes)[:, ::-1].T + scene.centre[:, None]
    image = np.ones((height, width, 3), np.float32)
    image[hit] = _shade(scene, axes, points)
    image *= _outline(depth, scene.radius)[..., None]
    pooled = image.reshape(size[1], _SUPERSAMPLING, size[0], _SUPERSAMPLING, 3).mean((1, 3))
    return (255 * np.clip(pooled, 0, 1) ** (1 / 1.1)).round().astype(np.uint8)


def _first_hit(
    scene: _Scene, axes: Float[np.ndarray, "3 3"], x: Float[np.ndarray, " w"], y: Float[np.ndarray, " h"]
) -> Float[np.ndarray, "h w"]:
    """Height at which each ray, coming from the viewer, first meets the level; -inf where it never does.

    The map is turned once; then rays are slabs of a turned grid, interpolated to pixels by two matrix products.
    """
    reach = int(np.ceil(scene.radius)) + 2
    axis = np.arange(-reach, reach + 1, dtype=np.float64)
    # Turned grid indices (height, y, x) to map indices (z, y, x): both reversed to xyz for the rotation.
    matrix = axes.T[::-1, ::-1]
    origin = scene.centre + matrix @ np.full(3, -float(reach))
    turned = ndimage.affine_transform(
        scene.spline,
        matrix,
        origin.tolist(),
        output_shape=(len(axis),) * 3,
        order=3,
        mode="constant",
        prefilter=False,
    )
    across, down = _linear_weights(x, axis), _linear_weights(y, axis)
    depth = np.full((len(y), len(x)), -np.inf, np.float32)
    before = np.zeros_like(depth)
    for height, slab in zip(axis[::-1], turned[::-1], strict=True):
        if slab.max() < scene.level and not (before >= scene.level).any():
            before = np.zeros_like(depth)
            continue
        now = down @ slab @ across.T
        new = (now >= scene.level) & np.isneginf(depth)
        share = (now[new] - scene.level) / np.maximum(now[new] - before[new], 1e-12)
        depth[new] = height + np.clip(share, 0, 1)
        before = now
    return depth


def _linear_weights(at: Float[np.ndarray, " m"], axis: Float[np.ndarray, " n"]) -> Float[np.ndarray, "m n"]:
    return np.clip(1 - np.abs(at[:, None] - axis), 0, 1).astype(np.float32)


def _shade(
    scene: _Scene, axes: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "3 m"]
) -> Float[np.ndarray, "m rgb"]:
    """Colour of surface points (map indices zyx): two lights, a highlight, ambient occlusion, depth cue."""
    slopes = [ndimage.map_coordinates(g, points, order=1) for g in scene.slopes]
    normal = -np.stack(slopes[::-1], 1) @ axes.T
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    light, fill = (direction / np.linalg.norm(direction) for direction in (_LIGHT, _FILL_LIGHT))
    half_way = light + np.array((0.0, 0.0, 1.0))
    half_way /= np.linalg.norm(half_way)
    diffuse = np.clip(normal @ light, 0, 1)
    filling = np.clip(normal @ fill, 0, 1)
    highlight = np.clip(normal @ half_way, 0, 1) ** 40
    ambient = _open_sky(scene, axes, normal, points)
    offset = points - scene.centre[:, None]
    distance = np.linalg.norm(offset, axis=0)
    stops = np.linspace(0.6 * scene.inner_radius, 0.9 * scene.radius, len(_COLOURS))
    colour = np.stack([np.interp(distance, stops, channel) for channel in _COLOURS.T], 1)
    towards_viewer = (offset[::-1].T @ axes[2]) / scene.radius
    fog = np.clip(0.16 - 0.20 * towards_viewer, 0, 0.36)[:, None]
    brightness = ambient * (0.58 + 0.18 * filling) + (0.35 + 0.65 * ambient) * 0.60 * diffuse
    lit = colour * brightness[:, None] + 0.12 * (highlight * ambient)[:, None]
    return (lit * (1 - fog) + fog * np.array((0.95, 0.965, 0.98))).astype(np.float32)


def _open_sky(
    scene: _Scene,
    axes: Float[np.ndarray, "3 3"],
    normal: Float[np.ndarray, "m 3"],
    points: Float[np.ndarray, "3 m"],
) -> Float[np.ndarray, " m"]:
    """Ambient light that reaches each point, 0 to 1: less of it where blurred density stands above the surface."""
    outward = (normal @ axes)[:, ::-1].T
    sky = np.ones(points.shape[1])
    for scale, blurred in zip(_OCCLUSION_SCALES, scene.occlusion, strict=True):
        above = points + outward * (1.2 * scale * scene.box_size)
        sky *= 1 - 0.75 * np.clip(ndimage.map_coordinates(blurred, above, order=1), 0, 1)
    return np.clip(sky * 1.25, 0.08, 1)


def _outline(depth: Float[np.ndarray, "h w"], radius: float) -> Float[np.ndarray, "h w"]:
    """Darken where the surface breaks off: 1 elsewhere."""
    filled = np.where(np.isfinite(depth), depth, -1.5 * radius)
    drop = ndimage.maximum_filter(filled, 3) - filled
    line = np.clip((drop / radius - 0.10) / 0.25, 0, 1)
    return 1 - 0.45 * ndimage.gaussian_filter(line, 0.7)


def _draw_scale_bar(image, pixel_size: float) -> None:
    """A bar of a round length at the lower right; in nm, since Pillow's own font has no Å."""
    from PIL import ImageDraw, ImageFont

    width, height = image.size
    target = 0.09 * width * pixel_size
    step = 10 ** np.floor(np.log10(target))
    length = max(f * step for f in (1, 2, 5) if f * step <= target)
    bar = round(length / pixel_size)
    right, bottom = width - round(0.03 * height), height - round(0.035 * height)
    draw = ImageDraw.Draw(image)
    ink, font_size = (70, 82, 96), max(10, round(0.032 * height))
    draw.rectangle((right - bar, bottom - max(2, height // 180), right, bottom), fill=ink)
    draw.text(
        (right - bar / 2, bottom - height // 90), f"{length / 10:g} nm", fill=ink, anchor="mb",
        font=ImageFont.load_default(font_size),
    )  # fmt: skip
