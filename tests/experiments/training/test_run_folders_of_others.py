"""Run folders that were damaged, linked, robbed of their checkpoints, or sent by somebody else."""

from __future__ import annotations

import json
import pickle
import shutil
import sys

import gymnasium
import jax
import numpy as np
import pytest

from experiments.assembly import registry
from experiments.commands import run
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.rows.reading import encode_line
from experiments.training import checkpoint, train
from experiments.training.checkpoint import Checkpoints
from experiments.training.pickle_signature import STATE_VARIABLE
from experiments.training.progress import Silent
from experiments.training.stopping import StopRequested
from tests.experiments import corridor


@pytest.fixture(autouse=True)
def environments(monkeypatch):
    corridor.register(monkeypatch)


def trained(config, folder, iterations, **options):
    config.iterations = iterations
    programs = train.prepare_folder(folder, config, corridor.members())
    return train.train(config, "corridor", programs, folder, Silent(), StopRequested(), **options)


class Counting(gymnasium.Env):
    """Counts its steps, five to an episode, so that it can be told whether an episode went on."""

    observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, False, self.count >= 5, {}


class Moved(Counting):
    pass


@pytest.fixture
def counting():
    gymnasium.register("SagaxCounting-v0", Moved)
    config = registry.load("ppo_cartpole:smoke").config.copy_and_resolve_references().unlock()
    config.environment.environment_id = "SagaxCounting-v0"
    config.network.hidden = (4,)
    config.agent.update({"schedule": "constant", "epochs": 1, "minibatches": 1})
    config.data.update({"length": 3, "batch": 2})
    config.evaluators.episodes.count = 2
    config.evaluate_every = 1
    yield config
    del gymnasium.registry["SagaxCounting-v0"]


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def replace_pickle(folder, pickled):
    """Does what an attacker can: replaces the pickle in the newest checkpoint and makes the digests match."""
    path = folder / train.CHECKPOINT_FOLDER / train.program_name(0)
    checkpoints = Checkpoints(path)
    iteration = checkpoints.latest()
    meta = json.loads((path / str(iteration) / "meta" / "metadata").read_text())
    described = meta.pop("host")
    host = checkpoint.Snapshot(described["values"], {}, pickled)
    state = checkpoints._read(iteration, state=checkpoint.ocp.args.StandardRestore())["state"]
    checkpoints.close()
    shutil.rmtree(path)
    checkpoints = Checkpoints(path)
    checkpoints.save(iteration, [state[name] for name in sorted(state)], meta, 0.0, host)
    checkpoints.close()


def test_a_pickle_from_elsewhere_is_not_loaded(counting, tmp_path, monkeypatch, capsys, compiled_once):
    folder, marker = tmp_path / "run", tmp_path / "marker"
    trained(counting, folder, 1)
    with monkeypatch.context() as patch:
        patch.setenv(STATE_VARIABLE, str(tmp_path / "stranger"))
        replace_pickle(folder, pickle.dumps(Evil(marker)))
    capsys.readouterr()
    # Nothing is loaded of a run that has ended, so there is no message.
    trained(counting, folder, 1)
    assert capsys.readouterr().err == "" and not marker.exists()
    assert trained(counting, folder, 2).finished
    [line] = capsys.readouterr().err.splitlines()
    assert "--unpickle-environments" in line and line.endswith("they begin new episodes at iteration 1")
    assert not marker.exists()
    assert [row["iteration"] for row in corridor.rows_of(folder)] == [1, 2]


def test_what_was_asked_for_by_name_is_loaded(counting, tmp_path, monkeypatch, capsys, compiled_once):
    folder = tmp_path / "run"
    trained(counting, folder, 1)
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "another machine"))
    trained(counting, folder, 2, unpickle=True)
    assert capsys.readouterr().err == ""
    [session] = json.loads((folder / run_folders.ENVIRONMENT_FILE).read_text())["continued"]
    assert "resumed_exactly" not in session


def test_a_class_that_was_moved_begins_new_episodes(counting, tmp_path, monkeypatch, capsys, compiled_once):
    folder = tmp_path / "run"
    trained(counting, folder, 1)
    monkeypatch.delattr(sys.modules[__name__], "Moved")
    gymnasium.registry.pop("SagaxCounting-v0")
    gymnasium.register("SagaxCounting-v0", Counting)
    assert trained(counting, folder, 2).finished
    [line] = capsys.readouterr().err.splitlines()
    assert "the saved environments cannot be read (AttributeError" in line and "new episodes at iteration 1" in line


@pytest.fixture
def finished(tmp_path, compiled_once):
    config, folder = corridor.without_critic(), tmp_path / "run"
    trained(config, folder, 4)
    return config, folder


def test_a_finished_run_without_its_checkpoints_keeps_its_rows(finished, capsys):
    config, folder = finished
    before = (folder / run_folders.METRICS_FILE).read_bytes()
    shutil.rmtree(folder / train.CHECKPOINT_FOLDER)
    outcome = trained(config, folder, 4)
    assert outcome.finished and len(outcome.rows) == 2
    assert "the checkpoints of this finished run are gone" in capsys.readouterr().err
    # It cannot go on, and does not start over by itself.
    with pytest.raises(
        UserError, match=r"rows up to iteration 4, and .* has no checkpoint to go on from: give --fresh"
    ):
        trained(config, folder, 8)
    assert (folder / run_folders.METRICS_FILE).read_bytes() == before


def test_a_last_row_that_was_torn_is_written_again_from_the_checkpoint(finished, capsys):
    config, folder = finished
    path = folder / run_folders.METRICS_FILE
    before, whole = path.read_bytes(), corridor.rows_of(folder)
    path.write_bytes(before[:-9])
    assert trained(config, folder, 4).finished
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "its last line was torn" in lines[0]
    assert "the row of seed 0, iteration 4 was lost, and is written again from the checkpoint" in lines[1]
    assert corridor.rows_of(folder) == whole


def test_a_damaged_checkpoint_goes_on_from_the_one_before(tmp_path, capsys, compiled_once, monkeypatch):
    config, folder = corridor.without_critic(), tmp_path / "run"
    # The first is the best and stays.
    monkeypatch.setattr(checkpoint.preservation_policy, "BestN", lambda **_: checkpoint.preservation_policy.LatestN(2))
    trained(config, folder, 4)
    whole = corridor.rows_of(folder)
    path = folder / train.CHECKPOINT_FOLDER / train.program_name(0) / "4" / "meta" / "metadata"
    path.write_text(path.read_text().replace('"env_steps"', '"env_stepS"'))
    outcome = trained(config, folder, 4)
    assert outcome.resumed_from == 2 and corridor.rows_of(folder) == whole
    [line] = capsys.readouterr().err.splitlines()
    assert "the checkpoint 4 in" in line and "meta/metadata is another" in line


@pytest.mark.parametrize("linked", ["run", "experiment"])
def test_fresh_empties_a_linked_folder_and_keeps_the_link(linked, tmp_path):
    config, members = corridor.without_critic(), corridor.members()
    disk, folder = tmp_path / "disk", tmp_path / "runs" / "corridor" / "default"
    (disk / "default").mkdir(parents=True)
    link, target = (folder, disk / "default") if linked == "run" else (folder.parent, disk)
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    train.prepare_folder(folder, config, members)
    (folder / "old").write_text("")
    config.agent.clip = 0.1
    train.prepare_folder(folder, config, members, fresh=True)
    assert link.is_symlink() and [path.name for path in folder.iterdir()] == [run_folders.CONFIG_FILE]
    assert [path.name for path in disk.iterdir()] == ["default"]


def test_fresh_that_is_refused_changes_nothing(finished, monkeypatch):
    config, folder = finished
    before = sorted(folder.rglob("*"))

    def refuse(self, target):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(train.Path, "rename", refuse)
    with pytest.raises(UserError, match=r"cannot remove .*: Device or resource busy"):
        train.prepare_folder(folder, config, corridor.members(), fresh=True)
    assert sorted(folder.rglob("*")) == before


def test_other_settings_of_jax_are_refused(finished):
    config, folder = finished
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        with pytest.raises(UserError, match=r"was made with other settings of JAX: jax_threefry_partitionable="):
            train.prepare_folder(folder, config, corridor.members())
    train.prepare_folder(folder, config, corridor.members())


HOSTILE_META = {
    "no steps": {"env_steps": None},
    "steps of no member": {"env_steps": []},
    "steps that are text": {"env_steps": ["1"]},
    "rows that are none": {"rows": {"a": 1}},
    "a row without a seed": {"rows": [{"iteration": 4}]},
    "a row with a list": {"rows": [{"iteration": 4, "seed": 0, "env_steps": 1, "x": [1]}]},
    "another fingerprint": {"fingerprint": {"a": [1]}},
    "members that are none": {"members": 3},
}


@pytest.mark.parametrize("case", HOSTILE_META)
def test_metadata_that_is_not_ours_is_one_message(case, finished, monkeypatch, capsys):
    config, folder = finished
    step = folder / train.CHECKPOINT_FOLDER / train.program_name(0) / "4"
    (step / checkpoint.DIGEST_FILE).unlink()
    path = step / "meta" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | HOSTILE_META[case]))
    with pytest.raises(UserError, match="the checkpoint 4 in"):
        trained(config, folder, 4)


HOSTILE_ENVIRONMENT = {
    "deep": "[" * 10**5,
    "a list": "[]",
    "a number": '{"continued": 3}',
    "sessions without rows": '{"continued": [{}]}',
    "settings": '{"settings": []}',
    "not a number": '{"continued": [{"first_row": NaN}]}',
    "huge": f'{{"continued": [{{"first_row": 1{"0" * 400}}}]}}',
}


@pytest.mark.parametrize("case", HOSTILE_ENVIRONMENT)
def test_an_environment_file_that_is_not_ours_is_one_message(case, finished):
    config, folder = finished
    (folder / run_folders.ENVIRONMENT_FILE).write_text(HOSTILE_ENVIRONMENT[case])
    with pytest.raises(UserError, match=r"environment\.json"):
        trained(config, folder, 8)


def test_a_run_folder_without_its_annotators_address_is_not_made(tmp_path, monkeypatch, capsys):
    for name in ("SAGAX_ANNOTATOR_URL", "SAGAX_ANNOTATOR_MODEL"):
        monkeypatch.delenv(name, raising=False)
    from tests.experiments import talking

    talking.register(monkeypatch)
    config = talking.config_of("retrieval", kind="http", goal="reach the goal")
    monkeypatch.setattr(registry, "load", lambda _: corridor.loaded(config, "talking"))
    assert run.main(["talking", f"--runs={tmp_path / 'runs'}"]) == 2
    assert "SAGAX_ANNOTATOR_URL" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    # Nor is a run removed that was to start over.
    kept = tmp_path / "runs" / "talking" / "default" / run_folders.CONFIG_FILE
    kept.parent.mkdir(parents=True)
    kept.write_text("kept")
    assert run.main(["talking", f"--runs={tmp_path / 'runs'}", "--fresh"]) == 2
    assert "SAGAX_ANNOTATOR_URL" in capsys.readouterr().err and kept.read_text() == "kept"


def test_rows_in_a_hidden_folder_are_not_read(tmp_path):
    line = encode_line({"experiment": "x", "variant": "", "seed": 0, "env_steps": 1, "iteration": 1, "return": 1.0})
    for name in ("default", ".default.removed"):
        folder = tmp_path / "x" / name
        folder.mkdir(parents=True)
        (folder / run_folders.METRICS_FILE).write_bytes(line)
    assert len(reading.read_runs(tmp_path, "x")) == 1
