"""Random constrained models: their tables, and that the environment follows them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs.native.random_model import random_model, random_model_environment
from envs.native.tabular import TabularEnvironment


def test_a_model_is_what_its_arguments_say():
    model = random_model(states=6, actions=3, costs=2, successors=4, going_on=0.75, seed=5)
    assert model.probability.shape == (6, 3, 8) and model.reward.shape == (6, 3, 8, 3)
    np.testing.assert_allclose((model.probability * model.terminated).sum(-1), 0.25)
    assert all(len(set(row[:4])) == 4 for row in model.next_state.reshape(-1, 8))
    # A reward depends on the state and the action alone.
    assert (model.reward == model.reward[:, :, :1]).all() and 0 <= model.reward.min() <= model.reward.max() <= 1
    again = random_model(states=6, actions=3, costs=2, successors=4, going_on=0.75, seed=5)
    assert all((one == other).all() for one, other in zip(model[:5], again[:5], strict=True))
    assert (random_model(states=6, actions=3, costs=2, successors=4, seed=6).reward != model.reward).any()


def test_the_environment_pays_rewards_and_costs_of_the_model():
    environment = random_model_environment(costs=2, model_seed=1)
    assert environment.spec.costs == ("1", "2") and environment.spec.objectives == ()
    assert environment.spec.max_episode_steps == 200
    model = random_model(costs=2, seed=1)
    state, observation = environment.reset(jax.random.key(0))
    step = jax.vmap(lambda key, action: environment.step(key, state, action)[1], (0, None))
    paid = step(jax.random.split(jax.random.key(1), 2000), jnp.int32(2))
    expected = model.reward[int(observation), 2, 0]
    for found, value in zip((paid.reward, paid.costs["1"], paid.costs["2"]), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6)
    # Four standard errors.
    assert np.mean(paid.terminated) == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 2000))


def test_bad_arguments_name_what_was_expected():
    for arguments, message in (
        ({"states": 0}, "states=0"),
        ({"costs": 0}, "costs=0"),
        ({"successors": 9}, "successors=9: expected at most the number of states, 8"),
        ({"going_on": 1.0}, "going_on=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            random_model(**arguments)
    with pytest.raises(ValueError, match=r"costs=\('a',\): expected 2 names"):
        TabularEnvironment(random_model(costs=2), costs=("a",))
