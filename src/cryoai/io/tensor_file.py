"""Tensors, numbers and strings in a file of torch's, which is read without unpickling code."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cryoai.errors import CryoAIError, InputError
from cryoai.io.atomic import atomic_path

_NO_MEMORY = ("can't allocate memory", "not enough memory")


def write_tensors(path: Path, values: dict[str, Any]) -> None:
    """Write tensors, numbers, strings, and lists or dicts of them; atomically.

    Raises
    ------
    CryoAIError
        The disk is full.
    InputError
        The folder can't be written to.
    """
    # Through memory: torch's own writer turns a full disk into an error that does not say so.
    buffer = io.BytesIO()
    torch.save(values, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read_tensors(path: Path, what: str, advice: str) -> Any:
    """The inverse of `write_tensors`, on the CPU; of other files of torch whatever they hold.

    Parameters
    ----------
    path
        The file.
    what
        What it is, in a sentence: "the checkpoint".
    advice
        What to do where it is damaged.

    Raises
    ------
    FileNotFoundError
        There is none; what that means only the caller knows.
    InputError
        It may not be read, or its contents are not as they were written.
    CryoAIError
        Memory does not suffice.
    """
    try:
        # Through memory, so that whatever fails later is not the disk.
        content = path.read_bytes()
        damaged = InputError(f"{what} is damaged", file=path, advice=advice)
        if not _is_whole(content):
            raise damaged
        try:
            values = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except MemoryError:
            raise
        except Exception as error:
            # With the file in memory and its sums right, all that is left is what it says.
            if any(words in str(error) for words in _NO_MEMORY):
                raise MemoryError from error
            raise damaged from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror})", file=path) from error
    except MemoryError as error:
        raise CryoAIError(f"{path}: memory does not suffice to read {what}; end other programs") from error
    if not _holds_what_it_says(values, len(content)):
        raise damaged
    return values


def _is_whole(content: bytes) -> bool:
    """Whether a file is as torch left it: torch itself looks at no check sums, and believes every length."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            fits = sum(part.file_size for part in parts) <= len(content)
            return stored and fits and archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError, OverflowError):
        return False


def _holds_what_it_says(values: Any, length: int) -> bool:
    """Whether all tensors lie within a file of so many bytes.

    Older versions of torch take their sizes from the pickle, whatever the file holds; reading beyond would end
    the process.
    """
    sizes: dict[int, int] = {}
    for tensor in _tensors(values):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            return False
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values()) <= length


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    waiting, seen = [values], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set):
            waiting.extend(value)
