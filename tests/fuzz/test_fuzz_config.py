"""Files of options that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from behaviour import well_behaved
from hypothesis import given
from hypothesis import strategies as st
from mutations import TEXT, spoiled

from cryoai.errors import InputError
from cryoai.run.config import ReconstructConfig, load_config

VALID = [
    yaml.safe_dump(ReconstructConfig().model_dump(mode="json")).encode(),
    b"method: amortized\nseeds: 2\nencoder: {box_size: 32, widths: [16, 32]}\nrefine:\n  max_rounds: 3\n",
]
KEYS = st.sampled_from([*ReconstructConfig.model_fields, "images", "widths", "head", "searches", "round", "x"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.dates()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=3),
    max_leaves=8,
)
OVERRIDES = st.dictionaries(
    st.sampled_from(["seeds", "method", "encoder.head", "encoder.box_size", "refine.max_rounds"]),
    SCALARS,
    max_size=2,
)
TEXTS = {
    "bomb": "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{y}: &{y} [{','.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi", strict=True))
    + "encoder: {backbone_options: {x: *i}, widths: *i}\nseeds: *i\n",
    "circle": "encoder: &a {head_options: *a, widths: [*a]}\nseeds: &b [*b]\n",
    "deep lists": "seeds: " + "[" * 2000,
    "deep maps": "".join(" " * n + "a:\n" for n in range(300)),
    "a list": "- 1\n",
    "a word": "hello",
    "number for a key": "1: 2\n",
    "no key": "~: 2\n",
    "list for a key": "? [1]\n: 2\n",
    "a group that is a word": "encoder: big\n",
    "a group that is a list": "refine: [1]\n",
    "long number": "seeds: " + "9" * 5000,
    "no date": "seeds: 2001-99-99\n",
    "no number": "seeds: !!int ''\n",
    "no truth": "no_ctf: !!bool perhaps\n",
    "no time": "seeds: !!timestamp never\n",
    "empty binary": "seeds: !!binary x\n",
    "code": "seeds: !!python/object/apply:os.getcwd []\n",
    "two documents": "seeds: 1\n---\nseeds: 2\n",
    "twice": "seeds: 1\nseeds: 2\n",
    "a long word": "x" * 50_000 + ": 1\n",
    "a long value": "method: " + "x" * 50_000 + "\n",
    "base 60": "seeds: 1" + ":1" * 20_000 + "\n",
    "merge": "<<: 1\n",
    "control": "seeds: \x01\n",
}


def load(path: Path, content: bytes, overrides: dict) -> None:
    path.write_bytes(content)
    with well_behaved(path):
        load_config(path, overrides)


@given(content=spoiled(VALID, TEXT), overrides=OVERRIDES)
def test_spoiled_files_of_options(folder: Path, content: bytes, overrides: dict) -> None:
    load(folder / "fuzz.yaml", content, overrides)


@given(values=st.dictionaries(KEYS | SCALARS, VALUES, max_size=4), overrides=OVERRIDES)
def test_options_of_any_kind(folder: Path, values: dict, overrides: dict) -> None:
    load(folder / "fuzz.yaml", yaml.safe_dump(values).encode(), overrides)


@pytest.mark.parametrize("kind", TEXTS)
def test_files_that_mislead_the_parser_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "fuzz.yaml"
    load(path, TEXTS[kind].encode(), {"encoder.head": "s2s2"})
    with pytest.raises(InputError, match=r"fuzz\.yaml: "):
        load_config(path, {})
