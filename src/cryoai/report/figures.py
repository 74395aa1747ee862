"""The report's interactive figures. Particles are binned first: no figure grows with their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from cryoai.metrics.fsc import CorrectedFsc
from cryoai.report.surface import make_surfaces
from cryoai.training.trainer import StepRecord

_INK, _GRID, _ACCENT = "#1f2a37", "#e5e9ef", "#2563a8"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
# The colours of the rendered picture, from the centre of the particle to its rim.
_RADIAL_SCALE = [[0, "#ed8c47"], [0.25, "#f5cc8f"], [0.5, "#cce0d4"], [0.75, "#6bb3d6"], [1, "#3378b8"]]
_LEVEL_FACTORS = {"low": 0.6, "medium": 1.0, "high": 1.5}
_MOST_VERTICES = 80_000
_MOST_POINTS = 500
_COARSE_BOX = 72
# Viewing directions: particles per bin that keep counting noise readable, and the finest division of 180°.
_PARTICLES_PER_BIN, _MOST_LATITUDES = 12, 45


def make_surface_figure(density: Float[np.ndarray, "box box box"]) -> go.Figure | None:
    """Isosurfaces at three levels with buttons to choose; None for a map without any surface."""
    surfaces = make_surfaces(density, tuple(_LEVEL_FACTORS.values()), _MOST_VERTICES)
    if not surfaces or surfaces[0].box_size < min(_COARSE_BOX, density.shape[0]):
        # So much detail fits only once: one fine surface tells more than three coarse ones.
        surfaces = make_surfaces(density, (1.0,), _MOST_VERTICES)
    if not surfaces:
        return None
    shown = len(surfaces) // 2
    figure = go.Figure()
    reach = 0.0
    for number, surface in enumerate(surfaces):
        distance = np.linalg.norm(surface.vertices.astype(np.float32), axis=1)
        reach = max(reach, float(np.abs(surface.vertices).max()))
        index = np.uint16 if len(surface.vertices) <= np.iinfo(np.uint16).max else np.int32
        x, y, z = surface.vertices.T.copy()
        i, j, k = surface.faces.astype(index).T.copy()
        figure.add_mesh3d(
            x=x, y=y, z=z, i=i, j=j, k=k, visible=number == shown,
            intensity=(255 * distance / max(distance.max(), 1)).astype(np.uint8),
            colorscale=_RADIAL_SCALE, cmin=40, cmax=235, showscale=False, hoverinfo="skip", flatshading=False,
            lighting={"ambient": 0.45, "diffuse": 0.75, "specular": 0.18, "roughness": 0.6, "fresnel": 0.1},
            lightposition={"x": -60_000, "y": 80_000, "z": 100_000},
        )  # fmt: skip
    axis = {"visible": False, "range": [-reach, reach]}
    _style(figure, 520)
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube", "dragmode": "orbit",
            # In perspective: plotly.js lights orthographic meshes wrongly. y is up and x to the right at first.
            "camera": {"eye": {"x": 0.0, "y": -0.4, "z": 1.6}, "up": {"x": 0, "y": 1, "z": 0}},
        },
        updatemenus=[_level_menu([s.level for s in surfaces], shown)] if len(surfaces) > 1 else [],
    )  # fmt: skip
    return figure


def _level_menu(levels: list[float], shown: int) -> dict:
    buttons = [
        {
            "label": f"level {level:.3g}",
            "method": "restyle",
            "args": ["visible", [n == i for n in range(len(levels))]],
        }
        for i, level in enumerate(levels)
    ]
    return {
        "type": "buttons", "direction": "right", "buttons": buttons, "active": shown, "showactive": True,
        "x": 0.02, "xanchor": "left", "y": 0.02, "yanchor": "bottom", "bgcolor": "#ffffff", "bordercolor": _GRID,
        "font": {"size": 12}, "pad": {"l": 0, "b": 0},
    }  # fmt: skip


def make_fsc_figure(fsc: CorrectedFsc) -> go.Figure:
    """The four half-map curves over spatial frequency, with the thresholds 0.143 and 0.5."""
    curve = fsc.corrected
    length = curve.box_size * curve.voxel_size
    figure = go.Figure()
    for name, values, line in (
        ("phase-randomised", fsc.randomised.correlation, {"color": "#9aa4b2", "width": 1.5, "dash": "dot"}),
        ("unmasked", fsc.unmasked.correlation, {"color": "#d08a2e", "width": 1.8}),
        ("masked", fsc.masked.correlation, {"color": "#3b9c8f", "width": 1.8}),
        ("corrected", curve.correlation, {"color": _ACCENT, "width": 3}),
    ):
        figure.add_scatter(
            x=np.concatenate(([0.0], curve.shell / length)), y=np.concatenate(([1.0], values)), name=name,
            mode="lines", line=line, customdata=np.concatenate(([np.inf], length / curve.shell)),
            hovertemplate="%{y:.3f} at %{customdata:.2f} Å<extra>" + name + "</extra>",
        )  # fmt: skip
    for threshold in (0.143, 0.5):
        figure.add_hline(
            threshold, line={"color": "#8b95a3", "width": 1, "dash": "dash"}, annotation_text=f"{threshold}",
            annotation_position="top left", annotation_font={"size": 11, "color": "#6b7686"},
        )  # fmt: skip
    crossing = curve.crossing(0.143) / length
    figure.add_vline(crossing, line={"color": _ACCENT, "width": 1, "dash": "dash"})
    _style(figure, 400, x="resolution, Å (linear in spatial frequency, 1/Å)", y="Fourier shell correlation")
    nyquist = 1 / (2 * curve.voxel_size)
    ticks = np.linspace(0, nyquist, 9)[1:]
    figure.update_xaxes(tickvals=ticks, ticktext=[f"{1 / t:.3g}" for t in ticks], range=[0, nyquist * 1.005])
    lowest = float(min(-0.05, np.min(curve.correlation) - 0.03, np.min(fsc.unmasked.correlation) - 0.03))
    figure.update_yaxes(range=[max(lowest, -0.4), 1.03])
    figure.update_layout(
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "reversed"}
    )
    return figure


def make_orientation_figure(rotation: Float[np.ndarray, "n 3 3"]) -> go.Figure:
    """Viewing directions on a Mollweide map; 1 is what a uniform distribution would give."""
    x, y, inside, longitude, sine = _mollweide_raster(300)
    density = viewing_density(rotation)
    rows = np.clip(((sine + 1) / 2 * density.shape[0]).astype(int), 0, density.shape[0] - 1)
    columns = np.clip(((longitude / np.pi + 1) / 2 * density.shape[1]).astype(int), 0, density.shape[1] - 1)
    values = np.where(inside, density[rows, columns], np.nan).astype(np.float32)
    figure = go.Figure()
    figure.add_heatmap(
        x=x, y=y, z=values, colorscale=[[0, "#f4f7fa"], [0.25, "#a9cfe3"], [0.6, "#2f7fb5"], [1, "#12325c"]],
        zmin=0, zmax=max(2.0, float(np.percentile(density, 99.5))), hoverinfo="skip",
        colorbar={"title": {"text": "× uniform", "side": "right"}, "thickness": 12, "len": 0.85, "outlinewidth": 0},
    )  # fmt: skip
    for line_x, line_y in _graticule():
        figure.add_scatter(
            x=line_x, y=line_y, mode="lines", line={"color": "rgba(31,42,55,0.22)", "width": 0.8},
            hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    _style(figure, 330)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    return figure


def viewing_density(rotation: Float[np.ndarray, "n 3 3"]) -> Float[np.ndarray, "latitudes longitudes"]:
    """Particles per solid angle over the mean, in bins of equal area.

    The direction a particle is seen from is the image's z axis in the volume, ``R [0, 0, 1]``.

    Parameters
    ----------
    rotation
        Maps image coordinates to volume coordinates.

    Returns
    -------
    np.ndarray
        Rows in steps of ``sin(latitude)`` from the south pole, columns in longitude from -π.
    """
    direction = rotation[:, :, 2]
    latitudes = int(np.clip(np.sqrt(len(direction) / _PARTICLES_PER_BIN / 2), 4, _MOST_LATITUDES))
    counts, _, _ = np.histogram2d(
        np.clip(direction[:, 2], -1, 1), np.arctan2(direction[:, 1], direction[:, 0]),
        bins=(latitudes, 2 * latitudes), range=((-1, 1), (-np.pi, np.pi)),
    )  # fmt: skip
    return counts / max(counts.mean(), 1e-12)


def _mollweide_raster(
    width: int,
) -> tuple[
    Float[np.ndarray, " w"],
    Float[np.ndarray, " h"],
    Bool[np.ndarray, "h w"],
    Float[np.ndarray, "h w"],
    Float[np.ndarray, "h w"],
]:
    """Pixel coordinates, whether they are on the globe, and longitude and sin(latitude) of each."""
    x, y = np.linspace(-2, 2, width), np.linspace(-1, 1, width // 2)
    theta = np.arcsin(y)[:, None]
    sine = (2 * theta + np.sin(2 * theta)) / np.pi
    longitude = np.pi * x / (2 * np.maximum(np.cos(theta), 1e-9))
    inside = np.abs(longitude) <= np.pi
    return x, y, inside, np.clip(longitude, -np.pi, np.pi), np.broadcast_to(sine, inside.shape).copy()


def _graticule() -> list[tuple[np.ndarray, np.ndarray]]:
    """Meridians and parallels every 30° of longitude and latitude."""
    theta = np.linspace(-np.pi / 2, np.pi / 2, 61)
    meridians = [(2 * lon / 180 * np.cos(theta), np.sin(theta)) for lon in range(-180, 181, 30)]
    fine = np.linspace(-np.pi / 2, np.pi / 2, 2001)
    sines = (2 * fine + np.sin(2 * fine)) / np.pi
    at = np.interp(np.sin(np.radians([-60, -30, 0, 30, 60])), sines, fine)
    return meridians + [(np.array([-2, 2]) * np.cos(t), np.full(2, np.sin(t))) for t in at]


def make_histogram(
    values: Float[np.ndarray, " n"], label: str, limits: tuple[float, float] | None = None
) -> go.Figure:
    """Bars of one quantity; without limits the highest 1 % is gathered in the last bar."""
    values = values[np.isfinite(values)].astype(np.float64)
    if limits is None:
        top = float(np.percentile(values, 99)) if len(values) else 1.0
        limits = (0.0, top if top > 0 else 1.0)
    counts, edges = np.histogram(np.clip(values, *limits), bins=40, range=limits)
    figure = go.Figure()
    figure.add_bar(
        x=(edges[1:] + edges[:-1]) / 2, y=counts, width=np.diff(edges) * 0.94, marker={"color": _ACCENT},
        hovertemplate="%{y:,} particles at %{x:.3g}<extra></extra>",
    )  # fmt: skip
    _style(figure, 260, x=label, y="particles")
    return figure


def make_translation_figure(translation: Float[np.ndarray, "n 2"]) -> go.Figure:
    """Where the particles lie in their images, binned."""
    # Most of the range belongs to a few outliers; they are gathered at the border.
    reach = max(float(np.percentile(np.abs(translation), 99.5)) if len(translation) else 1.0, 1e-3)
    edges = np.linspace(-reach, reach, 42)
    x, y = np.clip(translation.astype(np.float64), -reach, reach).T
    counts, _, _ = np.histogram2d(y, x, bins=(edges, edges))
    centres = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure()
    figure.add_heatmap(
        x=centres, y=centres, z=counts.astype(np.int32), showscale=False,
        colorscale=[[0, "#ffffff"], [0.3, "#a9cfe3"], [1, "#12325c"]],
        hovertemplate="%{z:,} particles<br>x %{x:.1f} Å, y %{y:.1f} Å<extra></extra>",
    )  # fmt: skip
    _style(figure, 300, x="x, Å", y="y, Å")
    figure.update_yaxes(scaleanchor="x", constrain="domain", zeroline=False)
    figure.update_xaxes(constrain="domain", zeroline=False)
    return figure


def make_training_figure(history: Sequence[StepRecord]) -> go.Figure | None:
    """Losses of encoder and volume over the steps, smoothed; None where nothing was trained."""
    if not history:
        return None
    figure = go.Figure()
    steps = np.array([record.step + 1 for record in history])
    for name, colour in (("encoder", _ACCENT), ("volume", "#d9792b")):
        loss = np.array([getattr(record, f"{name}_loss") for record in history])
        loss = np.asarray(pd.Series(loss).rolling(max(1, len(loss) // 50), min_periods=1).mean())
        if np.isfinite(loss).any():
            chosen = slice(None, None, max(1, len(loss) // _MOST_POINTS))
            line = {"color": colour, "width": 2}
            figure.add_scatter(x=steps[chosen], y=loss[chosen], mode="lines", name=f"{name} loss", line=line)
    _style(figure, 300, "step", "loss")
    figure.update_layout(showlegend=True)
    return figure


def _style(figure: go.Figure, height: int, x: str | None = None, y: str | None = None) -> None:
    figure.update_layout(
        template=go.layout.Template(), height=height, paper_bgcolor="#ffffff", plot_bgcolor="#ffffff",
        font={"family": _FONT, "size": 13, "color": _INK}, margin={"l": 60, "r": 16, "t": 16, "b": 48},
        bargap=0, showlegend=x is not None and y == "Fourier shell correlation", autosize=True,
    )  # fmt: skip
    frame = {"showline": True, "linecolor": "#b6bfcb", "gridcolor": _GRID, "zeroline": False, "ticks": "outside"}
    figure.update_xaxes(title={"text": x}, tickcolor="#b6bfcb", **frame)
    figure.update_yaxes(title={"text": y}, tickcolor="#b6bfcb", **frame)
