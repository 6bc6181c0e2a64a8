"""Bad input at the command line: one line that says what to do, status 2, and no files that a later run would trust."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from envs.catalogue import ENVIRONMENTS
from experiments import disk
from experiments.commands.run import main
from experiments.rows import reading, run_folders
from experiments.training import train
from tests.experiments.corridor import Corridor

HOST = [
    "ppo_cartpole:smoke",
    "--config.data.length=4",
    "--config.data.batch=4",
    "--config.network.hidden=4",
    "--config.agent.epochs=1",
    "--config.agent.minibatches=1",
    "--config.evaluators.episodes.count=2",
    "--config.evaluators.episodes.cut=10",
    "--config.evaluate_every=1",
    "--config.iterations=2",
]
NATIVE = ["ppo_cartpole:native,smoke", *HOST[1:]]
BOX = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


class EnvironmentSource(gymnasium.Env):
    """Observes two zeros, and NaN from step ``broken_at`` on."""

    def __init__(self, observation_space=BOX, action_space=None, broken_at=None):
        self.observation_space = observation_space
        self.action_space = action_space or gymnasium.spaces.Discrete(2)
        self._broken_at = broken_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self._steps += 1
        broken = self._broken_at is not None and self._steps >= self._broken_at
        return np.full(2, np.nan if broken else 0.0, np.float32), 0.0, False, self._steps >= 8, {}


@pytest.fixture(scope="module", autouse=True)
def environments():
    made = {
        "SagaxGraphAction-v0": lambda: EnvironmentSource(
            action_space=gymnasium.spaces.Graph(gymnasium.spaces.Discrete(2), None)
        ),
        "SagaxTextObservation-v0": lambda: EnvironmentSource(gymnasium.spaces.Text(5)),
        "SagaxBroken-v0": lambda: EnvironmentSource(broken_at=3),
    }
    for name, entry_point in made.items():
        gymnasium.register(name, entry_point)
    yield
    for name in made:
        del gymnasium.registry[name]


def files_in(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def last_message(capsys):
    """The message of a refusal: the last line, and the only one that starts with ``error: ``."""
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    lines = printed.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1], lines


def refused(capsys, runs, arguments, words):
    """Asserts a refusal before any work: one line on standard error and no file."""
    assert main([*arguments, f"--runs={runs}"]) == 2
    message, lines = last_message(capsys)
    assert lines == [message]
    for word in words:
        assert word in message
    assert files_in(runs) == []


SOKOBAN, CARTPOLE = "oprl_sokoban:oprl,smoke", "ppo_cartpole:smoke"
DQN, GRID, CLIFF = "dqn_cartpole:smoke", "eta_gridworld:smoke", "eta_cliffwalking:smoke"
RND, EPISODIC = "curiosity_maze:rnd,smoke", "curiosity_maze:episodic,smoke"
MISTAKES = {
    "an experiment": (["oprl_sokobn"], ["unknown experiment 'oprl_sokobn'", "did you mean 'oprl_sokoban'?"]),
    "no experiment": ([":grpo"], ["unknown experiment ''", "known: "]),
    "a shared module": (["_common"], ["unknown experiment '_common'"]),
    "a variant": (["oprl_sokoban:grp"], ["unknown variant 'grp'", "did you mean 'grpo'"]),
    "two methods": (["oprl_sokoban:grpo,ppo"], ["'grpo,ppo'", "exclude each other"]),
    "two starts": (["oprl_sokoban:warm,scratch"], ["scratch and warm exclude each other"]),
    "two environments": (["ppo_pendulum:host,native"], ["exclude each other"]),
    "a key": (
        [SOKOBAN, "--config.agent.learning_rat=1"],
        ["'agent.learning_rat'", "did you mean 'agent.learning_rate'"],
    ),
    "a section": ([SOKOBAN, "--config.data=1"], ["'data' is a section", "data.batch"]),
    "an option": ([SOKOBAN, "--seed=3"], ["unknown argument '--seed', did you mean '--seeds' or '--first-seed'?"]),
    "a prefix": ([SOKOBAN, "--confg.seeds=3"], ["argument '--confg.seeds', did you mean", "or '--config.KEY=VALUE'?"]),
    "a word": ([SOKOBAN, "stray"], ["unknown argument 'stray'"]),
    "no value": ([SOKOBAN, "--config.seeds"], ["has no value"]),
    "a word for a number": ([SOKOBAN, "--config.agent.epochs=two"], ["agent.epochs", "'two'", "an integer"]),
    "a fraction": ([SOKOBAN, "--config.data.batch=0.5"], ["data.batch", "'0.5'", "an integer"]),
    "a number that is none": ([SOKOBAN, "--config.agent.clip=nan"], ["agent.clip", "a finite number"]),
    "a truth value": ([SOKOBAN, "--config.agent.shared_critic=1"], ["agent.shared_critic", "true or false"]),
    "a schedule": ([SOKOBAN, "--config.agent.schedule=liner"], ["schedule", "'liner'", "did you mean 'linear'"]),
    "a warm-up longer than the run": ([SOKOBAN, "--config.agent.warmup=1.0"], ["agent.warmup", "1.0"]),
    "groups": (
        [SOKOBAN, "--config.data.batch=21", "--config.data.group_size=8"],
        ["batch=21", "group_size=8", "the nearest batch that is: 24"],
    ),
    "no groups": ([SOKOBAN, "--config.data.group_size=1"], ["group_size=1", "group_size >= 2"]),
    "minibatches": ([CARTPOLE, "--config.agent.minibatches=5"], ["minibatches=5", "512", "nearest", "is 4"]),
    "an estimator": (
        [SOKOBAN, "--config.credit.env.estimator=group_outcom"],
        ["unknown estimator 'group_outcom'", "did you mean 'group_outcome'"],
    ),
    "a channel": ([SOKOBAN, "--config.credit.env.channel=evn"], ["unknown reward channel 'evn'", "did you mean 'env'"]),
    "a reward": (
        [SOKOBAN, "--config.rewards.implicit_prm.kind=implicit_prn"],
        ["unknown reward transform 'implicit_prn'", "did you mean 'implicit_prm'"],
    ),
    "the other family": (
        [SOKOBAN, "--config.agent.family=value_based"],
        ["rewards.implicit_prm: nothing reads its channel", "expected its weight in agent.channels.implicit_prm"],
    ),
    "the other family of a value-based agent": (
        ["dqn_cartpole:smoke", "--config.agent.family=policy_gradient"],
        ["section credit has no entry: nothing would be learned; expected one, such as credit.env"],
    ),
    "a channel that nothing has written": (
        ["ppo_pendulum:smoke", "--config.rewards.env.channel=evn"],
        ["unknown reward channel 'evn' in rewards.env, did you mean 'env'"],
    ),
    "more passes than can be counted": (
        [CARTPOLE, "--config.agent.epochs=1e21"],
        ["'agent.epochs'", "at most 2147483647"],
    ),
    "more steps between evaluations than can be counted": (
        [
            "ppo_cartpole:native,smoke",
            "--config.evaluate_every=1000000",
            "--config.iterations=1000000",
            "--config.data.length=4096",
        ],
        ["evaluate_every=1000000", "data.length=4096", "evaluations, expected at most 2,147,483,647"],
    ),
    "exploration for more steps than can be counted": (
        ["dqn_cartpole:smoke", "--config.agent.epsilon_steps=1e10"],
        ["'agent.epsilon_steps'", "from 0 to 2.14748e+09"],
    ),
    "more steps than can be counted": (
        [CARTPOLE, "--config.agent.epochs=1000000000"],
        ["agent.epochs=1000000000", "gradient steps, expected at most 2,147,483,647"],
    ),
    "another kind of environment with a choice of the former": (
        [SOKOBAN, "--config.environment.kind=maze"],
        ["configuration section 'environment': unknown reward 'sparse', did you mean 'trackers'?"],
    ),
    "another kind of environment with a key of the former": (
        [SOKOBAN, "--config.environment.kind=breakout", "--config.environment.height=7"],
        ["'environment.height'", "(known to 'breakout': environment.kind, environment.sticky, environment.time_limit"],
    ),
    "a whitening": ([SOKOBAN, "--config.agent.whiten=bach"], ["'agent': unknown whiten 'bach', did you mean 'batch'"]),
    "a functional that needs a level": (
        ["dqn_cartpole:smoke", "--config.agent.functional.kind=cvar"],
        ["configuration section 'agent.functional' lacks 'level'"],
    ),
    "a functional with another's level": (
        ["eta_gridworld:target,smoke", "--config.agent.functional.kind=cvar"],
        ["configuration section 'agent.functional' lacks 'level'"],
    ),
    "a form": (
        [SOKOBAN, "--config.rewards.implicit_prm.form=polcy"],
        ["unknown form 'polcy'", "did you mean 'policy'"],
    ),
    "a kind of environment": (
        [SOKOBAN, "--config.environment.kind=sokobn"],
        ["unknown environment kind 'sokobn'", "did you mean 'sokoban'"],
    ),
    "a kind of data": ([SOKOBAN, "--config.data.kind=episode"], ["unknown kind 'episode'", "did you mean 'episodes'"]),
    "a surrogate": ([SOKOBAN, "--config.agent.surrogate=clp"], ["unknown surrogate 'clp'", "did you mean 'clip'"]),
    "an activation": (
        [SOKOBAN, "--config.network.activation=tnh"],
        ["unknown activation 'tnh'", "did you mean 'tanh'"],
    ),
    "a metric": ([SOKOBAN, "--config.evaluation.metric=succes"], ["unknown metric 'succes'", "did you mean 'success'"]),
    "a room": ([SOKOBAN, "--config.environment.height=1"], ["height=1", "nearest 6"]),
    "an action space": (
        [CARTPOLE, "--config.environment.environment_id=SagaxGraphAction-v0"],
        ["action space is Graph", "supported are Box, Discrete"],
    ),
    "an observation space": (
        [CARTPOLE, "--config.environment.environment_id=SagaxTextObservation-v0"],
        ["observation space is Text", "supported are Box, Discrete"],
    ),
    "a gymnasium environment": (
        [CARTPOLE, "--config.environment.environment_id=CartPol-v1"],
        ["unknown environment 'CartPol-v1'", "CartPole-v1"],
    ),
    "a functional environment": (
        ["ppo_cartpole:native", "--config.environment.name=CartPol-v1"],
        ["unknown functional environment 'CartPol-v1'", "CartPole-v1"],
    ),
    "a host without expert": (
        [CARTPOLE, "--config.warm_start.demonstrations=4"],
        ["warm_start.demonstrations=4", "has no expert"],
    ),
    "a pure environment without expert": (
        ["ppo_pendulum:native", "--config.warm_start.demonstrations=4"],
        ["warm_start.demonstrations=4", "has no expert", "expected warm_start.demonstrations=0"],
    ),
    "negative rooms": (
        [SOKOBAN, "--config.warm_start.demonstrations=-1"],
        ["'warm_start.demonstrations' got -1", "at least 0"],
    ),
    "no start states": (
        ["ppo_cartpole:native,smoke", "--config.rollout.start_states=0"],
        ["rollout.start_states", "at least 1"],
    ),
    "uphill": ([SOKOBAN, "--config.agent.learning_rate=-1"], ["agent.learning_rate", "at least 0"]),
    "a discount": ([DQN, "--config.agent.discount=1.5"], ["'agent.discount' got 1.5", "from 0 to 1"]),
    "no chance": ([DQN, "--config.agent.epsilon_end=-0.1"], ["'agent.epsilon_end' got -0.1", "from 0 to 1"]),
    "no epsilon": ([DQN, "--config.agent.adam_epsilon=0"], ["'agent.adam_epsilon' got 0.0", "above 0"]),
    "atoms upside down": (
        ["dqn_cartpole:c51,smoke", "--config.agent.value_low=10", "--config.agent.value_high=-10"],
        ["'agent.value_low' got 10.0", "below agent.value_high, which is -10.0"],
    ),
    "no loss": ([DQN, "--config.agent.huber=0"], ["'agent'", "huber=0", "expected above 0"]),
    "a buffer": ([DQN, "--config.agent.capacity=100"], ["'agent'", "capacity=100", "capacity=256"]),
    "a functional": (
        [GRID, "--config.agent.functional.kind=target_retrun"],
        ["unknown functional 'target_retrun' in agent.functional", "did you mean 'target_return'"],
    ),
    "a level": (
        ["eta_gridworld:cvar,smoke", "--config.agent.functional.level=1.5"],
        ["'agent.functional'", "level=1.5", "at most 1"],
    ),
    "no candidate": (
        [GRID, "--config.evaluators.exact.candidates=0"],
        ["'evaluators.exact.candidates' got 0", "at least 1"],
    ),
    "fewer candidates than none": ([GRID, "--config.evaluators.exact.candidates=-3"], ["got -3", "at least 1"]),
    "returns turned around": ([GRID, "--config.agent.return_scale=-1"], ["'agent.return_scale' got -1.0", "above 0"]),
    "returns of another unit": (
        [CLIFF, "--config.rewards.env.factor=0.5"],
        ["agent.return_scale=20", "rewards.env.factor=0.5", "expected agent.return_scale=2"],
    ),
    "a channel of another weight": (
        [GRID, "--config.agent.channels.env=0.5"],
        ["agent.return_scale=1", "agent.channels.env=0.5", "expected agent.return_scale=2"],
    ),
    "a horizon that is never reached": (
        [GRID, "--config.environment.time_limit=8"],
        ["'environment.stock'", "horizon=16", "cut after 8 steps"],
    ),
    "no episode": (
        [NATIVE[0], "--config.evaluators.episodes.count=0"],
        ["'evaluators.episodes.count' got 0", "least 1"],
    ),
    "a cut at the start": ([NATIVE[0], "--config.evaluators.episodes.cut=0"], ["'evaluators.episodes.cut' got 0"]),
    "a stock upside down": (
        [GRID, "--config.environment.stock.low=10"],
        ["'environment.stock'", "low=10.0, high=9.0", "low <= high"],
    ),
    "an environment without a table": (
        [CLIFF, "--config.environment.environment_id=CliffWalkin-v1"],
        [
            "'environment'",
            "environment_id='CliffWalkin-v1'",
            "did you mean 'CliffWalking-v1'",
            "known: FrozenLake-v1",
        ],
    ),
    "curiosity uphill": (
        [RND, "--config.rewards.curiosity.learning_rate=-1"],
        ["'rewards.curiosity.learning_rate' got -1.0", "at least 0"],
    ),
    "a target that flees": (
        ["curiosity_maze:explore,smoke", "--config.rewards.curiosity.target_decay=1.5"],
        ["'rewards.curiosity.target_decay' got 1.5", "from 0 to 1"],
    ),
    "a discount of curiosity": (
        [RND, "--config.credit.curiosity.discount=1.7"],
        ["'credit.curiosity.discount' got 1.7", "from 0 to 1"],
    ),
    "a gae_lambda": (
        [RND, "--config.credit.curiosity.gae_lambda=-0.1"],
        ["'credit.curiosity.gae_lambda' got -0.1", "from 0 to 1"],
    ),
    "no minibatch": ([RND, "--config.rewards.curiosity.minibatches=0"], ["'rewards.curiosity'", "minibatches=0"]),
    "more counts than memory": (
        [EPISODIC, "--config.rewards.curiosity.bits=24"],
        ["'rewards.curiosity'", "16777216 counts for each of the 8 environments", "bits=21"],
    ),
    "no seed": ([SOKOBAN, "--seeds=0"], ["--seeds=0", "one seed or more"]),
    "no seed in the configuration": ([SOKOBAN, "--config.seeds=0"], ["'seeds' got 0", "at least 1"]),
    "a negative seed": ([SOKOBAN, "--first-seed=-1"], ["--first-seed=-1"]),
    "no iteration": ([SOKOBAN, "--config.iterations=0"], ["'iterations' got 0", "at least 1"]),
    "a figure of another kind": ([SOKOBAN, "--figure=curve.jpg"], ["curve.jpg", ".png"]),
    "a figure that cannot be written": (
        [SOKOBAN, "--figure=/dev/null/curve.png"],
        ["cannot write /dev/null/curve.png", "Not a directory"],
    ),
    "no member per program": ([SOKOBAN, "--members-per-program=0"], ["--members-per-program=0: expected at least 1"]),
    "half a member per program": (
        [SOKOBAN, "--members-per-program=.5"],
        ["--members-per-program", "expected an integer, got '.5'"],
    ),
    "a number of seeds that is none": ([SOKOBAN, "--seeds=x"], ["--seeds", "expected an integer, got 'x'"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_settings_are_refused_in_one_line_before_any_work(mistake, tmp_path, capsys):
    refused(capsys, tmp_path, *MISTAKES[mistake])


def test_a_missing_package_names_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    words = ["envpool is missing", "the extra 'fast'", "pip install -e '.[fast]'"]
    refused(capsys, tmp_path, [CARTPOLE, "--config.environment.kind=envpool"], words)


def test_a_defect_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(config, spec):
        raise AssertionError("a defect of the program")

    monkeypatch.setattr("experiments.assembly.checks.build_parts", broken)
    with pytest.raises(AssertionError, match="a defect"):
        main([CARTPOLE, f"--runs={tmp_path}"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("finished")
    assert main([*HOST, f"--runs={runs}"]) == 0
    [folder] = (runs / "ppo_cartpole").iterdir()
    return folder


@pytest.fixture
def run_again(finished, tmp_path):
    """A copy of a finished run: its runs folder, and its own."""
    shutil.copytree(finished, tmp_path / "ppo_cartpole" / finished.name)
    return tmp_path, tmp_path / "ppo_cartpole" / finished.name


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in files_in(folder)}


def stays(capsys, runs, folder, arguments, words):
    """Asserts a refusal that leaves the existing run unchanged."""
    before = contents(folder)
    assert main([*arguments, f"--runs={runs}"]) == 2
    message, lines = last_message(capsys)
    assert lines == [message]
    for word in words:
        assert word in message
    assert contents(folder) == before


def test_a_folder_of_other_seeds_or_another_length_is_refused(run_again, capsys):
    runs, folder = run_again
    capsys.readouterr()
    stays(capsys, runs, folder, [*HOST, "--first-seed=1"], [str(folder), "other seeds", "[0]", "--fresh", "--runs"])
    # Annealed learning rates depend on the number of iterations.
    longer = [*HOST[:-1], "--config.iterations=3"]
    stays(capsys, runs, folder, longer, [str(folder), "another configuration", "iterations: 2 against 3", "--fresh"])


def test_a_folder_of_another_configuration_is_refused_until_fresh_starts_over(run_again, capsys):
    runs, folder = run_again
    path = folder / run_folders.CONFIG_FILE
    described = json.loads(path.read_text())
    described["config"]["agent"]["learning_rate"] = 0.5
    path.write_text(json.dumps(described))
    capsys.readouterr()
    words = [str(folder), "another configuration", "agent.learning_rate: 0.5 against 0.0025", "--fresh"]
    stays(capsys, runs, folder, HOST, words)
    assert main([*HOST, f"--runs={runs}", "--fresh", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["resumed_from"] is None and answer["finished"]
    assert json.loads(path.read_text())["config"]["agent"]["learning_rate"] == 0.0025
    assert [row["iteration"] for row in reading.read_rows(folder / run_folders.METRICS_FILE)] == [1, 2]
    assert [child.name for child in runs.iterdir()] == ["ppo_cartpole"]


def test_a_checkpoint_of_another_configuration_is_refused(run_again, tmp_path_factory, capsys):
    _, folder = run_again
    runs = tmp_path_factory.mktemp("other")
    arguments = [*HOST, "--config.agent.learning_rate=0.01"]
    other = (
        runs
        / "ppo_cartpole"
        / re.sub(r"\+agent\.minibatches", "+agent.learning_rate=0.01+agent.minibatches", folder.name)
    )
    shutil.copytree(folder / train.CHECKPOINT_FOLDER, other / train.CHECKPOINT_FOLDER)
    capsys.readouterr()
    assert main([*arguments, f"--runs={runs}"]) == 2
    message, _ = last_message(capsys)
    assert "checkpoint 2" in message and str(other) in message and "another configuration" in message
    assert reading.read_rows(other / run_folders.METRICS_FILE) == []


def test_a_checkpoint_of_another_network_is_refused(run_again, tmp_path_factory, capsys):
    _, folder = run_again
    runs = tmp_path_factory.mktemp("other")
    other = runs / "ppo_cartpole" / folder.name.replace("hidden=(4,)", "hidden=(5,)")
    shutil.copytree(folder / train.CHECKPOINT_FOLDER, other / train.CHECKPOINT_FOLDER)
    capsys.readouterr()
    arguments = [argument.replace("hidden=4", "hidden=5") for argument in HOST]
    assert main([*arguments, f"--runs={runs}"]) == 2
    message, _ = last_message(capsys)
    assert "another configuration" in message and "float32[" in message
    assert reading.read_rows(other / run_folders.METRICS_FILE) == []


def test_a_disk_that_is_full_from_the_start(tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", full)
    assert main([*HOST, f"--runs={tmp_path}"]) == 2
    message, lines = last_message(capsys)
    assert lines == [message] and "cannot write" in message and "No space left on device" in message
    assert files_in(tmp_path) == []


def test_a_disk_that_fills_up_during_the_run_leaves_a_run_that_continues(tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("experiments.training.checkpoint.shutil.disk_usage", lambda path: usage._replace(free=1000))
    assert main([*HOST, f"--runs={tmp_path}"]) == 2
    message, _ = last_message(capsys)
    assert "cannot write a checkpoint" in message and "0.0 MiB are free" in message
    monkeypatch.undo()
    assert main([*HOST, f"--runs={tmp_path}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    # Its first checkpoint was never written: the row before it is not trusted but written anew.
    assert answer["resumed_from"] is None
    [folder] = (tmp_path / "ppo_cartpole").iterdir()
    assert [row["iteration"] for row in reading.read_rows(folder / run_folders.METRICS_FILE)] == [1, 2]


def test_a_runs_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert main([*HOST, f"--runs={tmp_path / 'file'}"]) == 2
    message, lines = last_message(capsys)
    assert lines == [message] and "cannot write" in message and str(tmp_path / "file") in message
    assert (tmp_path / "file").read_text() == "precious"


@pytest.fixture
def mounted(tmp_path):
    """``(options) -> folder``: a small file system in memory; needs the right to mount."""
    made = []

    def mount(options):
        folder = tmp_path / "mounted"
        folder.mkdir()
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True, timeout=20
            )
        except (OSError, subprocess.SubprocessError):
            pytest.skip("no right to mount a file system")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", folder], check=True, timeout=20)


def test_a_read_only_disk(mounted, capsys):
    folder = mounted("size=64k,ro")
    assert main([*HOST, f"--runs={folder}"]) == 2
    message, lines = last_message(capsys)
    assert lines == [message] and "cannot write" in message and "Read-only file system" in message


@pytest.mark.parametrize("size", ["8k", "512k"])
def test_a_small_disk(mounted, size, capsys):
    folder = mounted(f"size={size}")
    assert main([*HOST, f"--runs={folder}"]) == 2
    message, _ = last_message(capsys)
    assert "cannot write" in message
    assert not [path for path in files_in(folder) if "partial" in path.name or path.parent.name.isdigit()]


def test_a_host_environment_that_is_not_finite(tmp_path, capsys):
    arguments = [*HOST, "--config.environment.environment_id=SagaxBroken-v0", f"--runs={tmp_path}"]
    for _ in range(2):
        assert main(arguments) == 2
        message, _ = last_message(capsys)
        assert "SagaxBroken-v0: environment 0, step 3" in message and "nan" in message
        assert "there is no checkpoint yet" in message
    [folder] = (tmp_path / "ppo_cartpole").iterdir()
    assert reading.read_rows(folder / run_folders.METRICS_FILE) == []


def test_a_pure_environment_that_is_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "functional", lambda name: Corridor(poison=1))
    assert main([*NATIVE, "--seeds=2", f"--runs={tmp_path}"]) == 2
    message, _ = last_message(capsys)
    assert "NaN or infinity" in message and "seeds [0, 1]" in message and "there is no checkpoint yet" in message
    [folder] = (tmp_path / "ppo_cartpole").iterdir()
    assert reading.read_rows(folder / run_folders.METRICS_FILE) == []
