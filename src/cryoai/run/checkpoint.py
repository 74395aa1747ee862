"""Finished steps of a run on disk, so that a killed run goes on from the last one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from cryoai.errors import InputError
from cryoai.io import atomic_path

FORMAT = 1


class Checkpoint:
    """A folder with one file per finished step.

    Files are written atomically and read without unpickling code. Each carries a fingerprint of the run, so that
    steps of another input or another configuration are never mixed in.

    Parameters
    ----------
    folder
        Created when the first step is saved.
    fingerprint
        What the run depends on.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def load(self, step: str) -> dict[str, Any] | None:
        """What a step saved, or None if it has not finished.

        Raises
        ------
        InputError
            The file is damaged, or belongs to another run.
        """
        path = self._folder / f"{step}.pt"
        if not path.exists():
            return None
        advice = "start again with --overwrite"
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise InputError("the checkpoint is damaged", file=path, advice=advice) from error
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise InputError("the checkpoint is of another version of cryoai", file=path, advice=advice)
        if saved["fingerprint"] != self._fingerprint:
            raise InputError("the checkpoint belongs to another run", file=path, advice=advice)
        return saved["values"]

    def save(self, step: str, values: dict[str, Any]) -> None:
        """Save a finished step: tensors, numbers, strings, and lists or dicts of them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # Through memory: torch's own writer turns a full disk into an error that does not say so.
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "fingerprint": self._fingerprint, "values": values}, buffer)
        with atomic_path(self._folder / f"{step}.pt") as path:
            path.write_bytes(buffer.getbuffer())
