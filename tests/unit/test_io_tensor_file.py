"""Files of tensors: what is missing, not allowed, too large and damaged are told apart."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from cryoai.errors import CryoAIError, InputError
from cryoai.io.tensor_file import read_tensors, write_tensors

VALUES = {"map": torch.arange(300.0), "halves": [torch.tensor([0, 1]), None], "name": "start", "steps": 3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tensors(tmp_path / "start.pt", VALUES)
    return tmp_path / "start.pt"


def read(path: Path):
    return read_tensors(path, "the checkpoint", "start again with --overwrite")


def refuse_as(kind: type[BaseException], message: str):
    """Make a call fail."""

    def fail(*arguments: object, **options: object):
        raise kind(message) if kind is not PermissionError else PermissionError(13, message)

    return fail


def repack(path: Path, change) -> None:
    """Change the files in a file of torch's; their sums stay right."""
    with zipfile.ZipFile(path) as old:
        parts = {part.filename: old.read(part) for part in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(name, change(name, content))


def test_values_come_back_and_nothing_else_is_left(path: Path) -> None:
    again = read(path)
    assert torch.equal(again["map"], VALUES["map"]) and torch.equal(again["halves"][0], VALUES["halves"][0])
    assert again["halves"][1] is None and (again["name"], again["steps"]) == ("start", 3)
    assert [file.name for file in path.parent.iterdir()] == ["start.pt"]


def test_a_missing_file_is_the_callers_affair(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(path.with_name("none.pt"))


def test_a_file_that_may_not_be_read_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", refuse_as(PermissionError, "Permission denied"))
    with pytest.raises(InputError, match=r"start\.pt: the checkpoint cannot be read \(Permission denied\)$"):
        read(path)


def test_a_folder_is_no_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the checkpoint cannot be read \(Is a directory\)$"):
        read(tmp_path)


@pytest.mark.parametrize("where", ["the file", "a tensor", "python"])
def test_too_little_memory_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "the file":
        monkeypatch.setattr(Path, "read_bytes", refuse_as(MemoryError, ""))
    elif where == "a tensor":
        # torch's own error for memory that no machine has.
        monkeypatch.setattr(torch, "load", lambda *arguments, **options: torch.empty(1 << 55))
    else:
        monkeypatch.setattr(torch, "load", refuse_as(MemoryError, ""))
    with pytest.raises(CryoAIError, match=r"start\.pt: memory does not suffice to read the checkpoint") as caught:
        read(path)
    assert caught.value.exit_code == 1 and "damaged" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_damaged(path: Path, kept: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(InputError, match=r"the checkpoint is damaged; start again with --overwrite"):
        read(path)


def test_a_flipped_bit_of_a_tensor_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(VALUES["map"].numpy().tobytes()) + 402] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read(path)


def test_a_tensor_longer_than_its_file_is_not_read_beyond(path: Path) -> None:
    # 300 as a pickled 2-byte integer; as a 4-byte one it is another number of values, of the storage too.
    longer = b"J" + (1 << 30).to_bytes(4, "little")
    repack(path, lambda name, text: text.replace(b"M\x2c\x01", longer) if name.endswith("data.pkl") else text)
    with pytest.raises(InputError, match="damaged"):
        read(path)


def test_a_file_that_unpacks_to_much_more_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(InputError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"hello", pickle.dumps({"a": 1}), b"PK\x05\x06" + bytes(18), bytes(4096)]
)
def test_other_files_are_damaged_ones(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read(path)


@pytest.mark.parametrize("layout", ["sparse", "meta"])
def test_tensors_that_nobody_wrote_are_refused(path: Path, layout: str) -> None:
    odd = torch.eye(3).to_sparse() if layout == "sparse" else torch.empty(3, device="meta")
    buffer = io.BytesIO()
    torch.save({"values": {"map": [odd]}}, buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="damaged"):
        read(path)
