"""What every stage is given: checkpoints of steps, records, and streams of random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cryoai import InputError
from cryoai.ab_initio.bootstrap import BootstrapResult
from cryoai.physics.slicing import FourierVolume
from cryoai.refinement.rounds import RoundSummary
from cryoai.run.checkpoint import Checkpoint
from cryoai.run.config import BootstrapSettings
from cryoai.run.record import from_record, to_record
from cryoai.run.streams import numpy_stream, stream_seed, torch_stream


def make_start(seed: int = 3) -> BootstrapResult:
    volume = FourierVolume(torch.randn(5, 5, 3, 2, generator=torch.Generator().manual_seed(seed)), 8)
    return BootstrapResult((volume,), (1.0,), torch.arange(4.0), 1.5, seed, 4.0)


class Counted:
    """A computation that counts how often it is done."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> BootstrapResult:
        self.times += 1
        return make_start()


def test_a_finished_step_is_read_and_not_done_again(tmp_path: Path) -> None:
    compute, inputs = Counted(), {"settings": BootstrapSettings(), "seed": 0}
    first = Checkpoint(tmp_path, "data").step("start", BootstrapResult, inputs, compute)
    again = Checkpoint(tmp_path, "data").step("start", BootstrapResult, inputs, compute)
    assert compute.times == 1
    torch.testing.assert_close(again.volume.values, first.volume.values, rtol=0, atol=0)
    assert (again.seed, again.held_out_likelihood) == (3, 1.5)


@pytest.mark.parametrize(
    ("data", "inputs"),
    [
        ("other data", {"settings": BootstrapSettings(), "seed": 0}),
        ("data", {"settings": BootstrapSettings(steps=61), "seed": 0}),
        ("data", {"settings": BootstrapSettings(), "seed": 1}),
    ],
)
def test_a_step_is_done_again_when_what_it_depends_on_has_changed(tmp_path: Path, data: str, inputs: dict) -> None:
    compute = Counted()
    first = {"settings": BootstrapSettings(), "seed": 0}
    Checkpoint(tmp_path, "data").step("start", BootstrapResult, first, compute)
    Checkpoint(tmp_path, data).step("start", BootstrapResult, inputs, compute)
    assert compute.times == 2


def test_steps_after_a_changed_one_are_done_again_and_others_are_not(tmp_path: Path) -> None:
    def run(seed: int) -> list[int]:
        counts = [Counted(), Counted(), Counted()]
        checkpoint = Checkpoint(tmp_path, "data")
        checkpoint.step("first", BootstrapResult, {"seed": seed}, counts[0])
        checkpoint.step("second", BootstrapResult, {}, counts[1], after="first")
        checkpoint.step("apart", BootstrapResult, {}, counts[2])
        return [count.times for count in counts]

    assert run(0) == [1, 1, 1]
    assert run(0) == [0, 0, 0]
    assert run(5) == [1, 1, 0]


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoint(tmp_path, "data").step("start", BootstrapResult, {}, Counted())
    monkeypatch.setattr("cryoai.run.checkpoint.version", lambda name: "99.0")
    with pytest.raises(InputError, match=r"another version of cryoai .*this is 99\.0.*--overwrite"):
        Checkpoint(tmp_path, "data").step("start", BootstrapResult, {}, Counted())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    Checkpoint(tmp_path, "data").step("start", BootstrapResult, {}, Counted())
    file = tmp_path / "start.pt"
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    with pytest.raises(InputError, match="damaged"):
        Checkpoint(tmp_path, "data").step("start", BootstrapResult, {}, Counted())


def test_the_result_of_another_kind_is_refused(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "data").step("start", BootstrapResult, {}, Counted())
    with pytest.raises(InputError, match="damaged"):
        Checkpoint(tmp_path, "data").step("start", RoundSummary, {}, lambda: RoundSummary(1, 1.0, 1.0, 1.0))


@dataclass(frozen=True)
class NotOurs:
    value: int


def test_records_give_back_what_they_were_made_of() -> None:
    half = np.array([0, 1, -1])
    values = {"start": make_start(), "half": half, "pair": (1, "two"), "list": [None, True, np.float64(2.5)]}
    again = from_record(to_record(values))
    assert isinstance(again["start"], BootstrapResult) and isinstance(again["start"].volume, FourierVolume)
    np.testing.assert_array_equal(again["half"], half)
    assert again["pair"] == (1, "two") and again["list"] == [None, True, 2.5]


def test_records_name_nothing_but_results_of_the_package() -> None:
    with pytest.raises(ValueError, match="not of this package"):
        from_record(to_record(NotOurs(1)))
    for kind in ("os:system", "cryoai.run.checkpoint:Checkpoint", "cryoai.run.record:torch"):
        with pytest.raises((ValueError, AttributeError)):
            from_record({"__dataclass__": kind})
    with pytest.raises(TypeError, match="Path"):
        to_record(Path("x"))


def test_streams_differ_by_name_and_repeat() -> None:
    names = [("half-sets",), ("bootstrap", 1), ("bootstrap", 2), ("search again", 1)]
    seeds = {stream_seed(seed, *name) for seed in range(3) for name in names}
    assert len(seeds) == 12
    assert stream_seed(0, "half-sets") == stream_seed(0, "half-sets")
    assert numpy_stream(1, "a").random() == numpy_stream(1, "a").random() != numpy_stream(1, "b").random()
    assert torch.rand(1, generator=torch_stream(1, "a")) == torch.rand(1, generator=torch_stream(1, "a"))


def test_a_bootstrap_marches_outwards_and_stays_in_its_box() -> None:
    with pytest.raises(ValueError, match="first_radius 8 lies beyond last_radius 6"):
        BootstrapSettings(first_radius=8, last_radius=6)
    small = BootstrapSettings().in_box(17)
    assert small.last_radius == pytest.approx(8.49) and small.first_radius == pytest.approx(8.49)


def test_a_larger_particle_needs_fewer_shells_and_a_short_climb_settles_all_the_same() -> None:
    settings = BootstrapSettings(steps=200)
    assert settings.scaled_to(12, 0.25) == settings.scaled_to(12, 0.3) == 12
    assert settings.scaled_to(12, 0.45) == 8
    assert settings.scaled_to(5, 0.45) == 4
    assert settings.climbing_steps == 150 and settings.settling_steps(150) == 50
    assert settings.settling_steps(30) == 30
    assert BootstrapSettings(steps=5).settling_steps(4) == 1
