"""How entries are mixed into one advantage."""

import jax.numpy as jnp
import numpy as np
import pytest

from agents.credit import Credit, Entry, assign
from agents.estimators import Estimate, Estimator, gae, group_outcome, plain_return
from tests.agents.columns import assert_columns


def test_entries_are_mixed_by_weight_and_learned_weight(make_trajectory):
    trajectory = make_trajectory([[1, 2], [3]], bonus=[[10, 20], [30]])
    credit = Credit(
        {
            "outcome": Entry("env", plain_return(), 2.0),
            "again": Entry("env", plain_return(0.0), 1.0),
            "bonus": Entry("bonus", plain_return(0.0), 0.5),
        }
    )
    mixed = assign(credit, trajectory, 1, {}, {})
    # Column 0: 2 * (3, 2) + (1, 2) + (5, 10).
    assert_columns(mixed.advantage, [[12, 16], [24]])
    assert_columns(mixed.parts["outcome"], [[3, 2], [3]])
    assert_columns(mixed.parts["bonus"], [[10, 20], [30]])
    assert mixed.value_targets == {}
    learned = trajectory._replace(extras={"credit_weight": {"bonus": jnp.full((2, 2), 3.0)}})
    assert_columns(assign(credit, learned, 1, {}, {}).advantage, [[22, 36], [54]])


def test_a_learned_weight_multiplies_one_of_two_entries_that_read_the_same_channel(make_trajectory):
    trajectory = make_trajectory([[1, 2], [3]])
    weight = {"again": jnp.array([[2.0, 1.0], [0.5, 1.0]])}
    credit = Credit({"outcome": Entry("env", plain_return()), "again": Entry("env", plain_return(0.0), 10.0)})
    mixed = assign(credit, trajectory._replace(extras={"credit_weight": weight}), 1, {}, {})
    # Column 0: (3, 2) + 10 (2, 0.5) (1, 2).
    assert_columns(mixed.advantage, [[23, 12], [33]])
    # The parts are unweighted.
    assert_columns(mixed.parts["again"], [[1, 2], [3]])


def test_a_learned_weight_that_names_no_entry_is_refused(make_trajectory):
    # The name of the channel is not the name of the entry.
    trajectory = make_trajectory([[1.0]])._replace(extras={"credit_weight": {"env": jnp.ones((1, 1))}})
    with pytest.raises(ValueError, match=r"unknown credit entry 'env' in .*known: outcome"):
        assign(Credit({"outcome": Entry("env", plain_return())}), trajectory, 1, {}, {})


def test_arrays_without_one_number_per_step_are_refused(make_trajectory):
    trajectory, credit = make_trajectory([[1, 2], [3]]), Credit({"outcome": Entry("env", plain_return())})
    rewards = trajectory._replace(rewards={"env": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"channel 'env', read by credit 'outcome', has shape \(2,\).* = \(2, 2\)"):
        assign(credit, rewards, 1, {}, {})
    weights = trajectory._replace(extras={"credit_weight": {"outcome": jnp.ones(2)}})
    with pytest.raises(ValueError, match=r"the credit weight of 'outcome' has shape \(2,\)"):
        assign(credit, weights, 1, {}, {})
    summed = Credit({"sum": Entry("env", Estimator(lambda rewards, context: Estimate(rewards.sum(0))))})
    with pytest.raises(ValueError, match=r"the advantage of credit 'sum' has shape \(2,\)"):
        assign(summed, trajectory, 1, {}, {})


def test_whitening_is_over_the_mixture_of_valid_steps(make_trajectory):
    trajectory = make_trajectory([[1, 2], [3]])
    entries = {"env": Entry("env", plain_return(0.0))}
    white = assign(Credit(entries, "batch"), trajectory, 1, {}, {}).advantage
    assert_columns(white, [[-np.sqrt(1.5), 0], [np.sqrt(1.5)]])
    # ``minibatch`` leaves whitening to the learner.
    assert_columns(assign(Credit(entries, "minibatch"), trajectory, 1, {}, {}).advantage, [[1, 2], [3]])


def test_whitened_entries_are_mixed_without_units(make_trajectory):
    """An entry of costs a thousand times as large counts by its weight alone."""
    trajectory = make_trajectory([[1, 2], [3]], cost=[[3000, 1000], [2000]])
    entries = {"env": Entry("env", plain_return(0.0)), "cost": Entry("cost", plain_return(0.0), -0.5)}
    assigned = assign(Credit(entries, "entries"), trajectory, 1, {}, {})
    root = np.sqrt(1.5)
    assert_columns(assigned.parts["env"], [[-root, 0], [root]])
    assert_columns(assigned.parts["cost"], [[root, -root], [0]])
    assert_columns(assigned.advantage, [[-1.5 * root, 0.5 * root], [root]])


def test_every_critic_gets_its_own_values_and_target(make_trajectory):
    trajectory = make_trajectory([[1.0], [2.0]], bonus=[[10.0], [20.0]])
    credit = Credit({"a": Entry("env", gae()), "b": Entry("bonus", gae()), "c": Entry("env", plain_return())})
    assert credit.critics == ("a", "b")
    # The entry without a critic needs whole episodes.
    assert credit.grouped and not credit._replace(entries={name: credit.entries[name] for name in "ab"}).grouped
    values = {"a": jnp.array([[0.5, 0.5]]), "b": jnp.array([[1.0, 2.0]])}
    assigned = assign(credit, trajectory, 1, values, {name: jnp.zeros((1, 2)) for name in values})
    np.testing.assert_allclose(assigned.parts["a"], [[0.5, 1.5]])
    np.testing.assert_allclose(assigned.parts["b"], [[9.0, 18.0]])
    np.testing.assert_allclose(assigned.value_targets["b"], [[10.0, 20.0]])
    assert set(assigned.value_targets) == {"a", "b"}


def test_an_unknown_channel_is_refused_with_the_known_ones(make_trajectory):
    credit = Credit({"entry": Entry("implicit_prn", plain_return())})
    with pytest.raises(ValueError, match=r"unknown reward channel 'implicit_prn' in credit 'entry', .*known: env"):
        assign(credit, make_trajectory([[1.0]]), 1, {}, {})


def test_a_group_baseline_over_a_single_rollout_is_refused(make_trajectory):
    credit = Credit({"outcome": Entry("env", group_outcome())})
    with pytest.raises(ValueError, match=r"credit 'outcome' compares .* group_size=1, expected at least 2"):
        assign(credit, make_trajectory([[1.0]]), 1, {}, {})
