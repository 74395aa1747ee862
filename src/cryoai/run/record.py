"""Results of a step as plain tensors, numbers, strings, lists and dicts, and back."""

from __future__ import annotations

import importlib
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

_KIND, _ARRAY, _TUPLE = "__dataclass__", "__array__", "__tuple__"


def to_record(value: Any) -> Any:
    """What `torch.load` reads back without unpickling code.

    Parameters
    ----------
    value
        Dataclasses of this package, arrays, tensors, numbers, strings, None, and lists, tuples or dicts of them.

    Raises
    ------
    TypeError
        It holds something else.
    """
    if is_dataclass(value) and not isinstance(value, type):
        kind = f"{type(value).__module__}:{type(value).__qualname__}"
        return {_KIND: kind, **{field.name: to_record(getattr(value, field.name)) for field in fields(value)}}
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, tuple):
        return {_TUPLE: [to_record(item) for item in value]}
    if isinstance(value, list):
        return [to_record(item) for item in value]
    if isinstance(value, dict):
        return {name: to_record(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, torch.Tensor | bool | int | float | str):
        return value
    raise TypeError(f"a step's result holds a {type(value).__name__}, which is not written to checkpoints")


def from_record(record: Any) -> Any:
    """The inverse of `to_record`.

    Raises
    ------
    ValueError, TypeError, AttributeError, ImportError
        The record is not one, or its classes have changed.
    """
    if isinstance(record, list):
        return [from_record(item) for item in record]
    if not isinstance(record, dict):
        return record
    if _ARRAY in record:
        return record[_ARRAY].numpy()
    if _TUPLE in record:
        return tuple(from_record(item) for item in record[_TUPLE])
    if _KIND in record:
        values = {name: from_record(item) for name, item in record.items() if name != _KIND}
        return _dataclass_named(record[_KIND])(**values)
    return {name: from_record(item) for name, item in record.items()}


def _dataclass_named(kind: str) -> type:
    """A dataclass of this package; nothing else is ever looked up for a file."""
    module, _, name = kind.partition(":")
    if not module.startswith("cryoai."):
        raise ValueError(f"{kind} is not of this package")
    found = getattr(importlib.import_module(module), name)
    if not (isinstance(found, type) and is_dataclass(found) and found.__module__ == module):
        raise ValueError(f"{kind} is not a result")
    return found
