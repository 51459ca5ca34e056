"""Writing files: what is not to be replaced is refused, and a failure tells the truth."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from firth.errors import StorageError
from firth.files import check_writable, replacing, write_text


def test_a_pipe_or_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="a device or a pipe"):
        write_text(pipe, "text")
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    with pytest.raises(StorageError, match="a device or a pipe"):
        check_writable("/dev/null")


def test_what_a_link_points_at_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    write_text(link, "new")
    assert link.is_symlink() and file.read_text() == "new" and not file.is_symlink()
    (tmp_path / "nothing").symlink_to(tmp_path / "gone" / "file")
    with pytest.raises(StorageError, match="does not exist"):
        write_text(tmp_path / "nothing", "new")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_file_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o444)
    with pytest.raises(StorageError, match="read-only"):
        write_text(file, "new")
    assert file.read_text() == "old"


def test_the_free_space_is_told_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def usage(folder: Path) -> object:
        left = 1000 - sum(file.stat().st_size for file in Path(folder).iterdir())
        return namedtuple("Usage", "free")(left)

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    with (
        pytest.raises(StorageError, match=r"no space left on device \(10 bytes free\)"),
        replacing(tmp_path / "x") as file,
    ):
        file.write(b"-" * 990)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_as_the_file_appears_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path, mode: str) -> None:
        open(path, mode).close()
        raise KeyboardInterrupt

    monkeypatch.setattr("firth.files.open", opened, raising=False)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "x", "text")
    assert not list(tmp_path.iterdir())


def test_a_result_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "text")
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode
