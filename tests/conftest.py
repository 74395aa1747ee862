from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from scenes import Scene, make_scene


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not beside the fuzzers: options of deeper folders are unknown to a plain `pytest`.
    parser.addoption("--fuzz-examples", type=int, default=15, help="inputs for each fuzzer of tests/fuzz")


def pytest_configure(config: pytest.Config) -> None:
    settings.register_profile(
        "fuzz", max_examples=config.getoption("--fuzz-examples"), derandomize=True, deadline=None, database=None,
        phases=[Phase.explicit, Phase.generate], report_multiple_bugs=False,  # shrinking takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    settings.load_profile("fuzz")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Weights that a test leaves to chance are the same whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public test data beside the repository; tests that need it skip on a user's clone."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CRYOAI_TEST_DATA", default))
    if not folder.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the test data are missing from {folder}, and CI must not skip")
        pytest.skip(f"no test data in {folder} (set CRYOAI_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Particles whose true poses are known."""
    made = make_scene(tmp_path_factory.mktemp("scene"))
    yield made
    made.data.close()


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of benchmarks/ by name, which are scripts and no package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module
