"""The chain of reward transforms: who sees what, in which order, and what is checked of what they write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.channels import ChannelError
from agents.state import Part
from rewards.base import NON_FINITE, RewardTransform, chain, stateless
from tests.rewards.contract import undone

KEY = jax.random.key(0)


def add(name, amount):
    """Adds ``amount`` to channel ``name``; makes it where it is missing."""
    return stateless(lambda t: t._replace(rewards=t.rewards | {name: t.rewards.get(name, 0.0 * t.mask) + amount}))


def times(name, factor):
    return stateless(lambda t: t._replace(rewards=t.rewards | {name: factor * t.rewards[name]}))


def recorder(channel):
    """Learns the sum of ``channel`` and writes it back; its state holds the key that it was given."""

    def init_fn(key, *, start=0.0, **extra):
        return {"sum": jnp.asarray(start), "key": jax.random.key_data(key)}

    def apply_fn(state, trajectory, *, bonus=0.0, **extra):
        value = state["sum"] + bonus + 0.0 * trajectory.mask
        return trajectory._replace(rewards=trajectory.rewards | {channel: value}), {"wrote": state["sum"]}

    def update_fn(state, trajectory, key, **extra):
        total = state["sum"] + jnp.sum(trajectory.rewards[channel])
        return {"sum": total, "key": jax.random.key_data(key)}, {"saw": jnp.sum(trajectory.rewards[channel])}

    return RewardTransform(init_fn, apply_fn, update_fn)


def own(metrics):
    """The transforms' own metrics, without the chain's flags."""
    return {name: value for name, value in metrics.items() if not name.startswith(NON_FINITE)}


def raised(metrics):
    """The names behind the flags that are up."""
    return {name.removeprefix(NON_FINITE) for name, value in metrics.items() if name.startswith(NON_FINITE) and value}


@pytest.fixture
def trajectory(make_trajectory):
    return make_trajectory(env=[[1.0, 2.0], [3.0, 4.0]])


def test_the_empty_chain_is_the_identity(trajectory):
    identity = chain()
    state = identity.init(KEY)
    assert state == {}
    relabelled, metrics = identity.apply(state, trajectory)
    assert relabelled is trajectory and metrics == {}
    assert identity.update(state, trajectory, KEY) == ({}, {})


def test_order_matters_and_is_that_of_the_arguments(trajectory):
    for transforms, expected in (
        ({"a": add("env", 1.0), "b": times("env", 2.0)}, [[4, 6], [8, 10]]),
        ({"b": times("env", 2.0), "a": add("env", 1.0)}, [[3, 5], [7, 9]]),
    ):
        whole = chain(**transforms)
        state = whole.init(KEY)
        assert list(state) == list(transforms)
        np.testing.assert_array_equal(whole.apply(state, trajectory)[0].rewards["env"], expected)


def test_a_later_transform_sees_the_channels_of_earlier_ones_in_apply_and_update(trajectory):
    whole = chain(first=add("made", 5.0), second=times("made", 3.0), third=recorder("made"))
    state, metrics = whole.update(whole.init(KEY), trajectory, KEY)
    # Four steps of 15.
    assert metrics == {"third/saw": 60.0} and state["third"]["sum"] == 60.0
    relabelled, metrics = whole.apply(state, trajectory)
    assert own(metrics) == {"third/wrote": 60.0}
    np.testing.assert_array_equal(relabelled.rewards["made"], jnp.full((2, 2), 60.0))
    np.testing.assert_array_equal(relabelled.rewards["env"], trajectory.rewards["env"])


def test_an_earlier_transform_is_updated_before_a_later_one_sees_it(trajectory):
    # The first transform learns the sum 10 and writes it to all four steps; the second must see 40, not 0.
    whole = chain(first=recorder("env"), second=recorder("env"))
    state, metrics = whole.update(whole.init(KEY), trajectory, KEY)
    assert metrics == {"first/saw": 10.0, "second/saw": 40.0}
    # ``apply`` does not learn, however often it is called.
    for _ in range(2):
        relabelled, metrics = whole.apply(state, trajectory)
        assert own(metrics) == {"first/wrote": 10.0, "second/wrote": 40.0}
    np.testing.assert_array_equal(relabelled.rewards["env"], jnp.full((2, 2), 40.0))
    np.testing.assert_array_equal(trajectory.rewards["env"], [[1, 2], [3, 4]])


def test_extra_arguments_reach_every_transform_and_are_ignored_where_not_needed(trajectory):
    whole = chain(first=add("env", 0.0), second=recorder("env"))
    state = whole.init(KEY, start=2.0, policy_params=None)
    assert state["second"]["sum"] == 2.0
    relabelled, _ = whole.apply(state, trajectory, bonus=1.0, unknown=3)
    np.testing.assert_array_equal(relabelled.rewards["env"], jnp.full((2, 2), 3.0))
    # In update too: the first writes 2 + 1 to four steps.
    two = chain(first=recorder("env"), second=recorder("env"))
    _, metrics = two.update(two.init(KEY), trajectory, KEY, bonus=1.0)
    assert metrics["second/saw"] == 4 * (10.0 + 1.0)


def test_every_transform_draws_from_a_key_of_its_own(trajectory):
    whole = chain(a=recorder("env"), b=recorder("env"), c=recorder("env"))
    initial = whole.init(jax.random.key(1))
    updated, _ = whole.update(initial, trajectory, jax.random.key(2))
    words = [tuple(state[name]["key"].tolist()) for state in (initial, updated) for name in "abc"]
    parents = [tuple(jax.random.key_data(jax.random.key(seed)).tolist()) for seed in (1, 2)]
    assert len(set(words + parents)) == 8


def test_a_chain_can_stand_in_a_chain(trajectory):
    inner = chain(a=add("env", 1.0), r=recorder("env"))
    outer = chain(inner=inner, b=times("env", 2.0))
    state, metrics = outer.update(outer.init(KEY), trajectory, KEY)
    assert metrics == {"inner/r/saw": 14.0}
    np.testing.assert_array_equal(outer.apply(state, trajectory)[0].rewards["env"], jnp.full((2, 2), 28.0))


def test_each_transform_of_a_chain_declares_what_is_kept_of_an_undone_update(trajectory):
    without_key = Part(
        split=lambda state: ({"sum": state["sum"]}, state["key"]), join=lambda rest, key: rest | {"key": key}
    )
    keeper = recorder("env")._replace(remembered=without_key)
    whole = chain(first=recorder("env"), inner=chain(second=keeper))
    old = whole.init(jax.random.key(1))
    new, _ = whole.update(old, trajectory, jax.random.key(2))
    left = undone(whole, old, new)
    assert left["first"] is old["first"]
    inner = left["inner"]["second"]
    assert inner["sum"] is old["inner"]["second"]["sum"] and inner["key"] is new["inner"]["second"]["key"]
    assert undone(chain(), {}, {}) == {}


def test_the_first_transform_that_writes_a_number_that_is_not_finite_is_flagged(trajectory):
    whole = chain(a=add("made", 1.0), b=times("made", jnp.inf), c=times("made", 2.0), d=add("other", jnp.nan))
    _, metrics = whole.apply(whole.init(KEY), trajectory)
    assert {name for name in metrics if name.startswith(NON_FINITE)} == {
        f"{NON_FINITE}{name}" for name in ("a/made", "b/made", "c/made", "d/other")
    }
    assert raised(metrics) == {"b/made"}
    # One flag per written channel of the same transform, and a name of its own for a weight.
    both = stateless(
        lambda t: t._replace(
            rewards=t.rewards | {"x": t.mask / 0.0, "y": t.mask},
            extras=t.extras | {"credit_weight": {"x": t.mask * jnp.nan}},
        )
    )
    _, metrics = chain(inner=chain(both=both)).apply({"inner": {"both": ()}}, trajectory)
    assert raised(metrics) == {f"inner/{name}" for name in ("x", "both/x", "credit_weight/x", "both/credit_weight/x")}


def test_no_transform_is_flagged_for_what_the_environment_gave(make_trajectory):
    whole = chain(a=times("env", 2.0), b=add("made", 1.0))
    _, metrics = whole.apply(whole.init(KEY), make_trajectory(env=[[1.0, jnp.nan], [3.0, 4.0]]))
    assert raised(metrics) == set()


@pytest.mark.parametrize("shape", [(), (2,), (2, 1), (1, 2), (2, 2, 1), (3, 2)])
def test_a_channel_that_is_not_one_number_per_step_and_environment_is_refused_while_tracing(shape, trajectory):
    def wrong(trajectory):
        return trajectory._replace(rewards=trajectory.rewards | {"made": jnp.zeros(shape)})

    found = ", ".join(map(str, shape))
    message = (
        rf"the channel 'made', written by the reward transform 'bad', has shape \({found},?\): expected .* \(2, 2\)"
    )
    for whole in (chain(bad=stateless(wrong)), chain(good=add("env", 1.0), bad=stateless(wrong), last=add("env", 1.0))):
        state = whole.init(KEY)
        with pytest.raises(ChannelError, match=message):
            jax.eval_shape(whole.apply, state, trajectory)
    with pytest.raises(ChannelError, match=message):
        jax.eval_shape(whole.update, state, trajectory, KEY)
    given = wrong(trajectory)
    for function in (whole.apply, lambda *arguments: whole.update(*arguments, KEY)):
        with pytest.raises(ChannelError, match=r"the channel 'made', given by the environment, has shape"):
            jax.eval_shape(function, state, given)


def test_a_mask_or_a_weight_of_another_shape_is_refused(trajectory):
    short = stateless(lambda t: t._replace(mask=t.mask[0]))
    with pytest.raises(
        ChannelError, match=r"the mask, written by the reward transform 'short', has shape \(2,\): expected"
    ):
        chain(short=short).apply({"short": ()}, trajectory)
    weight = stateless(lambda t: t._replace(extras={"credit_weight": {"env": jnp.ones(2)}}))
    with pytest.raises(
        ChannelError, match=r"the channel 'credit_weight/env', written by the reward transform 'weight', has"
    ):
        chain(weight=weight).apply({"weight": ()}, trajectory)


def test_a_value_that_is_not_a_transform_is_refused_by_name():
    with pytest.raises(TypeError, match="chain: 'second' is function, expected a RewardTransform"):
        chain(first=add("env", 1.0), second=lambda t: t)
