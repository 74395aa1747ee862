"""Parts that are chosen by name: a registry for each kind, and the settings that a part has of its own.

Whoever writes another encoder, head or volume writes one file: a class with its ``Settings``, registered.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import ValidationError

from cryoai.settings import Settings


class PartSettings(Settings):
    """A part's own settings; as it is, those of a part that has none."""


class NamedPart:
    """A class that can be registered under a name."""

    Settings: ClassVar[type[PartSettings]] = PartSettings


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 100


Part = TypeVar("Part", bound=NamedPart)
_Class = TypeVar("_Class", bound=type)


class Registry(Mapping[str, type[Part]], Generic[Part]):
    """The classes of one kind of part by name, in the order in which they were registered.

    Parameters
    ----------
    kind
        What they are, in a word; options of theirs are said to be in ``<kind>_options``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._classes: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[_Class], _Class]:
        """A decorator that enters a class; a name that is taken is refused with a ValueError."""

        def enter(part: _Class) -> _Class:
            if name in self._classes:
                raise ValueError(f"there is a {self._kind} '{name}' already")
            self._classes[name] = part
            return part

        return enter

    def __getitem__(self, name: str) -> type[Part]:
        return self._classes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def check(self, name: str) -> str:
        """The name, if it is one; else a ValueError that lists those there are."""
        if name not in self._classes:
            raise ValueError(f"there is no {self._kind} '{name}', but {', '.join(self._classes)}")
        return name

    def read_settings(self, name: str, shared: Mapping[str, Any], own: Mapping[str, Any]) -> PartSettings:
        """A part's settings from options.

        Parameters
        ----------
        name
            Of the part.
        shared
            Options that several parts have: those that this one lacks, or that are None, are left out.
        own
            Options of this part; one that it lacks is a mistake.

        Raises
        ------
        ValueError
            An option that is unknown or out of range, in one line.
        """
        model = self[name].Settings
        known = model.model_fields
        for option in own:
            if option not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise ValueError(f"{self._kind}_options: {name} has no option '{option}'; {has}")
        values = {option: value for option, value in shared.items() if option in known and value is not None}
        try:
            return model(**{**values, **own})
        except ValidationError as error:
            raise ValueError(explain(error)) from error

    def make(self, name: str, *arguments: Any, **named: Any) -> Part:
        """An instance; the arguments are those of the kind's classes."""
        return self[name](*arguments, **named)


def explain(error: ValidationError) -> str:
    """The first thing that is wrong with some options, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    own = first.get("ctx", {}).get("error") if first["type"] == "value_error" else None
    reason, place = shorten(first["msg"].lower() if own is None else str(own)), shorten(place)
    if not place:
        return reason
    if own is not None and isinstance(first["input"], dict):
        # A sentence about several options of a group.
        return f"{place}: {reason}"
    return f"option '{place}': {reason} (it is {_show(first['input'])})"


def shorten(text: str) -> str:
    """At most 300 characters of a text, for a sentence."""
    return text if len(text) <= 300 else f"{text[:200]}...{text[-90:]}"


def _show(value: object) -> str:
    """A value as Python writes it, in little space."""
    try:
        return shorten(_SHORT.repr(value))
    except ValueError:
        # Python refuses to write a number of thousands of digits.
        return "a number beyond all bounds"
