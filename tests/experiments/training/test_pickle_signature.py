"""Pickles are trusted with this user's signature alone."""

import os

import pytest

from experiments.training.pickle_signature import STATE_VARIABLE, is_ours, signature


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "state"))
    return tmp_path / "state" / "sagax"


def test_only_files_that_were_signed_here_are_ours(state, monkeypatch, tmp_path):
    signed = signature(b"pickle")
    assert is_ours(b"pickle", signed) and signature(b"pickle") == signed
    assert not is_ours(b"other", signed) and not is_ours(b"pickle", None) and not is_ours(b"pickle", "é")
    assert [path.name for path in state.iterdir()] == ["pickle_key"]
    assert os.stat(state / "pickle_key").st_mode & 0o777 == 0o600
    # Another user, or another machine, has another key.
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "another"))
    assert not is_ours(b"pickle", signed) and signature(b"pickle") != signed


def test_a_key_that_others_can_read_or_that_is_a_link_is_not_used(state, tmp_path):
    signed = signature(b"pickle")
    (state / "pickle_key").chmod(0o644)
    assert not is_ours(b"pickle", signed) and signature(b"pickle") is None
    (state / "pickle_key").chmod(0o600)
    assert is_ours(b"pickle", signed)
    (state / "pickle_key").rename(tmp_path / "key")
    (state / "pickle_key").symlink_to(tmp_path / "key")
    assert not is_ours(b"pickle", signed)


def test_without_a_folder_for_a_key_nothing_is_signed(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "file"))
    assert signature(b"pickle") is None and not is_ours(b"pickle", "00")
    monkeypatch.delenv(STATE_VARIABLE)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("experiments.training.pickle_signature.Path.home", no_home)
    assert signature(b"pickle") is None and not is_ours(b"pickle", "00")
