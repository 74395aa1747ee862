"""Views of particles, in an order in which neighbours look alike."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


def order_by_view(rotation: Float[Tensor, "n 3 3"]) -> Int[np.ndarray, " n"]:
    """An order in which particles that follow each other are seen from about the same side, or its opposite.

    Their slices lie in about the same plane, whatever their in-plane angles. Bands of latitude follow each other,
    each as wide as particles lie apart, in turns to the east and to the west.

    Parameters
    ----------
    rotation
        As in `cryoai.types.Pose`; what is not a number comes anywhere.
    """
    direction = np.nan_to_num(rotation[:, :, 2].cpu().double().numpy())
    direction = direction * np.where(direction[:, 2:] < 0, -1.0, 1.0)
    width = math.sqrt(2 * math.pi / max(1, len(direction)))
    band = (np.arccos(direction[:, 2].clip(0, 1)) / width).astype(int)
    longitude = np.arctan2(direction[:, 1], direction[:, 0])
    return np.lexsort((np.where(band % 2 == 0, longitude, -longitude), band))
