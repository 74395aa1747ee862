import numpy as np
import pytest
import torch

from cryoai.geometry.fourier import fft3
from cryoai.geometry.half_space import fold_to_half_space, read_half_space, trilinear_neighbours
from cryoai.geometry.shells import (
    half_space_axes,
    half_space_radius,
    mean_per_shell,
    radial_distance,
    sum_per_shell,
)
from cryoai.geometry.soft_masks import make_soft_sphere, soften_mask


@pytest.fixture(params=[16, 17])
def box(request):
    return request.param


def test_half_space_axes_and_radius_are_those_of_the_transform(box):
    axis = torch.arange(box) - box // 2
    for place, wave in enumerate(((0, 3, 2), (-4, 0, 1))):  # zyx
        phase = 2 * torch.pi / box * (wave[0] * axis[:, None, None] + wave[1] * axis[:, None] + wave[2] * axis)
        spectrum = fft3(torch.cos(phase)).abs()
        at = np.unravel_index(int(spectrum.argmax()), spectrum.shape)
        found = [k.broadcast_to(spectrum.shape)[at].item() for k in half_space_axes(spectrum.shape)]
        assert found == list(wave), place
        assert half_space_radius(spectrum.shape)[at].item() == pytest.approx(np.linalg.norm(wave))
        assert half_space_radius(spectrum.shape, 2)[at].item() == pytest.approx(np.linalg.norm(wave) / 2)


def test_sums_and_means_over_shells():
    values = torch.randn(2, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shell = torch.arange(50) % 4
    shell[shell == 2] = 5  # shells 2 and 4 are empty
    for count in (6, 8):
        total, mean = (f(values, shell, count) for f in (sum_per_shell, mean_per_shell))
        assert total.shape == mean.shape == (2, 3, count)
        for s in range(count):
            chosen = values[..., shell == s]
            torch.testing.assert_close(total[..., s], chosen.sum(-1))
            expected = chosen.mean(-1) if chosen.shape[-1] else torch.zeros_like(total[..., s])
            torch.testing.assert_close(mean[..., s], expected)
    torch.testing.assert_close(sum_per_shell(values, shell), sum_per_shell(values, shell, 6))
    assert sum_per_shell(torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)


def test_soft_sphere_is_one_inside_and_zero_outside(box):
    mask, distance = make_soft_sphere(box, 7, edge_px=4), radial_distance(box, 3)
    assert (mask[distance <= 3] == 1).all() and (mask[distance >= 7] == 0).all()
    assert mask[distance == 5].unique().tolist() == pytest.approx([0.5])
    default = make_soft_sphere(box)
    assert (default[distance >= box / 2 - 1] == 0).all() and (default[distance <= box / 2 - 4] == 1).all()


def test_softened_mask_grows_and_falls_by_a_cosine():
    core = np.zeros(20, bool)
    core[:5] = True
    mask = soften_mask(core, 2.0, 4.0)
    expected = [1.0] * 7 + [0.5 + 0.5 * np.cos(np.pi * d / 4) for d in (1, 2, 3)] + [0.0] * 10
    np.testing.assert_allclose(mask, expected, atol=1e-12)


def test_reading_the_half_space_is_trilinear_and_hermitian():
    reach = 4
    shape = (2 * reach + 1, 2 * reach + 1, reach + 1)
    generator = torch.Generator().manual_seed(0)
    # A trilinear function is read exactly: real part even, imaginary part odd.
    z, y, x = (k.double() for k in half_space_axes(shape))
    real, imaginary = 2.0 + x * z - 3 * y * z, x - 2 * y + 0.5 * z
    channels = torch.stack((real.expand(shape), imaginary.expand(shape)))
    points = (2 * torch.rand(3, 40, 3, generator=generator, dtype=torch.float64) - 1) * (reach - 1)
    px, py, pz = points.unbind(-1)
    expected = torch.complex(2.0 + px * pz - 3 * py * pz, px - 2 * py + 0.5 * pz)
    torch.testing.assert_close(read_half_space(channels, points), expected)

    index, weight, fraction, flipped = trilinear_neighbours(shape, points)
    torch.testing.assert_close(weight.sum(1), torch.ones(120, dtype=torch.float64))
    assert ((fraction >= 0) & (fraction < 1)).all()
    values = (channels.flatten(1)[:, index] * weight).sum(-1).view(2, 3, 40)
    sign = torch.where(flipped, -1.0, 1.0)
    torch.testing.assert_close(torch.complex(values[0], values[1] * sign), expected)

    folded, mates = fold_to_half_space(points)
    assert (folded[..., 0] >= 0).all() and torch.equal(mates, px < 0)
    torch.testing.assert_close(folded[mates], -points[mates])
