"""Compiled programs are kept where they can be, and a run goes on where they cannot."""

import jax
import pytest

from experiments.training.compilation_cache import VARIABLE, enable_compilation_cache


@pytest.fixture
def folder():
    """Reads where programs are kept, and puts JAX's settings back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_that_is_named_is_made(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "a" / "b"))
    enable_compilation_cache()
    assert folder() == str(tmp_path / "a" / "b") and (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_written_is_one_line(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "b"))
    enable_compilation_cache()
    assert folder() is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("compiled programs are not kept (Not a directory)") and VARIABLE in line


def test_without_a_home_folder_a_run_goes_on(folder, monkeypatch, capsys):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("experiments.training.compilation_cache.Path.home", no_home)
    enable_compilation_cache()
    assert folder() is None and "there is no home folder" in capsys.readouterr().err
