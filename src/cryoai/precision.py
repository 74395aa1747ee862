"""The number format of matrix products: bfloat16 where a processor multiplies it, float32 elsewhere."""

from __future__ import annotations

import functools
import sys
from typing import Literal

import llvmlite.binding
import torch

Precision = Literal["auto", "bf16-mixed", "32-true"]
"""What a user can ask for."""


def product_dtype(device: torch.device | str = "cpu") -> torch.dtype:
    """bfloat16 where the device has instructions for it, else float32.

    Without them PyTorch emulates bfloat16, 7 to 40 times slower than float32 (measured with AVX2 alone). Most
    laptops are like that.
    """
    return torch.bfloat16 if _multiplies_bfloat16(torch.device(device).type) else torch.float32


def full_precision(device: torch.device) -> torch.autocast:
    """A context without autocast: rotations, coordinates and what is interpolated at them need all of float32."""
    return torch.autocast(device.type, enabled=False)


@functools.cache
def _multiplies_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu" or sys.platform == "darwin":  # macOS: Accelerate has float32 alone
        return False
    features = llvmlite.binding.get_host_cpu_features()
    return any(features.get(name, False) for name in ("avx512bf16", "amx-bf16", "bf16"))
