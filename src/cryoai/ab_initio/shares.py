"""How many images show each of several things, and which, by their likelihoods alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

_STEPS = 100


def estimate_shares(
    gain: Float[Tensor, "n classes"], shares: Float[Tensor, " classes"]
) -> Float[Tensor, " classes"]:
    """The likeliest shares of classes, by expectation-maximisation; sum to 1.

    Parameters
    ----------
    gain
        Log-likelihoods.
    shares
        To begin with; any scale.
    """
    shares = shares / shares.sum()
    for _ in range(_STEPS):
        shares = (gain + shares.clamp(min=1e-12).log()).softmax(1).mean(0)
    return shares


def share_out(gain: Float[Tensor, "n classes"], shares: Float[Tensor, " classes"]) -> Float[Tensor, "n classes"]:
    """Posterior probabilities of classes whose shares are estimated on the way; see `estimate_shares`."""
    return (gain + estimate_shares(gain, shares).clamp(min=1e-12).log()).softmax(1)
