"""What half-maps agree on beyond what looks alike from all sides."""

import pytest
import torch

from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.fsc import FscCurve, compute_fsc
from cryoai.metrics.round_part import compute_fsc_of_views

CENTRE = torch.tensor([0.8, -0.6, 0.3])


def make_ball(box: int, radius: float, centre: torch.Tensor) -> torch.Tensor:
    """With an edge of about a pixel and a half; ``centre`` px from that of the box."""
    axis = torch.arange(box) - box // 2 + 0.0
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    return torch.sigmoid((radius - (grid - centre).norm(dim=-1)) / 0.8)


def make_halves(density: torch.Tensor, noise: float = 0.15) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two noisy copies, and a mask."""
    generator, box = torch.Generator().manual_seed(0), density.shape[-1]
    first, second = (density + noise * torch.randn(box, box, box, generator=generator) for _ in (0, 1))
    return first, second, make_soft_sphere(box, 0.45 * box, 4.0)


def mean(curve: FscCurve, first: int, last: int) -> float:
    """Over the coefficients of some shells."""
    shells = curve.shell[first - 1 : last]
    return float((shells**2 * curve.correlation[first - 1 : last]).sum() / (shells**2).sum())


@pytest.mark.parametrize("box", [40, 41, 66])
def test_halves_of_a_ball_agree_on_nothing_that_tells_views_apart(box: int) -> None:
    first, second, mask = make_halves(make_ball(box, 0.2 * box, CENTRE))
    whole, views = compute_fsc(first, second, mask), compute_fsc_of_views(first, second, mask)
    assert mean(whole, 1, 6) > 0.6
    assert abs(mean(views, 4, 12)) < 0.05


@pytest.mark.parametrize("box", [40, 41, 66])
def test_halves_of_two_balls_agree_as_before(box: int) -> None:
    aside = torch.tensor([0.0, 0.0, 0.13 * box])
    first, second, mask = make_halves(make_ball(box, 0.12 * box, aside) + make_ball(box, 0.12 * box, -aside))
    whole, views = compute_fsc(first, second, mask), compute_fsc_of_views(first, second, mask)
    assert mean(views, 3, 6) > 0.9 * mean(whole, 3, 6) > 0.4
    assert len(views.shell) == len(whole.shell) if box <= 64 else views.box_size == 64


def test_a_map_of_nothing_tells_nothing() -> None:
    empty = torch.zeros(32, 32, 32)
    assert (compute_fsc_of_views(empty, empty, empty).correlation == 0).all()
