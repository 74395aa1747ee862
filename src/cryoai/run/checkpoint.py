"""Finished steps of a run on disk, so that a killed run goes on from the last one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from cryoai.errors import InputError
from cryoai.io.tensor_file import read_tensors, write_tensors
from cryoai.run.record import from_record, to_record

FORMAT = 7
_WHAT, _ADVICE = "the checkpoint", "start again with --overwrite"
_Result = TypeVar("_Result")


class Checkpoint:
    """A folder with one file per finished step.

    Files are written atomically and read without unpickling code. Each carries a fingerprint of what its step
    depends on: the particles, the inputs named by the step, and the steps before it. A step whose fingerprint has
    changed is computed again, and so are those after it; the others are kept.

    Parameters
    ----------
    folder
        Created when the first step is saved.
    particles
        Fingerprint of the data, which every step depends on.
    """

    def __init__(self, folder: Path, particles: str) -> None:
        self._folder = folder
        self._particles = particles
        self._fingerprints: dict[str, str] = {}

    def child(self, name: str, after: str) -> Checkpoint:
        """A folder within, for steps that go on from ``after`` and from nothing else of this one."""
        return Checkpoint(self._folder / name, self._fingerprints[after])

    def step(
        self,
        name: str,
        kind: type[_Result],
        inputs: Mapping[str, Any],
        compute: Callable[[], _Result],
        after: str | None = None,
    ) -> _Result:
        """What a step found: read if it has been done from the same inputs, else computed and kept.

        Parameters
        ----------
        name
            The file's.
        kind
            What `compute` returns: a dataclass, see `cryoai.run.record.to_record`.
        inputs
            All that the result depends on, but the particles and the step before: settings, numbers, strings.
        compute
            The step.
        after
            The step whose result this one starts from; it must have been asked for already.

        Raises
        ------
        InputError
            The file is damaged.
        """
        saved = self.load(name, inputs, after)
        if saved is not None:
            try:
                result = from_record(saved["result"])
                if not isinstance(result, kind):
                    raise TypeError(f"{type(result).__name__}, not {kind.__name__}")
            except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
                raise self._damaged(name) from error
            return result
        result = compute()
        self.save(name, inputs, {"result": to_record(result)}, after)
        return result

    def load(self, name: str, inputs: Mapping[str, Any], after: str | None = None) -> dict[str, Any] | None:
        """What was saved under a name from the same inputs, or None; for work that is saved while it goes on.

        Raises
        ------
        InputError
            The file may not be read, is damaged, or of another version of cryoai.
        CryoAIError
            Memory does not suffice to read it.
        """
        fingerprint = self._remember(name, inputs, after)
        path = self._path(name)
        try:
            saved = read_tensors(path, _WHAT, _ADVICE)
        except FileNotFoundError:
            return None
        if not isinstance(saved, dict) or not isinstance(saved.get("values"), dict):
            raise self._damaged(name)
        # As text, since a file that is not ours may hold a tensor there.
        if (str(saved.get("format")), saved.get("version")) != (str(FORMAT), version("cryoai")):
            raise InputError(
                f"{_WHAT} is of another version of cryoai ({saved.get('version', 'unknown')}, this is "
                f"{version('cryoai')})",
                file=path,
                advice=_ADVICE,
            )
        return saved["values"] if saved.get("fingerprint") == fingerprint else None

    def save(self, name: str, inputs: Mapping[str, Any], values: dict[str, Any], after: str | None = None) -> None:
        """Save tensors, numbers, strings, and lists or dicts of them."""
        fingerprint = self._remember(name, inputs, after)
        head = {"format": FORMAT, "version": version("cryoai"), "fingerprint": fingerprint}
        write_tensors(self._path(name), {**head, "values": values})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.pt"

    def _damaged(self, name: str) -> InputError:
        return InputError(f"{_WHAT} is damaged", file=self._path(name), advice=_ADVICE)

    def _remember(self, name: str, inputs: Mapping[str, Any], after: str | None) -> str:
        """The fingerprint of a step, kept for the steps that come after it."""
        before = None if after is None else self._fingerprints[after]
        plain = {
            key: value.model_dump() if isinstance(value, BaseModel) else value for key, value in inputs.items()
        }
        text = json.dumps([self._particles, name, before, plain], sort_keys=True)
        self._fingerprints[name] = hashlib.sha256(text.encode()).hexdigest()
        return self._fingerprints[name]
