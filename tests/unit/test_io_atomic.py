from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

import cryoai.io
from cryoai.errors import CryoAIError, InputError
from cryoai.io import atomic_path, write_text_atomic


def test_file_appears_whole_and_in_a_new_folder(tmp_path):
    final = tmp_path / "new" / "a.txt"
    with atomic_path(final) as temporary:
        assert temporary.parent == final.parent and temporary.suffix == ".txt"
        assert temporary.name.startswith(".")
        temporary.write_text("x")
        assert not final.exists()
    assert final.read_text() == "x"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_an_exception(tmp_path, error):
    final = tmp_path / "a.txt"
    write_text_atomic(final, "old")
    with pytest.raises(error), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full_is_told_with_the_file(tmp_path, code, monkeypatch):
    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CryoAIError, match=r"a\.txt: disk full"):
        write_text_atomic(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


def test_other_os_errors_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        open(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "a.txt", "x")


def test_reading_metadata_does_not_import_torch():
    code = "import sys, cryoai.io.particle_files, cryoai.io.star, cryoai.cli.info\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    for name in cryoai.io.__all__:
        assert callable(getattr(cryoai.io, name))
    with pytest.raises(AttributeError, match="nothing"):
        _ = cryoai.io.nothing
