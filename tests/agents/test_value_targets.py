"""Segments, targets and losses of value learning by hand; the whole gradient step is in ``test_value_based.py``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.return_networks import ReturnDistribution
from agents.value_targets import (
    Batch,
    Segment,
    bellman_target,
    follow_online,
    head_loss,
    log_policy_bonus,
    mix_actions,
    n_step_return,
    soft_policy,
    target_policy,
    with_other_stocks,
)

KEY = jax.random.key(0)
# Rewards 1 and 2; the second episode has terminated.
SEGMENT = Segment(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0]), jnp.array([0, 0]), jnp.ones(2))
BEST = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])


def test_n_step_return_without_discount_and_with_a_masked_row():
    rewards, off = jnp.array([[1.0, 1.0], [2.0, 2.0]]), jnp.zeros((2, 2), bool)
    mask = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    ended = off.at[0, 0].set(True)
    segment = n_step_return(rewards, off, ended, mask, 1.0)
    for found, expected in zip(segment, ([1, 3], [1, 1], [0, 1], [1, 1]), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(n_step_return(rewards, off, off, mask, 1.0).weight, [0, 1])
    np.testing.assert_array_equal(n_step_return(rewards, off, off, mask, 0.0).reward, [1, 1])


def test_the_target_takes_the_first_of_the_best_actions_or_all_of_them():
    first = target_policy(KEY, BEST, head="quantile", share_ties=False)
    np.testing.assert_array_equal(first, [[1, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(target_policy(KEY, BEST, head="categorical", share_ties=True), BEST)


@pytest.mark.parametrize("head", ["quantile", "implicit_quantile"])
def test_quantile_heads_draw_one_of_the_best_actions(head):
    draws = [target_policy(key, BEST, head=head, share_ties=True) for key in jax.random.split(KEY, 64)]
    assert {tuple(np.argmax(draw, axis=-1).tolist()) for draw in draws} == {(0, 2), (1, 2)}
    np.testing.assert_array_equal(np.sum(draws, axis=-1), 1)


def test_actions_are_mixed_by_probability_on_common_atoms_and_by_choice_otherwise():
    atoms = jnp.broadcast_to(jnp.array([-1.0, 1.0]), (2, 3, 2))
    probabilities = jnp.array([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]] * 2)
    particles, weights = mix_actions(ReturnDistribution(atoms, probabilities), BEST, head="categorical")
    np.testing.assert_array_equal(particles, [[-1, 1], [-1, 1]])
    np.testing.assert_array_equal(weights, [[0.75, 0.25], [0, 1]])
    quantiles = ReturnDistribution(jnp.arange(12.0).reshape(2, 3, 2), jnp.full(2, 0.5))
    particles, weights = mix_actions(quantiles, jax.nn.one_hot(jnp.array([1, 2]), 3), head="quantile")
    np.testing.assert_array_equal(particles, [[2, 3], [10, 11]])
    np.testing.assert_array_equal(weights, np.full((2, 2), 0.5))


def test_bellman_targets_by_hand():
    half = jnp.full((2, 2), 0.5)
    target, mean = bellman_target(SEGMENT, jnp.array([[4.0], [4.0]]), half[:, :1], head="expected", atoms=None)
    np.testing.assert_array_equal(target, [3, 2])
    np.testing.assert_array_equal(mean, [3, 2])
    quantiles = jnp.array([[0.0, 4.0], [0.0, 4.0]])
    target, mean = bellman_target(SEGMENT, quantiles, half, head="quantile", atoms=None)
    np.testing.assert_array_equal(target, [[1, 3], [2, 2]])
    np.testing.assert_array_equal(mean, [2, 2])
    # On the atoms 0, 1, 2: half of the mass at 0 and 1 goes to 1 and 1.5; a terminal reward of 2 is 2.
    atoms, probabilities = jnp.array([0.0, 1.0, 2.0]), jnp.array([[0.5, 0.5, 0.0]] * 2)
    target, mean = bellman_target(
        SEGMENT, jnp.broadcast_to(atoms, (2, 3)), probabilities, head="categorical", atoms=atoms
    )
    np.testing.assert_allclose(target, [[0, 0.75, 0.25], [0, 0, 1]])
    np.testing.assert_allclose(mean, [1.25, 2])


def test_a_soft_policy_and_its_bonus_by_hand():
    values, temperature = jnp.array([[1.0, 2.0, 5.0], [0.0, 0.0, -1e4]]), 2.0
    allowed = jnp.array([[1, 1, 0], [1, 1, 1]], bool)
    policy, scaled = soft_policy(values, temperature, allowed)
    second = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(policy, [[1 - second, second, 0], [0.5, 0.5, 0]], rtol=1e-6)
    np.testing.assert_allclose(scaled[:, :2], [2 * np.log([1 - second, second]), [2 * np.log(0.5)] * 2], rtol=1e-5)
    np.testing.assert_allclose(scaled[1, 2], -1e4 + 2 * np.log(0.5), rtol=1e-6)
    bonus = log_policy_bonus(scaled, jnp.array([1, 2]), 0.5, -3.0)
    np.testing.assert_allclose(bonus, [0.5 * 2 * np.log(second), 0.5 * -3], rtol=1e-5)
    # However cold, what is not allowed is never taken, and what is allowed is.
    policy, scaled = soft_policy(jnp.array([[-1e5, 3.0, -2e5]]), 1e-6, jnp.array([[1, 0, 1]], bool))
    np.testing.assert_array_equal(policy, [[1, 0, 0]])
    np.testing.assert_array_equal(policy * scaled, [[0, 0, 0]])


def test_head_losses_and_priorities_by_hand():
    loss, priority = head_loss(
        jnp.array([[1.0], [0.0]]), jnp.array([3.0, 0.5]), head="expected", fractions=None, huber=1
    )
    np.testing.assert_allclose(loss, [1.5, 0.125])
    np.testing.assert_allclose(priority, [2, 0.5])
    logits = jnp.log(jnp.array([[0.25, 0.75]]))
    loss, priority = head_loss(logits, jnp.array([[0.5, 0.5]]), head="categorical", fractions=None, huber=1)
    np.testing.assert_allclose(loss, [-0.5 * np.log(0.25 * 0.75)], rtol=1e-6)
    assert priority is loss
    # Errors 1, 3 at the first quantile and 0, 2 at the second; midpoints 1/4 and 3/4.
    outputs, target = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 3.0]])
    loss, _ = head_loss(outputs, target, head="quantile", fractions=None, huber=0)
    np.testing.assert_allclose(loss, [0.25 * 2 + 0.75 * 1])
    loss, priority = head_loss(outputs, target, head="implicit_quantile", fractions=jnp.full((1, 2), 0.5), huber=0)
    np.testing.assert_allclose(loss, [0.5 * 2 + 0.5 * 1])
    assert priority is loss


def test_the_target_network_moves_by_rate_and_is_copied_by_period():
    target, online = {"w": jnp.array([0.0])}, {"w": jnp.array([8.0])}
    for steps, period, expected in ((3, None, 2), (3, 2, 2), (4, 2, 8)):
        moved = follow_online(target, online, jnp.int32(steps), rate=0.25, period=period)
        np.testing.assert_array_equal(moved["w"], [expected])


def test_copies_with_other_start_stocks_change_the_stock_alone():
    def observation(stock, steps):
        numbers = {"stock": stock, "start_stock": 0.5, "steps": steps, "observation": 7.0}
        return {name: jnp.full(2, number) for name, number in numbers.items()}

    action, importance = jnp.array([0, 1]), jnp.array([1.0, 0.5])
    batch = Batch(observation(3.0, 1), action, observation(5.0, 2), SEGMENT, importance)
    space = spaces.Box(-1.0, 2.0, (), np.float32)
    more = with_other_stocks(KEY, batch, space, copies=2, discount=0.5)
    np.testing.assert_array_equal(more.action, np.tile(action, 3))
    np.testing.assert_array_equal(more.importance, np.tile(importance, 3))
    np.testing.assert_array_equal(more.segment.reward, np.tile(SEGMENT.reward, 3))
    np.testing.assert_array_equal(more.observation["observation"], np.full(6, 7.0))
    start = np.asarray(more.observation["start_stock"])
    np.testing.assert_array_equal(start[:2], 0.5)
    assert len(np.unique(start[2:])) == 4 and (space.low <= start).all() and (start <= space.high).all()
    # A stock grows by 1 / discount per step, and so does the difference.
    np.testing.assert_allclose(more.observation["stock"], 3 + 2 * (start - 0.5), rtol=1e-6)
    np.testing.assert_allclose(more.following["stock"], 5 + 4 * (start - 0.5), rtol=1e-6)
    np.testing.assert_array_equal(more.following["start_stock"], start)
