"""Small files are replaced completely or not at all, and a path is checked before the work whose result it is for."""

import errno
import os

import pytest

from experiments import disk
from experiments.disk import read_json, require_writable, write_json_atomic
from experiments.errors import UserError


def test_a_failed_atomic_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "config.json"
    write_json_atomic(path, {"a": 1})

    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for function in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(disk.os, function, refuse)
            with pytest.raises(UserError, match=r"cannot write .*config.json: Read-only file system"):
                write_json_atomic(path, {"a": 2})
        assert read_json(path) == {"a": 1}
        assert os.listdir(path.parent) == ["config.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_json_atomic(tmp_path / "file" / "config.json", {})


def test_read_json_refuses_what_is_not_json(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*absent.json: No such file"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match=r"bad.json is no JSON file"):
        read_json(tmp_path / "bad.json")


def test_a_writable_path_passes_and_no_file_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").write_text("precious")
    for path in ("there.png", "new.png", tmp_path / "new" / "folder" / "new.png"):
        require_writable(path)
    assert os.listdir(tmp_path) == ["there.png"] and (tmp_path / "there.png").read_text() == "precious"


def test_a_path_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/folder/a.png: Not a directory"):
        require_writable(tmp_path / "file" / "folder" / "a.png")
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"):
        require_writable(tmp_path)

    def refuse(dir):
        assert dir == tmp_path
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot write .*new/a.png: Read-only file system"):
        require_writable(tmp_path / "new" / "a.png")
