"""Checkpoints and encoders that are not what they should be."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from behaviour import well_behaved
from hypothesis import given
from hypothesis import strategies as st
from mutations import BYTES, spoiled

from cryoai.amortized.encoder_file import TrainedEncoder, read_encoder, write_encoder
from cryoai.poses.pose_encoder import make_pose_encoder
from cryoai.poses.settings import EncoderSettings
from cryoai.run.checkpoint import Checkpoint

SCALARS = st.sampled_from(
    [None, True, 0, 1, -1, 2, 3, 10**12, 2**70, 0.0, -1.0, float("nan"), float("inf"), "", "x", "cryoai encoder"]
) | st.sampled_from([torch.ones(2), torch.tensor(2), torch.ones(0), torch.tensor(float("nan"))])  # fmt: skip
VALUES = (
    SCALARS
    | st.lists(SCALARS, max_size=2)
    | st.dictionaries(SCALARS.filter(lambda v: isinstance(v, str)), SCALARS, max_size=2)
)
INSIDE = ["settings", "weights"]


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    settings = EncoderSettings(box_size=8, widths=(4,), hypotheses=8)
    encoder = make_pose_encoder(settings, 64.0, seed=0).eval()
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    write_encoder(TrainedEncoder(encoder, True, 32, 2.0, 6.0, torch.rand(4), torch.rand(4)), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("checkpoint")
    Checkpoint(folder, "data").save("start", {}, {"map": torch.rand(50), "list": [1, None, "x"]})
    return (folder / "start.pt").read_bytes()


def read_both(folder: Path, content: bytes) -> None:
    for name in ("encoder.pt", "start.pt"):
        (folder / name).write_bytes(content)
    with well_behaved(folder / "encoder.pt"):
        read_encoder(folder / "encoder.pt")
    with well_behaved(folder / "start.pt"):
        Checkpoint(folder, "data").load("start", {})


@given(data=st.data())
def test_spoiled_files_of_tensors(
    folder: Path, encoder_file: bytes, checkpoint_file: bytes, data: st.DataObject
) -> None:
    read_both(folder, data.draw(spoiled([encoder_file, checkpoint_file], BYTES)))


@given(data=st.data(), times=st.integers(1, 4))
def test_spoiled_pickles_with_the_right_sums(
    folder: Path, encoder_file: bytes, checkpoint_file: bytes, data: st.DataObject, times: int
) -> None:
    with zipfile.ZipFile(io.BytesIO(data.draw(st.sampled_from([encoder_file, checkpoint_file])))) as old:
        parts = {part.filename: old.read(part) for part in old.infolist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new:
        for name, content in parts.items():
            new.writestr(name, data.draw(spoiled([content], BYTES)) if name.endswith("data.pkl") else content)
    read_both(folder, buffer.getvalue())


@given(data=st.data())
def test_files_of_tensors_that_hold_something_else(
    folder: Path, encoder_file: bytes, checkpoint_file: bytes, data: st.DataObject
) -> None:
    whole = data.draw(st.sampled_from([encoder_file, checkpoint_file]))
    values = torch.load(io.BytesIO(whole), weights_only=True)
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(list(values)))
        if isinstance(values[name], dict) and values[name] and data.draw(st.booleans()):
            values[name][data.draw(st.sampled_from(list(values[name])))] = data.draw(VALUES)
        else:
            values[name] = data.draw(VALUES)
    buffer = io.BytesIO()
    torch.save(values, buffer)
    read_both(folder, buffer.getvalue())
