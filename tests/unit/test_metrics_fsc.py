import numpy as np
import pytest
import torch

from cryoai.geometry.fourier import fft3, ifft3, largest_radius
from cryoai.geometry.shells import half_space_radius
from cryoai.geometry.soft_masks import make_soft_sphere
from cryoai.metrics.fsc import FscCurve, compute_fsc, phase_randomised_fsc


@pytest.fixture(params=[32, 33])
def box(request):
    return request.param


def noise(box, seed):
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))


def test_map_with_itself_is_one_and_its_negative_minus_one(box):
    volume = noise(box, 0)
    curve = compute_fsc(volume, volume)
    np.testing.assert_array_equal(curve.shell, np.arange(1, largest_radius(box) + 1))
    np.testing.assert_allclose(curve.correlation, 1, atol=1e-6)
    np.testing.assert_allclose(compute_fsc(volume, -3 * volume).correlation, -1, atol=1e-6)
    assert curve.crossing(0.5) == box / 2
    assert curve.resolution_px(0.5) == 2


def test_independent_noise_is_uncorrelated(box):
    curve = compute_fsc(noise(box, 0), noise(box, 1))
    assert np.abs(curve.correlation[3:]).max() < 0.15


def test_same_as_the_full_transform(box):
    a, b = noise(box, 0).double(), noise(box, 1).double() + 0.7 * noise(box, 0)
    spectra = [np.fft.fftn(np.fft.ifftshift(v.numpy())) for v in (a, b)]
    k = np.fft.fftfreq(box, 1 / box)
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round()
    curve = compute_fsc(a, b)
    for s, value in zip(curve.shell, curve.correlation, strict=True):
        fa, fb = (f[shell == s] for f in spectra)
        expected = (fa * fb.conj()).sum().real / np.sqrt((abs(fa) ** 2).sum() * (abs(fb) ** 2).sum())
        assert value == pytest.approx(expected, abs=1e-9)


def test_crossing_interpolates_and_takes_the_first():
    curve = FscCurve(np.arange(1, 6), np.array([0.9, 0.7, 0.3, 0.8, 0.1]), 12, voxel_size=3.0)
    assert curve.crossing(0.5) == pytest.approx(2.5)
    assert curve.resolution_px(0.5) == pytest.approx(12 / 2.5)
    assert curve.resolution_angstrom(0.5) == pytest.approx(3 * 12 / 2.5)
    assert curve.crossing(0.95) == pytest.approx(0.5)  # shell 0 counts as 1
    assert curve.crossing(0.05) == 6


def test_empty_map_gives_zero():
    assert np.all(compute_fsc(torch.zeros(16, 16, 16), noise(16, 0)).correlation == 0)


@pytest.mark.parametrize("box", [48, 49])
@pytest.mark.parametrize("seed", [0, 10, 20])
def test_phase_randomisation_removes_the_correlation_made_by_the_mask(box, seed):
    # Both halves share eight strong shells and nothing else: whatever correlates beyond, the tight mask has leaked.
    spectrum = fft3(noise(box, seed))
    signal = 40 * ifft3(spectrum * (half_space_radius(spectrum.shape) <= 8.5), box)
    mask = make_soft_sphere(box, radius_px=12, edge_px=1.5)
    generator = torch.Generator().manual_seed(0)
    curves = phase_randomised_fsc(signal + noise(box, seed + 1), signal + noise(box, seed + 2), mask, generator)
    assert curves.randomisation_shell == 9
    beyond = curves.masked.shell >= 9 + 2
    assert np.abs(curves.unmasked.correlation[beyond]).max() < 0.05
    assert curves.masked.correlation[beyond].mean() > 0.6
    assert np.sqrt((curves.corrected.correlation[beyond] ** 2).mean()) < 0.12
    assert curves.masked.resolution_px(0.143) == 2 < curves.corrected.resolution_px(0.25)
    np.testing.assert_array_equal(curves.corrected.correlation[~beyond], curves.masked.correlation[~beyond])


def test_correction_formula():
    box = 32
    half1, half2 = noise(box, 5), noise(box, 5) + 0.8 * noise(box, 6)
    curves = phase_randomised_fsc(half1, half2, make_soft_sphere(box), torch.Generator().manual_seed(1))
    total, mask_part = curves.masked.correlation, curves.randomised.correlation
    rows = curves.masked.shell >= curves.randomisation_shell + 2
    np.testing.assert_allclose(
        curves.corrected.correlation[rows], ((total - mask_part) / (1 - mask_part))[rows], atol=1e-9
    )
