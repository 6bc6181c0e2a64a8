"""What a run needs: counted by hand from shapes, refused before it starts, shown by ``sagax show``."""

from __future__ import annotations

import pytest

from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.commands import run, show
from experiments.errors import UserError
from experiments.training import requirements as module
from experiments.training.requirements import Memory, require_memory, requirements, shown_bytes
from experiments.training.scan_driver import ScanDriver
from tests.experiments import corridor

# By key: a value whose arrays do not fit into 16 GiB, and the part of the requirements that it makes the largest.
HUGE = {
    "evaluators.episodes.count": ("ppo_cartpole:native,smoke", "2000000000", "evaluators.NAME.count"),
    "data.batch": ("ppo_cartpole:native,smoke", "10000000", "data.batch"),
    "data.length": ("ppo_cartpole:native,smoke", "10000000", "data.length"),
    "network.hidden": ("ppo_cartpole:native,smoke", "2000000000,2000000000", "network.hidden"),
    "host evaluators.episodes.count": ("ppo_cartpole:smoke", "2000000000", "evaluators.NAME.count"),
    "agent.capacity": ("dqn_cartpole:smoke", "2147483647", "agent.capacity"),
    "agent.batch_size": ("dqn_cartpole:smoke", "2000000000", "agent.batch_size"),
    "rewards.implicit_prm.replay": ("oprl_sokoban:oprl,smoke", "1000000000", "replay"),
}


@pytest.fixture(autouse=True)
def source(monkeypatch):
    corridor.register(monkeypatch)


def needs_of(config, members=1, members_per_program=None):
    return requirements(config, build_environment(config), members, members_per_program)


def test_the_run_state_is_that_of_the_driver_and_the_rest_is_counted_by_hand():
    config = corridor.with_critic()
    config.data.update({"length": 5, "batch": 8})
    config.evaluators.episodes.count = 3
    needs = needs_of(config, 2)
    template = ScanDriver(config, build_environment(config), corridor.members(0, 1)).template()
    assert needs.parts["run state"] == module.size_of(template)
    # Two networks of two inputs, four hidden units and two or one outputs.
    assert needs.parameters == (2 * 4 + 4 + 4 * 2 + 2) + (2 * 4 + 4 + 4 * 1 + 1)
    assert needs.env_steps == 4 * 5 * 8 and needs.members == 2
    # Two numbers of position, a counter, and the two numbers of the observation, for every step of either seed.
    assert needs.parts["start states"] == 2 * 5 * 8 * (4 + 4 + 2 * 4)
    # Ends, mask, return, length and reward of every evaluated step, four in an episode.
    assert needs.parts["evaluation"] == 2 * 3 * 4 * (1 + 1 + 4 + 4 + 4 + 4)
    assert needs.memory == sum(needs.parts.values())
    assert needs.of_evaluation().memory == needs.parts["run state"] + needs.parts["evaluation"]


def test_only_members_that_are_trained_side_by_side_count():
    config = corridor.with_replay()
    one, two, split = needs_of(config, 1), needs_of(config, 2), needs_of(config, 2, 1)
    for part in ("run state", "trajectory", "evaluation", "minibatch"):
        assert two.parts[part] == 2 * one.parts[part] and split.parts[part] == one.parts[part] > 0
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    assert needs_of(config, 2).parts["trajectory"] == needs_of(config, 1).parts["trajectory"] > 0


@pytest.mark.parametrize("key", HUGE)
def test_sizes_that_fit_into_no_memory_are_refused_before_anything_is_written(key, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "memory", lambda: Memory(16 * 2**30, "this machine"))
    name, value, named = HUGE[key]
    changes = [f"--config.{key.split()[-1]}={value}", "--config.evaluate_every=1"]
    assert run.main([name, *changes, f"--runs={tmp_path}"]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert message.startswith("error: this run needs at least ") and named in message and "expected less" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", HUGE)
def test_numbers_that_no_counter_holds_are_refused(key, tmp_path, capsys):
    assert run.main([HUGE[key][0], f"--config.{key.split()[-1]}=1e12", f"--runs={tmp_path}"]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert "2147483647" in message and key.split()[-1] in message


@pytest.mark.parametrize("seeds", ["1e9", "1000000000"])
def test_seeds_that_fit_into_no_memory_are_refused(seeds, tmp_path, capsys):
    assert run.main(["ppo_cartpole:native,smoke", f"--seeds={seeds}", f"--runs={tmp_path}"]) == 2
    [message] = capsys.readouterr().err.splitlines()
    assert "this run needs at least " in message and "seeds" in message


def test_half_of_the_memory_warns_and_all_of_it_refuses(capsys):
    needs = needs_of(corridor.with_critic())
    require_memory(needs, Memory(2 * needs.memory, "it"))
    require_memory(needs, None)
    assert capsys.readouterr().err == ""
    require_memory(needs, Memory(2 * needs.memory - 2, "it"))
    assert capsys.readouterr().err.startswith(f"warning: this run needs at least {shown_bytes(needs.memory)} of memory")
    with pytest.raises(UserError, match="it has"):
        require_memory(needs, Memory(needs.memory - 1, "it"))


def test_memory_is_that_of_the_machine_or_of_its_container(tmp_path, monkeypatch):
    found = module.memory()
    assert found is not None and found.size > 2**28 and found.owner == "this machine"
    (tmp_path / "limit").write_text("1048576\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(module, "_LIMIT_FILES", (str(tmp_path / "none"), str(tmp_path / "limit"), str(tmp_path / "no")))
    assert module.memory() == Memory(2**20, "this machine")


def test_bytes_are_shown_in_the_unit_that_fits():
    assert [shown_bytes(size) for size in (0, 1023, 1536, 3 * 2**40)] == [
        "0 bytes",
        "1,023 bytes",
        "1.5 KiB",
        "3.0 TiB",
    ]


def test_show_prints_what_a_run_needs(capsys):
    assert show.main(["ppo_cartpole:native,smoke", "--seeds=3", "--config.network.hidden=8"]) == 0
    text = capsys.readouterr().out
    config = registry.load("ppo_cartpole:native,smoke").config
    steps = config.iterations * config.data.length * config.data.batch
    assert f"{steps:,} per seed at most, {3 * steps:,} in all" in text
    assert "--config.network.hidden=8\n" in text and "memory             at least " in text
    # Two networks of four inputs, eight hidden units and two or one outputs.
    assert f"parameters         {(4 * 8 + 8 + 8 * 2 + 2) + (4 * 8 + 8 + 8 + 1):,} per seed" in text


def test_show_prints_a_configuration_that_cannot_be_built_here(capsys):
    arguments = ["ppo_cartpole:smoke", "--config.environment.environment_id=NoSuchEnvironment-v0"]
    assert show.main(arguments) == 0
    text = capsys.readouterr().out
    assert "environment.environment_id" in text and "Needs: not known, " in text
