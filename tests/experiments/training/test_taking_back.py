"""What a run made on the disk is taken back where it is refused at its first step, and only then."""

import pytest

from experiments.errors import RefusedAtStartError, UserError
from experiments.rows.run_folders import CONFIG_FILE, METRICS_FILE
from experiments.training.taking_back import taken_back_if_refused


def attempt(folder, *, error=RefusedAtStartError, rows="", fresh=False):
    """A run that prepares ``folder``, writes ``rows`` and is refused."""
    with pytest.raises(error, match="refused"), taken_back_if_refused(folder, fresh=fresh):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text("new")
        (folder / METRICS_FILE).write_text(rows)
        raise error("refused")


def test_every_folder_that_was_made_is_removed(tmp_path):
    attempt(tmp_path / "runs" / "name" / "default")
    assert list(tmp_path.iterdir()) == []


def test_what_stood_beside_it_stays(tmp_path):
    other = tmp_path / "runs" / "name" / "other"
    other.mkdir(parents=True)
    attempt(tmp_path / "runs" / "name" / "default")
    assert list(other.parent.iterdir()) == [other]


def test_a_run_that_was_there_keeps_its_files_and_its_description(tmp_path):
    (tmp_path / CONFIG_FILE).write_text("old")
    (tmp_path / "annotations.jsonl").write_text("paid for")
    attempt(tmp_path)
    assert (tmp_path / CONFIG_FILE).read_text() == "old" and (tmp_path / "annotations.jsonl").read_text() == "paid for"


def test_a_folder_that_was_there_is_no_run_afterwards(tmp_path):
    (tmp_path / "notes").write_text("mine")
    attempt(tmp_path)
    assert (tmp_path / "notes").exists() and not (tmp_path / CONFIG_FILE).exists()


def test_a_run_that_starts_over_leaves_an_empty_folder(tmp_path):
    folder, link = tmp_path / "disk", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    (folder / CONFIG_FILE).write_text("old")
    attempt(link, fresh=True)
    assert list(folder.iterdir()) == [] and link.is_symlink()


@pytest.mark.parametrize("case", [{"rows": "{}\n"}, {"error": UserError}])
def test_rows_and_what_failed_later_stay(case, tmp_path):
    attempt(tmp_path / "run", **case)
    assert (tmp_path / "run" / CONFIG_FILE).read_text() == "new"
