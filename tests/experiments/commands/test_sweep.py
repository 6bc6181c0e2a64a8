"""A sweep's points compared with single runs, its grid, its jobs and its refusals."""

import json
import os
import shlex
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.commands import run, sweep
from experiments.configs._common import episodes_evaluator
from experiments.errors import UserError
from experiments.rows import reading
from experiments.training import launchers, sweeps
from experiments.training.processes import VARIABLES
from rewards.base import stateless, write_channel
from rewards.catalogue import REWARDS
from tests.experiments import corridor

TINY = [
    "--config.data.batch=16",
    "--config.evaluators.episodes.count=16",
    "--config.network.hidden=8",
]


def rows_of(folder, variant):
    rows = [row for row in reading.read_runs(folder, "oprl_sokoban") if row["variant"] == variant]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["oprl_sokoban:grpo,smoke", "--seeds=2", "--sweep.agent.learning_rate=0.01,0.02", f"--runs={folder}"]
    assert sweep.main([*arguments, *TINY]) == 0
    return folder, arguments


def test_a_point_equals_the_single_run_with_its_overrides(swept, tmp_path, capsys):
    folder, _ = swept
    override = "--config.agent.learning_rate=0.02"
    assert run.main(["oprl_sokoban:grpo,smoke", "--seeds=2", override, f"--runs={tmp_path}", *TINY]) == 0
    capsys.readouterr()
    [variant] = reading.variants_of(reading.read_runs(tmp_path, "oprl_sokoban"))
    single, point = rows_of(tmp_path, variant), rows_of(folder, variant.replace("+", "+sweep+", 1))
    assert len(single) == len(point) == 4
    # The first evaluation, after two updates: a traced number is not folded into the compiled constants, so that
    # the two are equal to rounding, which grows as learning goes on.
    for alone, beside in zip(single[:2], point[:2], strict=True):
        assert alone.keys() == beside.keys()
        for key in alone.keys() - {"variant"}:
            value = alone[key]
            expected = value if isinstance(value, str) or value is None else pytest.approx(value, rel=1e-4, abs=1e-6)
            assert beside[key] == expected, key


def test_the_points_are_ranked_and_the_best_is_a_command(swept, capsys):
    folder, arguments = swept
    assert sweep.main([*arguments, *TINY, "--json", "--rank=auc"]) == 0
    answer = json.loads(capsys.readouterr().out)
    scores = [point["iqm"] for point in answer["points"]]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert answer["best"].startswith("sagax run oprl_sokoban:grpo,smoke --config.data.batch=16 ")
    best = next(part for part in answer["points"][0]["variant"].split("+") if "learning_rate" in part)
    assert answer["best"].endswith(f"--config.{best} --seeds=2")
    # The same command again trained nothing: the rows are still those of two points, two seeds, two evaluations.
    assert len(reading.read_runs(folder, "oprl_sokoban")) == 8


@pytest.fixture
def corridor_sweep(monkeypatch, tmp_path, capsys):
    """``corridor_sweep(*arguments)`` sweeps the corridor, three evaluations; returns answer, rows, messages."""
    corridor.register(monkeypatch)
    config = corridor.without_critic()
    config.iterations = 6
    loaded = corridor.loaded(config)._replace(module=SimpleNamespace(get_sweep=dict))
    monkeypatch.setattr(registry, "load", lambda name: loaded)
    monkeypatch.setattr(sweeps, "enable_compilation_cache", lambda: None)

    def command(*arguments):
        capsys.readouterr()
        assert sweep.main(["corridor", f"--runs={tmp_path}", "--json", *arguments]) == 0
        captured = capsys.readouterr()
        [folder] = (tmp_path / "corridor").iterdir()
        lines = [line for line in captured.err.splitlines() if line.startswith("stopped:")]
        return json.loads(captured.out), corridor.rows_of(folder), lines

    return command


def test_a_point_that_diverges_stops_alone(corridor_sweep):
    answer, rows, lines = corridor_sweep("--sweep.agent.learning_rate=3e38,0.02", "--seeds=2")
    good, bad = ([row for row in rows if f"={rate}" in row["variant"]] for rate in ("0.02", "3e+38"))
    assert [row["iteration"] for row in good] == [row["iteration"] for row in bad] == [2, 2, 4, 4, 6, 6]
    assert not any("train/stopped" in row or row["train/rejected_updates"] for row in good)
    # An update that is finite leads to one that is not, and three of them are too many.
    assert [row.get("train/stopped") for row in bad] == [None, None, 1, 1, 1, 1]
    # It stops learning: the policies of the first and the last evaluation are equal.
    assert [row["return"] for row in bad[:2]] == [row["return"] for row in bad[-2:]]
    assert len(lines) == 2 and "3e+38, seed 0: 3 updates in a row were not finite, iterations 2 to 3" in lines[0]
    assert [(point["stopped"], "0.02" in point["variant"]) for point in answer["points"]] == [(0, True), (2, False)]
    assert "0.02" in answer["best"]
    # The same command again finds everything done.
    assert corridor_sweep("--sweep.agent.learning_rate=3e38,0.02", "--seeds=2") == (answer, rows, [])


def test_a_program_whose_members_have_stopped_has_ended(corridor_sweep):
    arguments = ["--sweep.agent.learning_rate=3e38,2e38,0.02", "--seeds=1", "--members-per-program=2"]
    answer, rows, lines = corridor_sweep(*arguments)
    assert [row["iteration"] for row in rows if "e+38" in row["variant"]] == [2, 2, 4, 4]
    assert [row["iteration"] for row in rows if "0.02" in row["variant"]] == [2, 4, 6]
    assert len(lines) == 2 and "0.02" in answer["best"]
    assert corridor_sweep(*arguments) == (answer, rows, [])


def test_a_sweep_of_which_every_point_stopped_has_no_best(corridor_sweep):
    answer, _, _ = corridor_sweep("--sweep.agent.learning_rate=3e38", "--seeds=1")
    assert answer["best"] is None and [point["stopped"] for point in answer["points"]] == [1]


def test_a_point_without_a_value_is_ranked_last():
    row = {"seed": 0, "env_steps": 1, "iteration": 1}
    rows = [
        row | {"variant": "none", "return": None, "train/stopped": 1},
        row | {"variant": "stopped", "return": 9.0, "train/stopped": 1},
        row | {"variant": "low", "return": -1.0},
        row | {"variant": "high", "return": 1.0},
    ]
    points = sweeps.ranking(rows, "return", "final")
    assert [point["variant"] for point in points] == ["high", "low", "stopped", "none"]
    assert [point["stopped"] for point in points] == [0, 0, 1, 1] and points[-1]["iqm"] is None


def test_a_learning_rate_is_traced_and_a_width_is_not():
    loaded = registry.load("oprl_sokoban:oprl_residual,smoke")
    config = registry.apply_overrides(loaded.config, {"network.hidden": "8", "data.batch": "16"})
    source = build_environment(config)
    assert sweeps.is_traceable(config, source, "agent.learning_rate")
    assert sweeps.is_traceable(config, source, "credit.implicit_prm.weight")
    assert sweeps.is_traceable(config, source, "rewards.implicit_prm.beta")
    assert not sweeps.is_traceable(config, source, "agent.epochs")
    assert not sweeps.is_traceable(config, source, "network.hidden")
    # Without a norm there is nothing to clip: another program.
    assert sweeps.is_traceable(config, source, "agent.max_gradient_norm", [0.5, 1.0])
    assert not sweeps.is_traceable(config, source, "agent.max_gradient_norm", [0.5, None])


def test_a_channel_of_another_shape_is_refused_before_any_work(monkeypatch):
    monkeypatch.setitem(REWARDS, "summed", lambda: stateless(lambda t: write_channel(t, "env", t.mask[0])))
    corridor.register(monkeypatch)
    config = corridor.without_critic()
    config.rewards.short = {"kind": "summed"}
    with pytest.raises(UserError, match=r"written by the reward transform 'short', has shape \(8,\)"):
        sweeps.is_traceable(config, build_environment(config), "agent.learning_rate")


def test_every_combination_of_untraced_keys_is_a_job(tmp_path):
    loaded = registry.load("oprl_sokoban:grpo,smoke")
    grid = {"agent.epochs": ["1", "2"], "agent.learning_rate": ["0.1", "0.2", "0.3"], "network.activation": ["relu"]}
    made = sweeps.plan(loaded, loaded.config, {}, grid, seeds=2, first_seed=5, runs=str(tmp_path))
    assert [job.config.agent.epochs for job in made.jobs] == [1, 2]
    assert len({job.folder for job in made.jobs}) == 2
    for job in made.jobs:
        assert [member.seed for member in job.members] == [5, 6] * 3
        assert sorted({member.values["agent.learning_rate"] for member in job.members}) == [0.1, 0.2, 0.3]
        assert all(f"agent.epochs={job.config.agent.epochs}" in member.variant for member in job.members)


def test_a_sweep_over_keys_that_the_configuration_does_not_spell_out(tmp_path, monkeypatch):
    corridor.register(monkeypatch)
    loaded = corridor.loaded(corridor.with_critic())
    grid = {
        "rewards.env.kind": ["clip", "normalise"],
        "rewards.env.limit": ["3"],
        "credit.env.episodic": ["true", "false"],
    }
    with pytest.raises(UserError, match=r"'rewards\.env\.limit', did you mean .*known to 'clip'"):
        sweeps.plan(loaded, loaded.config, {}, grid, seeds=1, first_seed=0, runs=str(tmp_path))
    grid = {"rewards.env.kind": ["scale"], "rewards.env.factor": ["0.5", "2"], "credit.env.episodic": ["true", "false"]}
    made = sweeps.plan(loaded, loaded.config, {}, grid, seeds=1, first_seed=0, runs=str(tmp_path))
    # A factor is traced, so that its two values are members of one program; the other keys make a job each.
    assert [[member.values for member in job.members] for job in made.jobs] == [
        [{"rewards.env.factor": 0.5}, {"rewards.env.factor": 2.0}]
    ] * 2
    assert [job.config.credit.env.episodic for job in made.jobs] == [True, False]
    assert next(iter(made.commands)) == "+sweep+credit.env.episodic=True+rewards.env.factor=0.5+rewards.env.kind=scale"


def test_a_discount_that_the_environment_is_built_from_is_a_job_of_its_own(tmp_path):
    """A stock grows by the agent's discount: one environment for both points would pursue another return than the
    agent."""
    loaded = registry.load("eta_gridworld:smoke")
    grid = {"agent.discount": ["0.9", "0.5"], "agent.target_rate": ["0.1", "0.2"]}
    made = sweeps.plan(loaded, loaded.config, {}, grid, seeds=1, first_seed=0, runs=str(tmp_path))
    assert [job.config.agent.discount for job in made.jobs] == [0.9, 0.5]
    assert [build_environment(job.config).pure.discount for job in made.jobs] == [0.9, 0.5]
    for job in made.jobs:
        assert [member.values for member in job.members] == [{"agent.target_rate": rate} for rate in (0.1, 0.2)]


def test_every_point_is_refused_as_its_single_run_is(tmp_path):
    loaded = registry.load("eta_gridworld:smoke")
    config = loaded.config.copy_and_resolve_references().unlock()
    # A functional that needs neither a stock nor, at discount 1, anything else.
    del config.environment.stock
    config.agent.functional = {"kind": "exponential_utility", "rate": 0.5}
    config.agent.stock_features = config.agent.stock_edits = 0
    config.evaluators, config.evaluation.metric = {"episodes": episodes_evaluator(4, greedy=True)}, "return"
    config.lock()
    cases = {"agent.discount": (["1.0", "0.5"], "not indifferent to discount=0.5")}
    cases["agent.learning_rate"] = (["0.1", "-0.1"], "'agent.learning_rate' got -0.1, expected at least 0")
    for key, (values, message) in cases.items():
        assert sweeps.is_traceable(config, build_environment(config), key)
        with pytest.raises(UserError, match=message):
            sweeps.plan(loaded, config, {}, {key: values}, seeds=1, first_seed=0, runs=str(tmp_path))


def test_a_point_whose_returns_are_of_another_unit_than_the_stock_is_refused(tmp_path):
    loaded = registry.load("eta_gridworld:smoke")
    config = loaded.config.copy_and_resolve_references().unlock()
    config.rewards.env = {"kind": "scale", "channel": "env", "factor": 0.5}
    config.agent.return_scale = 2.0
    config.lock()
    # Traced, the factor is nothing that the agent's factory could compare with.
    assert sweeps.is_traceable(config, build_environment(config), "rewards.env.factor")
    with pytest.raises(UserError, match=r"return_scale=2 does not undo .* rewards\.env\.factor=0\.25"):
        sweeps.plan(
            loaded, config, {}, {"rewards.env.factor": ["0.5", "0.25"]}, seeds=1, first_seed=0, runs=str(tmp_path)
        )


def test_the_command_of_a_point_has_the_configuration_of_the_point(tmp_path):
    loaded = registry.load("oprl_sokoban:grpo,smoke")
    overrides = {"data.batch": "16", "iterations": "6"}
    base = registry.apply_overrides(loaded.config, overrides)
    grid = {"network.hidden": ["8,4", "4"], "agent.learning_rate": ["1e-3", "0.001", "2e-5"]}
    made = sweeps.plan(loaded, base, overrides, grid, seeds=3, first_seed=7, runs=str(tmp_path))
    assert len(made.commands) == 4
    for job in made.jobs:
        for member in job.members:
            words = shlex.split(made.commands[member.variant])
            assert words[:3] == ["sagax", "run", "oprl_sokoban:grpo,smoke"]
            options = [word for word in words[3:] if not word.startswith(registry.PREFIX)]
            assert options == ["--seeds=3", "--first-seed=7"]
            given = registry.parse_overrides([word for word in words[3:] if word not in options])
            point = registry.apply_overrides(job.config, member.values)
            assert not registry.difference(registry.apply_overrides(loaded.config, given), point)
            # A sweep that is prolonged stays the same sweep.
            assert "iterations" not in member.variant


def test_arguments_are_cut_into_grid_launcher_options_and_the_rest():
    arguments = ["--sweep.a=1,2", "--launcher.timeout_min=30", "--sweep.b=1,2;3", "--launcher.slurm_partition=gpu", "x"]
    options, rest = launchers.launcher_options(arguments)
    assert options == {"timeout_min": 30, "slurm_partition": "gpu"}
    assert sweeps.grid_of(rest, {"c": [0]}) == ({"a": ["1", "2"], "b": ["1,2", "3"]}, ["x"])
    assert sweeps.grid_of(["x"], {"c": [0]}) == ({"c": [0]}, ["x"])


def launch(program, total, jobs, tmp_path, **options):
    return launchers.Launch([sys.executable, "-c", program], total, jobs, tmp_path, options)


def test_local_jobs_are_processes_with_statuses_of_their_own(tmp_path):
    # --job=1 fails with status 1, --job=2 kills itself.
    program = "import os, sys; index = int(sys.argv[1][-1]); index == 2 and os.kill(os.getpid(), 9); sys.exit(index)"
    assert launchers.LAUNCHERS["local"](launch(program, 4, 2, tmp_path)) == [0, 1, -9, 3]


def test_local_jobs_have_devices_of_their_own(tmp_path, monkeypatch):
    """On a machine that reports two GPUs."""
    monkeypatch.setattr(launchers, "local_devices", lambda environment: ("gpu", 2))
    program = (
        "import os, pathlib, sys, time; here = pathlib.Path(sys.argv[1]); "
        "(here / (sys.argv[2] + '.txt')).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        # The first two jobs run at the same time.
        "end = time.monotonic() + 20\n"
        "while len(list(here.glob('*.txt'))) < 2 and time.monotonic() < end: time.sleep(.02)"
    )
    command = [sys.executable, "-c", program, os.fspath(tmp_path)]
    assert launchers.LAUNCHERS["local"](launchers.Launch(command, 3, 2, tmp_path, {}, dict(os.environ))) == [0, 0, 0]
    told = [(tmp_path / f"--job={index}.txt").read_text() for index in range(3)]
    assert sorted(told[:2]) == ["0", "1"] and told[2] in ("0", "1")


@pytest.mark.parametrize(
    ("slots", "platform", "devices", "given", "expected"),
    [
        # One process at a time has all devices, and on the CPU there is nothing to give.
        (1, "gpu", 4, {}, [{}]),
        (2, "cpu", 1, {}, [{}, {}]),
        (2, "gpu", 2, {}, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        (2, "gpu", 4, {}, [{"CUDA_VISIBLE_DEVICES": "0,2"}, {"CUDA_VISIBLE_DEVICES": "1,3"}]),
        (2, "gpu", 2, {"CUDA_VISIBLE_DEVICES": "5, GPU-a"}, [{"CUDA_VISIBLE_DEVICES": n} for n in ("5", "GPU-a")]),
        (
            2,
            "gpu",
            1,
            {},
            [{"CUDA_VISIBLE_DEVICES": "0", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.375"}] * 2,
        ),
        (
            2,
            "tpu",
            4,
            {},
            [
                {
                    "TPU_VISIBLE_CHIPS": chip,
                    "TPU_PROCESS_BOUNDS": "1,1,1",
                    "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                }
                for chip in ("0", "1")
            ],
        ),
    ],
)
def test_devices_are_dealt_out_to_slots(slots, platform, devices, given, expected):
    assert [launchers.slot_variables(slot, slots, platform, devices, given) for slot in range(slots)] == expected


def test_a_machines_devices_are_asked_for_in_a_process_of_its_own():
    flags = "--xla_force_host_platform_device_count=3"
    assert launchers.local_devices(os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}) == ("cpu", 3)
    with pytest.raises(UserError, match=r"cannot tell this machine's devices: .*nothing_like_it"):
        launchers.local_devices(os.environ | {"JAX_PLATFORMS": "nothing_like_it"})


def test_a_signal_reaches_every_local_job_and_starts_no_other(tmp_path):
    program = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"(pathlib.Path({str(tmp_path)!r}) / sys.argv[1]).touch()\n"
        "time.sleep(60)"
    )

    def interrupt():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt).start()
    assert launchers.LAUNCHERS["local"](launch(program, 3, 2, tmp_path)) == [143] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["--job=0", "--job=1"]


@pytest.mark.parametrize("launcher", ["submitit", "ray"])
def test_a_launcher_whose_package_is_missing_says_how_to_install_it(launcher, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, launcher, None)
    arguments = ["oprl_sokoban:grpo,smoke", "--sweep.agent.epochs=1,2", f"--launcher={launcher}"]
    assert sweep.main([*arguments, f"--runs={tmp_path}"]) == 2
    assert f"--launcher={launcher} needs the extra" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("launcher", ["submitit", "ray"])
def test_a_launcher_runs_every_job(launcher, tmp_path, monkeypatch):
    """On this machine: submitit without SLURM, and a Ray that is started and ended here. The second job kills what the
    launcher has put around it, as a cluster does with a job beyond its time."""
    said = []
    monkeypatch.setattr(launchers, "say", said.append)
    import submitit

    # How long it waits for the file of a result.
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)
    here = f"pathlib.Path({str(tmp_path)!r})"
    program = (
        f"import os, pathlib, sys; ({here} / sys.argv[1]).touch(); "
        "sys.argv[1] == '--job=1' and os.kill(os.getppid(), 9); sys.exit(3)"
    )
    options = {"max_retries": 0} if launcher == "ray" else {}
    assert launchers.LAUNCHERS[launcher](launch(program, 2, 2, tmp_path, **options)) == [3, 1]
    assert sorted(path.name for path in tmp_path.glob("--job*")) == ["--job=0", "--job=1"]
    assert len(said) == 1 and " has no result: " in said[0]
    if launcher == "ray":
        import ray

        assert not ray.is_initialized()


@pytest.mark.parametrize("launcher", ["submitit", "ray"])
def test_a_setting_that_a_launcher_does_not_have(launcher, tmp_path):
    with pytest.raises(UserError, match=r"--launcher settings \{'tmeout_min': 3\}: "):
        launchers.LAUNCHERS[launcher](launch("", 1, 1, tmp_path, tmeout_min=3))


def test_a_sweep_is_not_shared_by_processes(monkeypatch, capsys):
    for name, value in zip(VARIABLES, ("localhost:1234", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    assert sweep.main(["oprl_sokoban:grpo,smoke", "--sweep.agent.epochs=1,2"]) == 2
    assert f"{VARIABLES[0]} is set: several processes share one run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep.agent.learning_rat=1,2"], "unknown configuration key 'agent.learning_rat', did you mean"),
        (["--sweep.agent.epochs=1,x"], "'agent.epochs' got 'x', expected"),
        (["--sweep.agent.epochs"], "has no value"),
        (["--sweep.agent.epochs=1", "--config.agent.epochs=2"], "both swept and set"),
        (["--sweep.data.batch=16,20"], "not a multiple of group_size=8"),
        (["--jobs=0"], "--jobs=0: expected at least 1"),
        (["--members-per-program=0"], "--members-per-program=0: expected at least 1"),
        (["--metric=sucess"], "unknown metric 'sucess', did you mean 'success'"),
        (["--metric=train/sucess"], "unknown metric 'train/sucess', did you mean 'train/success'"),
        (["--job=99"], "--job=99: expected 0 to 0"),
        (["--job=-1"], "--job=-1: expected 0 to 0"),
        (["--seed=3"], "unknown argument '--seed', did you mean '--seeds'"),
        (["--sweeps.agent.epochs=1,2"], "unknown argument '--sweeps.agent.epochs', did you mean '--sweep.KEY=V1,V2'"),
        (["--sweep.agent.epochs=1", "--launcher.timeout_min=3"], "the launcher local has no settings"),
        (["--launcher.timeout_min"], "has no value"),
        (["--sweep.agent.epochs=1,2", "--launcher.timeout_min=3"], "the launcher local has no settings"),
    ],
)
def test_a_mistake_is_refused_before_any_work(arguments, message, tmp_path, capsys):
    assert sweep.main(["oprl_sokoban:grpo,smoke", f"--runs={tmp_path}", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
