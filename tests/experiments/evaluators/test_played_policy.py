"""Exact values of what is played, in every iteration: against the planner, in rows, and what is refused."""

import json
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.planning.dynamic_programming import policy_evaluation, value_iteration
from envs.native.tabular import scalarised
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.evaluators import build_evaluators
from experiments.commands.run import main
from experiments.configs.stepmix_tabular import softened
from experiments.errors import UserError
from experiments.evaluators.base import Evaluator, PureEpisodes, watch
from experiments.evaluators.exact import known_model
from experiments.rows import reading
from experiments.training.host_driver import HostPrograms
from experiments.training.learn import initial_state
from rewards.base import chain

KEY = jax.random.key(0)


def made(name, **changes):
    """The evaluators, the environment and the agent of an experiment."""
    config = registry.apply_overrides(registry.load(name).config, changes)
    source = build_environment(config)
    agent = build_parts(config, source.spec).agent
    return build_evaluators(config, source, agent, PureEpisodes(source.pure, agent)), source.pure, agent


def test_values_are_the_planners():
    evaluators, environment, agent = made("stepmix_tabular:step_mix,steps_5,smoke")
    state = initial_state(agent, chain(), KEY)
    mixture = state.agent.params["policy"]
    tables = np.random.default_rng(0).dirichlet(np.ones(5), (2, 5, 5)).astype(np.float32)
    mixture = mixture._replace(tables=jnp.asarray(tables), share=jnp.float32(0.3), lower=jnp.float32(9.0))
    state = state._replace(agent=state.agent._replace(params={"policy": mixture}))
    model = scalarised(known_model(environment), (1, 0))
    first, second = (float(model.initial @ policy_evaluation(model, each, horizon=5).values) for each in tables)
    best = float(model.initial @ value_iteration(model, horizon=5).values)
    found, watched = jax.jit(lambda state: (evaluators["played"].evaluate(state, KEY), watch(evaluators, state, None)))(
        state
    )
    value = 0.7 * first + 0.3 * second
    threshold = registry.load("stepmix_tabular:steps_5").config.agent.threshold
    np.testing.assert_allclose([found["return"], found["optimum"]], [value, best], rtol=1e-5)
    np.testing.assert_allclose([found["regret"], found["shortfall"]], [best - value, threshold - value], atol=1e-5)
    assert watched["train/below"] == watched["train/bounds_failed"] == 1
    np.testing.assert_allclose(watched["max/shortfall"], threshold - value, atol=1e-5)


def test_the_baseline_is_a_softened_optimal_policy():
    _, environment, _ = made("stepmix_tabular:smoke")
    model = scalarised(known_model(environment), (1, 0))
    table, value = softened(model, 3)
    best = np.asarray(value_iteration(model, horizon=3).action_values)
    ratios = np.log(table[:, :1] / table)
    np.testing.assert_allclose(ratios, (best[:, :1] - best) / 0.25, atol=0.02)
    config = registry.load("stepmix_tabular").config
    assert config.agent.baseline == tuple(table.reshape(-1)) and config.agent.threshold == round(0.9 * value, 4)


def test_rows_have_means_and_the_largest_over_all_iterations(tmp_path, capsys):
    assert main(["stepmix_tabular:baseline,smoke", f"--runs={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]
    rows = reading.read_runs(tmp_path, "stepmix_tabular")
    for row in rows:
        # The baseline is always the same.
        np.testing.assert_allclose(row["train/regret"], row["regret"], rtol=1e-6)
        assert row["train/below"] == row["train/max_shortfall"] == row["train/bounds_failed"] == 0
        assert row["train/episodes"] == 2 and row["agent/share"] == 0


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "stepmix_tabular:smoke",
            {"agent.threshold": 2.5},
            "agent.threshold=2.5: the baseline's expected return is 2.3",
        ),
        ("lagrangian_cmdp:smoke", {"evaluators.exact.kind": "played_policy"}, "expected agent.family='tabular'"),
        ("oprl_sokoban:smoke", {"evaluators.episodes.kind": "played_policy"}, "model is not known"),
        ("oprl_sokoban:smoke", {"evaluators.episodes.kind": "steady_state"}, "environment.kind='selection'"),
        ("ofs_threshold:smoke", {"environment.service": 1.01}, "no threshold meets both"),
    ],
)
def test_what_cannot_be_measured_is_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        made(name, **changes)


def test_two_evaluators_cannot_watch_one_thing():
    one = Evaluator(lambda state, key: {}, (), lambda state, trajectory: {"regret": 1.0})
    assert watch({"a": one}, None, None) == {"train/regret": 1.0}
    with pytest.raises(ValueError, match=r"evaluators\.b: another evaluator watches 'regret'"):
        watch({"a": one, "b": one}, None, None)


def watching(context):
    """An evaluator that watches, for a configuration to name."""
    return Evaluator(lambda state, key: {"seen": jnp.float32(0)}, ("seen",), lambda state, trajectory: {"seen": 0.0})


def test_host_environments_are_not_watched():
    config = registry.load("ppo_cartpole:smoke").config.copy_and_resolve_references().unlock()
    config.evaluators.mine = {"kind": f"{__name__}:watching"}
    with pytest.raises(UserError, match=r"evaluators\.mine watches every iteration: expected a pure environment"):
        HostPrograms(config, build_environment(config), {})


def test_the_steady_state_is_where_a_long_run_ends():
    evaluators, environment, agent = made("ofs_threshold:smoke", **{"environment.noise": 0.0})
    state = initial_state(agent, chain(), KEY)
    period = jax.jit(partial(environment.step, KEY))
    for arm in (5, 14, 25):
        arms = state.agent.params["policy"]._replace(favourite=jnp.int32(arm))
        found = evaluators["settled"].evaluate(state._replace(agent=state.agent._replace(params={"policy": arms})), KEY)
        mix, _ = environment.reset(KEY)
        for _ in range(200):
            mix, step = period(mix, jnp.int32(arm))
        np.testing.assert_allclose(found["return"], step.reward, atol=1e-6)
        np.testing.assert_allclose(found["violation"], max(0.0, *map(float, step.costs.values())), atol=1e-6)
        # The fourteenth threshold is the best feasible one.
        assert (abs(found["gap"]) < 1e-6) == (arm == 14) and (found["violation"] > 0) == (arm == 25)
    met = types.SimpleNamespace(observation=jnp.full((1, 1, 1), 0.5), action=jnp.full((1, 1), 14))
    watched = watch(evaluators, None, met)
    expected = environment.expected(0.5, 14)
    np.testing.assert_allclose(watched["train/reward"], expected.reward)
    np.testing.assert_allclose(watched["train/violation"], 0)
