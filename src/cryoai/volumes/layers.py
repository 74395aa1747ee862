"""Linear and sine layers, drawn from a generator of their own and safe under autocast."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cryoai.precision import full_precision


def make_linear(inputs: int, outputs: int, bound: float, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights uniform within ``±bound`` and PyTorch's usual biases, ``±1/√inputs``."""
    # By way of the meta device, because the usual constructor draws from the global generator.
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
    return layer


class SineLayer(nn.Module):
    """``sin(ω₀ (W x + b))``."""

    def __init__(self, inputs: int, outputs: int, bound: float, omega: float, generator: torch.Generator) -> None:
        super().__init__()
        self.omega = omega
        self.linear = make_linear(inputs, outputs, bound, generator)

    def forward(self, features: Float[Tensor, "m inputs"]) -> Float[Tensor, "m outputs"]:
        """The sine; under autocast the product is in the lower precision, and so is the result."""
        # ω₀ goes into the weights, so that no pass over the features is spent on it. PyTorch takes the sine of a
        # bfloat16 in float32 and rounds the result: the next product reads it, and no float32 copy is kept.
        return torch.sin(F.linear(features, self.omega * self.linear.weight, self.omega * self.linear.bias))


class SineStack(nn.Module):
    """A SIREN (Sitzmann et al. 2020), initialised as there: a first sine layer, hidden ones, a linear output.

    Parameters
    ----------
    hidden
        Sine layers of ``width`` inputs, after the first.
    width
        Neurons of each layer.
    omega
        Factor ω₀ inside every sine.
    generator
        Draws the initial weights.
    """

    def __init__(self, hidden: int, width: int, omega: float, generator: torch.Generator) -> None:
        super().__init__()
        bound = math.sqrt(6 / width) / omega
        self.first = SineLayer(3, width, 1 / 3, omega, generator)
        self.hidden = nn.Sequential(*(SineLayer(width, width, bound, omega, generator) for _ in range(hidden)))
        self.last = make_linear(width, 2, bound, generator)
        nn.init.zeros_(self.last.bias)

    def forward(self, points: Float[Tensor, "m 3"]) -> Float[Tensor, "m 2"]:
        """Two numbers for each point; in the precision of the points, whatever autocast does between."""
        with full_precision(points.device):
            features = self.first(points)
        return self.last(self.hidden(features)).to(points.dtype)
