"""The benchmark: timing in turns, ratios by hand, bad input, tiny cases, and whether both sides do the same work."""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial

import jax
import numpy as np
import pytest

from agents.functionals import cvar
from agents.planning.distributional import value_iteration
from agents.planning.return_distributions import StockGrid, categorical, lattice
from envs.keys import seed_key
from envs.native.tabular import gridworld
from experiments.benchmarks import cases, numpy_planner, reward_cases
from experiments.benchmarks.baseline_sides import baseline, baseline_job, replay_job
from experiments.benchmarks.cases import CASES, Case
from experiments.benchmarks.device_cases import FINISHED, Measurement, devices, measured
from experiments.benchmarks.fused import fused_chunk, fused_state
from experiments.benchmarks.sides import Options, loaded, scan_driver
from experiments.benchmarks.timing import Comparison, Sample, compared, in_turns, timed
from experiments.benchmarks.value_cases import gradient_steps
from experiments.commands import benchmark
from experiments.errors import UserError

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


# --- timing --------------------------------------------------------------------------------------------


def test_sides_take_turns_in_alternating_order():
    calls = []

    def side(name):
        def run():
            calls.append(name)
            return Sample(len(calls), 1.0, 1.0)

        return run

    said = []
    samples = in_turns({"a": side("a"), "b": side("b"), "c": side("c")}, 3, said.append)
    assert said[2:4] == ["measuring c, round 1 of 3", "measuring c, round 2 of 3"] and len(said) == 9
    assert calls == ["a", "b", "c", "c", "b", "a", "a", "b", "c"]
    assert {name: [sample.steps for sample in found] for name, found in samples.items()} == {
        "a": [1, 6, 7],
        "b": [2, 5, 8],
        "c": [3, 4, 9],
    }


def test_a_timed_piece_counts_its_steps_once():
    calls = []

    def piece():
        calls.append(None)
        return 12

    sample = timed(piece)
    assert sample.steps == 12 and len(calls) == 1 and sample.seconds >= 0 and sample.cpu_seconds >= 0


def three_pairs(**fields):
    """Steps per second 10, 40, 20 against 10, 10, 40; per second of the processor 5, 80, 20 against 10, 20, 40."""
    samples = {
        "ours": [Sample(20, 2.0, 4.0), Sample(80, 2.0, 1.0), Sample(20, 1.0, 1.0)],
        "theirs": [Sample(40, 4.0, 4.0), Sample(40, 4.0, 2.0), Sample(40, 1.0, 1.0)],
    }
    fields = {"name": "speed", "ours": "one", "reference": "another", "unit": "steps/s"} | fields
    return compared(samples, "ours", "theirs", **fields)


def test_a_report_has_medians_and_the_pairs_ratios():
    report = three_pairs(target=0.9, details={"share": 0.25, "iterations": 20}).report()
    assert report == {
        "name": "speed",
        "ours": "one",
        "reference": "another",
        "unit": "steps/s",
        "ours_median": 20.0,
        "reference_median": 10.0,
        # The median of 1, 4 and 1/2, which is not the ratio 2 of the medians.
        "ratio": 1.0,
        "ratio_min": 0.5,
        "ratio_max": 4.0,
        "pairs": 3,
        "target": 0.9,
        # The median of 1/2, 4 and 1/2.
        "ratio_cpu": 0.5,
        "details": {"share": 0.25, "iterations": 20},
    }


def test_processor_time_that_was_not_measured_gives_no_ratio():
    samples = {"ours": [Sample(8, 2.0, 0.0)], "theirs": [Sample(8, 4.0, 1.0)]}
    report = compared(samples, "ours", "theirs", name="", ours="", reference="", unit="").report()
    assert report["ratio"] == 2.0 and report["target"] is None and "ratio_cpu" not in report


WHERE = {"device": "cpu", "device_count": 1, "cores": 2, "versions": {"jax": "0.1"}}


def test_a_line_says_both_rates_the_ratio_and_where():
    report = three_pairs(
        target=0.9, details={"share": 0.25, "iterations": 20, "baseline_versions": {"torch": "2"}}
    ).report()
    assert benchmark.line("case", report, WHERE) == (
        "case/speed: one: 20 steps/s; another: 10; ratio 1.00 (0.50 to 4.00, 3 pairs, by processor time 0.50, "
        "target 0.9), share 0.25 [1 x cpu, 2 cores, jax 0.1]"
    )
    plain = Comparison("speed", "one", "another", "1/s", [(3000.0, 2000.0)]).report()
    assert benchmark.line("case", plain, WHERE) == (
        "case/speed: one: 3,000 1/s; another: 2,000; ratio 1.50 (1.50 to 1.50, 1 pairs) [1 x cpu, 2 cores, jax 0.1]"
    )


# --- mistakes ------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """The only line of a refusal."""
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    *said, message = printed.err.splitlines()
    # The output of a case before it finds that something is missing.
    assert message.startswith("error: ") and not any("measuring" in line for line in said)
    return message


@pytest.fixture
def nothing_runs(monkeypatch):
    """Fails if a case is run."""

    def run(options):
        raise AssertionError("nothing is to be measured")

    for name in CASES:
        monkeypatch.setitem(CASES, name, Case("", run))


def test_an_unknown_case_names_the_nearest_before_any_is_run(capsys, nothing_runs):
    message = refused(capsys, "fused_grpo", "fused_pppo")
    assert "unknown case 'fused_pppo', did you mean 'fused_ppo'" in message
    assert all(name in message for name in CASES)


def test_wrong_options(capsys, nothing_runs):
    assert "--repeats=0: expected at least 1" in refused(capsys, "fused_grpo", "--repeats=0")
    assert "expected an integer, got 'two'" in refused(capsys, "fused_grpo", "--repeats=two")
    assert "'--repeat', did you mean '--repeats'" in refused(capsys, "fused_grpo", "--repeat=3")
    assert "CASE" in refused(capsys)
    assert "expected integers of at least 1, got '1,0'" in refused(capsys, "devices", "--seeds=1,0")
    assert "--limit=0: expected above 0" in refused(capsys, "devices", "--limit=0")


def test_a_file_that_cannot_be_written_is_told_before_any_case_is_run(capsys, nothing_runs, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out.jsonl"
    message = refused(capsys, "fused_grpo", f"--out={out}")
    assert f"cannot write {out}: " in message
    assert f"cannot write {tmp_path}: " in refused(capsys, "fused_grpo", f"--out={tmp_path}")


def test_a_missing_checkout_says_where_it_is_from(capsys, tmp_path):
    for arguments in ([], [f"--baseline={tmp_path}"]):
        message = refused(capsys, "purejaxrl", *arguments)
        assert "https://github.com/luchris429/purejaxrl" in message and "--baseline-python" in message
        assert message.startswith(
            f"error: --baseline={tmp_path}: " if arguments else "error: no --baseline: expected a checkout"
        )


def test_an_interpreter_that_cannot_be_started(capsys, tmp_path):
    python = tmp_path / "python"
    message = refused(capsys, "host", "--tiny", f"--baseline-python={python}")
    assert f"cannot start {python}: {os.strerror(2)}; expected a Python interpreter" in message


def test_the_help_lists_the_cases_in_a_line_each(capsys):
    assert benchmark.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in CASES:
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 4


# --- baselines ---------------------------------------------------------------------------------------------


def test_a_baseline_that_fails_is_quoted():
    with pytest.raises(UserError, match=r"the baseline 'nobody' failed: KeyError: 'nobody'"):
        with baseline(sys.executable, {"baseline": "nobody"}):
            raise AssertionError("it is not ready")


@pytest.fixture
def checkout(tmp_path):
    """Replaces PureJaxRL: training that fails, and shows its settings, if the discount is 0."""
    folder = tmp_path / "purejaxrl"
    folder.mkdir()
    source = (
        "def make_train(settings):\n"
        "    print('noise')\n"
        "    if settings['GAMMA'] == 0:\n"
        "        raise ValueError(sorted(settings.items()))\n"
        "    return lambda key: key\n"
    )
    (folder / "ppo.py").write_text(source)
    return tmp_path


def test_a_baseline_answers_one_piece_after_another(checkout):
    job = baseline_job(loaded("ppo_cartpole:native"), "purejaxrl", 5000, path=str(checkout))
    with baseline(sys.executable, job) as theirs:
        # Two whole iterations of 16 environments and 128 steps fit in 5000.
        assert [theirs.side().steps for _ in range(2)] == [4096, 4096]
        assert theirs.versions["jax"] == jax.__version__ and theirs.first_seconds > 0


def test_a_baseline_gets_the_numbers_of_the_configuration(checkout):
    config = loaded("ppo_cartpole:native", credit__env__discount=0.0, agent__clip=0.125)
    settings = (
        "('ACTIVATION', 'tanh'), .*('CLIP_EPS', 0.125), .*('ENV_NAME', 'CartPole-v1'), .*('GAE_LAMBDA', 0.95), "
        "('GAMMA', 0.0), .*('LR', 0.0025), ('MAX_GRAD_NORM', 0.5)"
    )
    pattern = settings.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UserError, match=f"the baseline 'purejaxrl' failed: ValueError: .*{pattern}"):
        with baseline(sys.executable, baseline_job(config, "purejaxrl", 5000, path=str(checkout))):
            raise AssertionError("it is not ready")


@pytest.fixture
def rejax_of_ours(tmp_path, monkeypatch):
    """Replaces rejax by a module that refuses its settings, and shows them."""
    source = (
        "class PPO:\n"
        "    @classmethod\n"
        "    def create(cls, **settings):\n"
        "        raise ValueError(sorted(settings.items()))\n"
    )
    (tmp_path / "rejax.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("rejax_of_ours")
def test_rejax_gets_the_numbers_of_the_configuration():
    config = loaded("ppo_cartpole:native", credit__env__discount=0.5, agent__clip=0.125, network__hidden=(8, 4))
    settings = (
        "('agent_kwargs', {'activation': 'tanh', 'hidden_layer_sizes': (8, 4)}), ('clip_eps', 0.125), "
        "('ent_coef', 0.01), ('env', 'CartPole-v1'), ('eval_freq', 4096), ('gae_lambda', 0.95), ('gamma', 0.5), "
        "('learning_rate', 0.0025), ('max_grad_norm', 0.5), ('num_envs', 16), "
        "('num_epochs', 4), ('num_minibatches', 4), ('num_steps', 128)"
    )
    with pytest.raises(UserError, match=f"the baseline 'rejax' failed: ValueError: .*{re.escape(settings)}"):
        with baseline(sys.executable, baseline_job(config, "rejax", 4096)):
            raise AssertionError("it is not ready")


def test_rejax_without_an_interpreter_is_one_line(capsys):
    assert benchmark.main(["rejax", "--tiny"]) == 0
    assert "pip install rejax" in capsys.readouterr().err


def test_a_baseline_that_replays_gets_the_numbers_of_the_configuration():
    config = loaded("dqn_cartpole:qrdqn", agent__batch_size=8, agent__quantiles=5, network__hidden=(4, 4))
    job = replay_job(config, "sb3_qrdqn", calls=3)
    numbers = {"batch_size": 8, "quantiles": 5, "hidden": (4, 4), "calls": 3, "capacity": 100_000, "discount": 0.99}
    assert job["baseline"] == "sb3_qrdqn" and numbers.items() <= job.items() and job["updates"] == config.agent.updates


def test_gradient_steps_are_counted_over_the_seeds():
    config = loaded("dqn_cartpole", agent__updates=3, agent__batch_size=4, agent__learning_starts=16)
    assert gradient_steps(config, steps=6, stored=64, seeds=5)().steps == 5 * 6


# --- cases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "targets", "details"),
    [
        ("fused_grpo", {"grpo": 0.9}, {"iterations", "slots_per_iteration"}),
        ("host", {"share_of_raw_environment": None, "adapter": 0.7}, set()),
        ("replay", {"seeds": None}, set()),
        ("compile", {"ppo_cartpole:native,smoke": None}, {"seconds_cold", "seconds_warm", "peak_mebibytes"}),
        (
            "planner",
            {"lattice": None, "categorical": None},
            {"backups", "bytes_per_backup", "copied_gigabytes_per_second", "share_of_bandwidth"},
        ),
    ],
)
def test_a_tiny_case_prints_one_object(case, targets, details, capsys, tmp_path):
    out = tmp_path / "new" / "out.jsonl"
    assert benchmark.main([case, "--tiny", "--json", "--repeats=1", f"--out={out}"]) == 0
    captured = capsys.readouterr()
    [printed] = captured.out.splitlines()
    assert out.read_text() == printed + "\n"
    said = captured.err.splitlines()
    assert said[0] == f"{case}: preparing" and any(", round 1 of 1" in line for line in said)
    record = json.loads(printed)
    assert set(record) == {"case", "comparisons", "tiny", "machine"}
    assert record["case"] == case and record["tiny"] is True
    assert {"commit", "versions", "device", "device_count", "cores", "load_average"} <= set(record["machine"])
    assert [(comparison["name"], comparison["target"]) for comparison in record["comparisons"]] == [*targets.items()]
    for comparison in record["comparisons"]:
        assert comparison["pairs"] == 1 and set(comparison["details"]) == details
        assert comparison["ours_median"] > 0 and comparison["reference_median"] > 0
        assert comparison["ratio"] == comparison["ours_median"] / comparison["reference_median"]


def test_a_tiny_curiosity_is_timed_beside_ppo_and_beside_another(capsys, monkeypatch):
    names = []

    def small(name, **settings):
        """Checks the configuration that is asked for, and returns one that compiles sooner: test_configs trains those
        of the maze."""
        loaded(name, **settings)
        names.append(name)
        return loaded("ppo_cartpole:native,smoke")

    monkeypatch.setattr(reward_cases, "loaded", small)
    assert benchmark.main(["curiosity", "--tiny", "--json", "--repeats=1"]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["comparisons"]}
    assert list(found) == ["hindsight", "rnd", "hindsight_to_rnd", "seeds"]
    assert names == [f"curiosity_maze:{method}" for method in ("ppo", "hindsight", "rnd", "rnd")]
    # At most four times the cost.
    assert found["hindsight_to_rnd"]["target"] == 0.25
    ratio = found["hindsight"]["ratio"] / found["rnd"]["ratio"]
    assert found["hindsight_to_rnd"]["ratio"] == pytest.approx(ratio)


def test_seeds_side_by_side_do_the_work_of_the_single_runs(monkeypatch):
    monkeypatch.setattr(cases, "SEEDED", {"cartpole": ("ppo_cartpole:native,smoke", 2)})
    monkeypatch.setattr(cases, "SEEDS", 2)
    [found] = cases.seeds(Options(1, True))
    assert (found.name, found.ours) == ("cartpole", "ppo_cartpole:native,smoke, 2 seeds vmapped")
    assert found.reference == "2 runs one after another" and found.report()["ratio"] > 0
    # Two compilations beside one, for a run of 4 iterations of which a tiny sample has one.
    assert found.details["whole_run_iterations"] == 4 and found.details["iterations"] == 1
    assert found.details["whole_run_seconds_sequential"] > 2 * found.details["compile_seconds_single"]


def test_tiny_minigrids_compare_with_ppo_in_the_same_rooms(capsys):
    pytest.importorskip("minigrid", reason="the extra minigrid is not installed")
    assert benchmark.main(["minigrid", "--tiny", "--json", "--repeats=1"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert [one["name"] for one in found] == ["episodic", "ranking"]
    assert all(one["reference"].partition(":")[0] == one["ours"].partition(":")[0] for one in found)
    assert all(one["ratio"] > 0 for one in found)


def test_a_tiny_annotator_is_asked(capsys):
    pytest.importorskip("minigrid", reason="the extra minigrid is not installed")
    assert benchmark.main(["annotator", "--tiny", "--json", "--repeats=1"]) == 0
    [found] = json.loads(capsys.readouterr().out)["comparisons"]
    assert found["name"] == "waiting" and found["target"] == 0.95 and found["ratio"] > 0


@pytest.mark.optional
def test_tiny_buffers_are_drawn_from(capsys):
    pytest.importorskip("flashbax")
    assert benchmark.main(["buffer", "--tiny", "--json", "--repeats=1"]) == 0
    found = json.loads(capsys.readouterr().out)["comparisons"]
    assert [each["name"] for each in found] == ["uniform", "prioritised"]
    assert all(each["ratio"] > 0 and each["details"]["baseline_versions"] for each in found)


def test_buffers_without_flashbax_are_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "flashbax", None)
    assert benchmark.main(["buffer", "--tiny"]) == 2
    assert "error: the case buffer needs flashbax: pip install flashbax" in capsys.readouterr().err


def test_a_tiny_run_is_measured_on_this_device(capsys, tmp_path):
    out = tmp_path / "devices.jsonl"
    assert benchmark.main(["devices", "--tiny", "--json", "--seconds=0.1", "--seeds=2", f"--out={out}"]) == 0
    [printed] = capsys.readouterr().out.splitlines()
    assert out.read_text() == printed + "\n"
    record = json.loads(printed)
    assert set(record) == {"case", "measurement", "tiny", "machine"} and record["tiny"] is True
    assert {"commit", "device", "device_count", "cores", "load_average"} <= set(record["machine"])
    found = record["measurement"]
    assert (found["name"], found["seeds"], found["ended"]) == ("ppo_cartpole:native,smoke", 2, FINISHED)
    config = loaded(found["name"])
    # No step of an unroll is padding.
    assert found["steps"] == found["chunks"] * found["iterations"] * 2 * config.data.length * config.data.batch
    assert found["chunks"] >= 2 and found["seconds"] >= 0.1
    assert found["steps_per_second"] == pytest.approx(found["steps"] / found["seconds"])
    assert 0 < found["compile_seconds"] < found["first_chunk_seconds"] and found["start_seconds"] > 0
    assert found["memory_of"] == "process" and found["peak_bytes"] > 2**26


def test_a_measurement_that_ends_early_says_why():
    assert measured("ppo_cartpole:native", 1, 1.0, limit=0.01) == Measurement(
        "ppo_cartpole:native", 1, "stopped after 0.01 s", {}, {}
    )
    failed = measured("nothing", 1, 1.0, limit=60.0)
    assert failed.ended.startswith("failed: ") and "nothing" in failed.ended
    # The case and the device are known before anything is measured.
    assert set(failed.figures) == {"peak_bytes", "memory_of"} and failed.machine["device"] == "cpu"
    assert failed.line().startswith("devices/nothing, 1 seeds: (failed: ")


def test_a_host_environment_is_no_case_of_devices():
    with pytest.raises(UserError, match=r"--names=ppo_cartpole: .*expected a pure one"):
        list(devices(Options(1, False, names=("ppo_cartpole",))))


# --- the same work -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_the_fused_loop_learns_what_the_driver_learns(method):
    """Parameters to rounding and solved episodes exactly, after every one of a few iterations of one seed."""
    config = loaded(f"oprl_sokoban:{method}", data__batch=64, agent__minibatches=2, network__hidden=(16, 16))
    driver = scan_driver(config)
    trained = driver.start()
    fused = fused_state(jax.tree.map(lambda leaf: np.array(leaf[0]), trained.agent.params))
    chunk = jit(fused_chunk(config), static_argnums=3)
    start, solved = fused.params, []
    for iteration in range(4):
        trained, metrics = driver.chunk(trained, iteration, 1)
        fused, success = chunk(fused, seed_key(0), iteration, 1)
        assert float(success) == metrics["sum/success"][0]
        solved.append(float(success))
        expected = fused_state(jax.tree.map(lambda leaf: leaf[0], trained.agent.params)).params
        jax.tree.map(
            lambda found, same: np.testing.assert_allclose(found, same, rtol=2e-5, atol=2e-6), fused.params, expected
        )
    # There were rewards, and every parameter moved by far more than the tolerance.
    assert min(solved) > 0
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(fused.params), strict=True):
        assert np.max(np.abs(after - before)) > 1e-4


@pytest.mark.parametrize(
    ("representation", "discount"),
    [(lattice(-6, 9), 1.0), (categorical(-6, 9, 16), 1.0), (categorical(-6, 9, 16), 0.9)],
)
def test_the_planner_in_numpy_finds_the_same_policy_and_return_distributions(representation, discount):
    """Several outcomes, episodes that end, rewards of both signs, stocks and returns beyond their grids."""
    model = gridworld(["S-+", "+-G"], slip=0.3, horizon=4)
    model, grid = model._replace(reward=3 * model.reward - 1), StockGrid(-9, 7)
    plan = value_iteration(model, cvar(0.3), representation, grid, discount=discount)
    policy, distributions, values = numpy_planner.value_iteration(
        model,
        lambda x: np.minimum(x, 0),
        plan.stocks,
        plan.particles,
        discount=discount,
        horizon=model.horizon,
    )
    assert (plan.left_support > 0.01).any() and (plan.left_stock > 0.1).any()
    np.testing.assert_array_equal(plan.policy, policy)
    np.testing.assert_allclose(plan.distributions, distributions, atol=1e-6)
    np.testing.assert_allclose(plan.values, values, atol=1e-5)


def test_the_fused_loop_refuses_another_algorithm():
    for name, overrides in (("oprl_sokoban:oprl", {}), ("oprl_sokoban:grpo", {"agent__clip_high": 0.3})):
        with pytest.raises(ValueError, match="written for oprl_sokoban:ppo and :grpo alone"):
            fused_chunk(loaded(name, **overrides))
