"""Lines of results in Markdown: what they were measured with, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

VERDICTS = ("found", "uncertain", "not found")


def name_of(line: Mapping[str, Any]) -> str:
    """Label or commit, and the options that differ from the default ones."""
    return " ".join([line["version"], *(f"{key}={value}" for key, value in line["extra"].items())])


def print_origin(lines: Iterable[Mapping[str, Any]]) -> None:
    """Which versions lines are of, and on what they were measured."""
    lines = list(lines)
    versions = ", ".join(dict.fromkeys(name_of(line) for line in lines))
    machines = ", ".join(dict.fromkeys(f"{line['processor']}, {line['threads']} threads" for line in lines))
    print(f"Of {versions}, on {machines}.\n")


def print_table(head: str, rows: Iterable[Iterable[str]]) -> None:
    """A table whose head is given with `` | `` between its columns."""
    columns = head.split(" | ")
    print(f"| {head} |\n|" + "---|" * len(columns))
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()
