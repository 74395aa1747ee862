"""Large products run in bfloat16 only where the processor has instructions for it."""

import llvmlite.binding
import pytest
import torch

from cryoai import precision
from cryoai.training.trainer import make_fabric


@pytest.fixture
def features(monkeypatch):
    found: dict[str, bool] = {"avx2": True}
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: found)
    monkeypatch.setattr(precision.sys, "platform", "linux")
    precision._multiplies_bfloat16.cache_clear()
    yield found
    precision._multiplies_bfloat16.cache_clear()


def test_without_instructions_for_it_bfloat16_is_left_alone(features):
    assert precision.product_dtype() == torch.float32
    assert make_fabric("cpu")._precision.precision == "32-true"


@pytest.mark.parametrize("name", ["avx512bf16", "amx-bf16", "bf16"])
def test_with_them_it_is_used(features, name):
    features[name] = True
    assert precision.product_dtype("cpu") == torch.bfloat16
    assert make_fabric("cpu")._precision.precision == "bf16-mixed"


def test_what_is_asked_for_is_done(features):
    assert make_fabric("cpu", "bf16-mixed")._precision.precision == "bf16-mixed"
