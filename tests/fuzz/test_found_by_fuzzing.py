"""Faults that the fuzzers have found, each as a test of its own. Those of option files are in test_fuzz_config."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from behaviour import well_behaved
from test_fuzz_cs import FIELDS, make_rows, saved

from cryoai.errors import InputError
from cryoai.io import read_particles
from cryoai.run.config import load_config


@pytest.mark.parametrize("version", [2, 3])
def test_a_cs_header_of_four_gigabytes_takes_no_memory(folder: Path, version: int) -> None:
    path = folder / "endless.cs"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + b"\xff\xff\xff\xff" + b"{'descr': '<f4'")
    with well_behaved(path), pytest.raises(InputError, match=r"not a readable cryoSPARC \.cs file"):
        read_particles(path)


def test_a_cs_file_with_the_columns_of_fifty_classes_is_read(folder: Path) -> None:
    names = (
        "pose",
        "shift",
        "cross_cor",
        "error",
        "class_posterior",
        "alpha",
        "error_min",
        "pose_ess",
        "shift_ess",
    )
    more = [(f"alignments_class_{n}/{name}", "<f4") for n in range(50) for name in names]
    path = folder / "classes.cs"
    path.write_bytes(saved(make_rows([*FIELDS, *more])))
    # More than the 10,000 characters that NumPy reads unasked.
    assert int.from_bytes(path.read_bytes()[8:10], "little") > 15_000
    particles = read_particles(path)
    assert len(particles) == 4
    np.testing.assert_array_equal(particles.image_index, 0)


def test_an_option_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seeds: 2\nrefine: {max_rounds: 2, max_rounds: 3}\n")
    with pytest.raises(InputError, match=r"run\.yaml: .*'max_rounds' is given twice"):
        load_config(tmp_path / "run.yaml", {})


def test_a_file_of_options_of_any_length_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("- 1\n" * 100_000)
    with well_behaved(tmp_path / "run.yaml"), pytest.raises(InputError, match="too long"):
        load_config(tmp_path / "run.yaml", {})


def test_a_group_that_holds_none_is_refused_with_options_of_it(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("encoder: 0\n")
    with pytest.raises(InputError, match="option 'encoder'"):
        load_config(tmp_path / "run.yaml", {"encoder.head": "s2s2"})
