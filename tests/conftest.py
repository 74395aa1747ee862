from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from scenes import Scene, make_scene


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
