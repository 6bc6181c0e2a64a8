"""Evaluation on episodes: whole ones unless cut by name, every channel's return, and how metrics are named."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.base import EnvironmentSpec, Transition
from envs.catalogue import ENVIRONMENTS
from envs.native.tabular import TabularEnvironment, gridworld
from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.assembly.checks import checked_environment
from experiments.assembly.evaluators import evaluation_metrics
from experiments.errors import UserError
from experiments.evaluators.base import Context, Evaluator, episode_length, evaluate, metric_names
from experiments.evaluators.episodes import episodes
from experiments.training.drivers import drivers
from tests.experiments import corridor

STATE = SimpleNamespace(agent=SimpleNamespace(params=()))
KEY = jax.random.key(0)


class Recorded:
    """Always the same two episodes, of two steps and of one, with a cost and an objective."""

    def __init__(self):
        self.asked = []

    def play(self, params, key, *, count, length, greedy, stocks=None):
        self.asked.append((count, length, greedy))
        mask = np.array([[1, 1], [1, 0]], np.float32)
        ended = np.array([[False, True], [True, False]])
        return Transition(
            (),
            (),
            {
                "env": np.array([[1, 2], [3, 0]], np.float32),
                "cost/fuel": np.array([[0.5, 4], [0.25, 0]], np.float32),
                "objective/speed": np.array([[-1, -2], [-3, 0]], np.float32),
            },
            ended,
            np.zeros_like(ended),
            (),
            mask,
            {
                "episode_return": np.array([[1, 2], [4, 0]], np.float32),
                "episode_length": np.array([[1, 1], [2, 2]], np.int32),
                "info": {"success": np.array([[0, 1], [0, 0]], np.float32), "message": np.zeros((2, 2, 3))},
            },
        )


def made(limit, **arguments):
    spec = EnvironmentSpec(None, None, limit, costs=("fuel",), objectives=("speed",), info=("success",))
    recorded = Recorded()
    return recorded, episodes(Context(spec, None, None, recorded, {}, {}), **arguments)


def test_the_return_of_every_channel_is_reported():
    recorded, evaluator = made(2, count=2, greedy=True)
    found = evaluator.evaluate(STATE, KEY)
    assert recorded.asked == [(2, 2, True)] and set(found) == set(evaluator.metrics)
    expected = {"return": 3.0, "length": 1.5, "success": 0.5, "return/cost/fuel": 2.375, "return/objective/speed": -3.0}
    assert {name: float(value) for name, value in found.items()} == expected


@pytest.mark.parametrize(
    ("limit", "cut", "length", "marked"),
    [(1000, None, 1000, None), (1000, 200, 200, 200.0), (1000, 5000, 1000, None), (None, 50, 50, 50.0)],
)
def test_episodes_are_whole_unless_a_cut_is_asked_for_and_marked(limit, cut, length, marked):
    recorded, evaluator = made(limit, cut=cut)
    found = evaluator.evaluate(STATE, KEY)
    assert recorded.asked == [(256, length, False)]
    assert found.get("evaluation/cut") == marked and set(found) == set(evaluator.metrics)


def test_episodes_without_a_bound_are_refused_with_what_to_set():
    with pytest.raises(ValueError, match=r"cut=None: .* no bound; expected cut=STEPS"):
        episode_length(EnvironmentSpec(None, None, None))
    config = registry.load("ppo_cartpole:native,smoke").config.copy_and_resolve_references().unlock()
    config.environment, config.evaluators.episodes.cut = {"kind": "unbounded", "time_limit": None}, None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENTS, "unbounded", lambda: TabularEnvironment(gridworld("open")))
        with pytest.raises(UserError, match=r"section 'evaluators.episodes': cut=None: .*expected cut=STEPS"):
            checked_environment(config)
        config.evaluators.episodes.cut = 7
        assert evaluation_metrics(config, checked_environment(config)) == ["return", "length", "evaluation/cut"]


def test_an_inherited_length_cuts_nothing():
    config = registry.load("ppo_cartpole").config.copy_and_resolve_references().unlock()
    config.environment.environment_id = "Acrobot-v1"
    assert evaluation_metrics(config, build_environment(config)) == ["return", "length"]


def constant(**values):
    return Evaluator(lambda state, key: {name: jnp.float32(value) for name, value in values.items()}, tuple(values))


def test_a_metric_that_is_there_already_is_named_after_its_evaluator():
    evaluators = {"sampled": constant(a=1, b=2), "exact": constant(a=3, c=4)}
    found = evaluate(evaluators, STATE, KEY)
    assert found == {"a": 1, "b": 2, "exact/a": 3, "c": 4} and list(found) == metric_names(evaluators)


def test_every_evaluator_draws_from_a_key_of_its_own():
    drawing = Evaluator(lambda state, key: {"x": jax.random.uniform(key)}, ("x",))
    found = evaluate({"one": drawing, "two": drawing}, STATE, KEY)
    assert found["x"] != found["two/x"]


def right_moves(context, *, cells):
    """An evaluator of somebody else's: how probable the action 1 is in each of ``cells``."""
    observation = jnp.stack([jnp.asarray(cells, jnp.float32), jnp.zeros(len(cells))], axis=-1)

    def evaluate(state, key):
        del key
        carry = context.agent.initial_carry(len(cells))
        chances = context.agent.action_probabilities(state.agent.params, carry, observation)[:, 1]
        return {f"right_at_{cell}": chance for cell, chance in zip(cells, chances, strict=True)}

    return Evaluator(evaluate, tuple(f"right_at_{cell}" for cell in cells))


@pytest.mark.parametrize("kind", ["corridor", "corridor_host"])
def test_an_evaluator_from_elsewhere_is_named_by_its_import_path(kind, monkeypatch):
    corridor.register(monkeypatch)
    config = corridor.with_critic()
    config.environment.kind = kind
    config.evaluators.right = {"kind": f"{__name__}:right_moves", "cells": (0, 1)}
    [make] = drivers(config, build_environment(config), [corridor.members(3)])
    driver = make()
    found = driver.evaluate(driver.start())
    driver.close()
    assert set(found) == {"return", "length", "right_at_0", "right_at_1"}
    # An untrained policy hardly prefers anything.
    np.testing.assert_allclose(found["right_at_0"], [0.5], atol=0.05)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("episode", "unknown evaluator 'episode' in evaluators.x, did you mean 'episodes'"),
        ("no_such_module:factory", "'no_such_module:factory' in evaluators.x.*no_such_module"),
        (f"{__name__}:left_moves", "in evaluators.x.*left_moves"),
        (f"{__name__}:right_moves", "section 'evaluators.x' lacks 'cells'"),
    ],
)
def test_an_unknown_evaluator_is_one_line(kind, message):
    config = registry.load("ppo_cartpole:native,smoke").config.copy_and_resolve_references().unlock()
    config.evaluators.x = {"kind": kind}
    with pytest.raises(UserError, match=message):
        evaluation_metrics(config, build_environment(config))


def test_an_evaluator_that_reports_something_else_than_it_says_is_refused():
    with pytest.raises(ValueError, match=r"evaluators.odd reports \['a'\], .* \['b'\]"):
        evaluate({"odd": constant(a=1)._replace(metrics=("b",))}, STATE, KEY)
