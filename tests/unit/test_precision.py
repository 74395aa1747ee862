"""Large products run in bfloat16 only where the processor has instructions for it."""

import llvmlite.binding
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cryoai import precision
from cryoai.amortized.encoder_file import TrainedEncoder
from cryoai.amortized.posing import EncoderInference
from cryoai.geometry.fourier import make_fourier_disk
from cryoai.particles.phantom import make_phantom
from cryoai.physics.slicing import volume_from_map
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.poses.search import make_search_grid, search_poses
from cryoai.poses.settings import EncoderSettings
from cryoai.tensors import ParticleBatch
from cryoai.training.trainer import make_fabric


class DtypesSeen(TorchDispatchMode):
    """The number formats of all tensors that operations are given."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.dtypes |= {leaf.dtype for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        return func(*args, **(kwargs or {}))


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


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_search_and_inference_follow_the_processor(features, has_bfloat16):
    features["avx512bf16"] = has_bfloat16
    volume = volume_from_map(torch.from_numpy(make_phantom(16, 10.0).density))
    disk = make_fourier_disk(16, 6)
    images = torch.randn(4, len(disk), dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    batch, noise = ParticleBatch(images, torch.ones(4, len(disk)), disk, 10.0), torch.ones(disk.shell_count)
    with DtypesSeen() as searching:
        search_poses(batch, volume, noise, make_search_grid(500, 10.0, 10.0), keep=2)
    settings = EncoderSettings(hypotheses=100, box_size=16, widths=(4, 4, 4), keep=2)
    trained = TrainedEncoder(make_pose_encoder(settings, 160.0, 0).eval(), False, 16, 10.0, 6.0, noise, noise)
    inference = EncoderInference(trained)
    with DtypesSeen() as inferring:
        inference.hypotheses(batch)
    assert (torch.bfloat16 in searching.dtypes) == has_bfloat16
    assert (torch.bfloat16 in inferring.dtypes) == has_bfloat16
