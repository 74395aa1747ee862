"""Transforms of a box in a larger one, axis by axis: zeros are not transformed, nor what is cut off in the end.

Of a box padded to twice its size that is little more than half of the work, and a third of the memory.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def fft3_padded(
    density: Float[Tensor, "box box box"], padded_size: int, shape: tuple[int, int, int]
) -> Complex[Tensor, "z y x"]:
    """`fft3` of a centred box with zeros around it, of which the innermost coefficients are kept.

    Parameters
    ----------
    density
        The box.
    padded_size
        Its size with the zeros.
    shape
        (z, y, x) of the result: z and y centred at ``size // 2``, x from 0; zeros where the transform has no more.
    """
    values = torch.fft.rfft(_spread(density, 2, padded_size), dim=2)[:, :, : shape[2]]
    for dim in (1, 0):
        size = min(shape[dim], padded_size)
        values = torch.fft.fft(_spread(values, dim, padded_size), dim=dim)
        values = _gather(values, dim, size)
        values = _centre(values, dim, shape[dim])
    return torch.nn.functional.pad(values, (0, shape[2] - values.shape[2]))


def ifft3_cropped(
    transform: Complex[Tensor, "z y x"], padded_size: int, box_size: int
) -> Float[Tensor, "box box box"]:
    """`ifft3` into a box of one size, of which the centre is kept.

    Parameters
    ----------
    transform
        z and y centred at ``size // 2``, x from 0; coefficients beyond those that the padded box has are left out.
    padded_size, box_size
        Of the transform, and of the result.
    """
    values = transform
    for dim in (0, 1):
        values = _centre(values, dim, min(values.shape[dim], padded_size))
        values = torch.fft.ifft(_spread(values, dim, padded_size), dim=dim)
        values = _gather(values, dim, box_size)
    real = torch.fft.irfft(values[:, :, : padded_size // 2 + 1], n=padded_size, dim=2)
    return _gather(real, 2, box_size)


def _spread(values: Tensor, dim: int, size: int) -> Tensor:
    """From centred order to that of an FFT of ``size``, with zeros in the middle."""
    length = values.shape[dim]
    before = values.narrow(dim, 0, length // 2)
    after = values.narrow(dim, length // 2, length - length // 2)
    shape = list(values.shape)
    shape[dim] = size - length
    return torch.cat((after, values.new_zeros(shape), before), dim)


def _gather(values: Tensor, dim: int, size: int) -> Tensor:
    """The innermost ``size`` of an axis in FFT order, centred."""
    length = values.shape[dim]
    return torch.cat(
        (values.narrow(dim, length - size // 2, size // 2), values.narrow(dim, 0, size - size // 2)), dim
    )


def _centre(values: Tensor, dim: int, size: int) -> Tensor:
    """Cropped or padded about the centre, along one axis."""
    before = size // 2 - values.shape[dim] // 2
    if before < 0 or values.shape[dim] > size:
        return values.narrow(dim, max(0, -before), size)
    after = size - values.shape[dim] - before
    pad = [0, 0] * (values.ndim - 1 - dim) + [before, after]
    return torch.nn.functional.pad(values, pad)
