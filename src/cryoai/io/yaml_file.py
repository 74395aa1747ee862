"""YAML files of options, from whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cryoai.errors import InputError
from cryoai.parts import shorten

_LONGEST_FILE = 1 << 16
"""Characters; every option together takes a tenth of it."""
_DEEPEST = 20
"""Groups within groups; there are three."""


class _Loader(yaml.SafeLoader):
    """YAML in which an option that is given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(None, None, f"'{twice}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse aliases, which can make a value of any size of one line, and what is nested too deeply to parse."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "write the value out in place of an alias", event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.MarkedYAMLError(None, None, "it is nested too deeply", event.start_mark)


def read_yaml_options(path: Path) -> dict[Any, Any]:
    """Names and values of a YAML file; nothing of an empty one.

    Raises
    ------
    InputError
        The file can't be read, is no YAML, is too long, or holds something else than names with values.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(_LONGEST_FILE + 1)
    except FileNotFoundError as error:
        raise InputError("does not exist", file=path) from error
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path) from error
    except UnicodeDecodeError as error:
        raise InputError("is not a YAML file: it is not text in UTF-8", file=path) from error
    if len(text) > _LONGEST_FILE:
        # The parser needs a thousand times the memory of what it reads.
        raise InputError("is too long to be a file of options", file=path)
    try:
        _check_events(text)
        loaded = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # YAML's dates, numbers and truth values raise whatever Python does with the text.
        raise InputError(f"is not a YAML file ({shorten(str(error))})", file=path) from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError("holds no options", file=path, advice="write one 'name: value' per line")
    return loaded
