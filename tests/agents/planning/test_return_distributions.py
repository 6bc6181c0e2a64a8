"""Stocks along a path and on their grid, and refusals of representations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.planning.return_distributions import StockGrid, categorical, lattice, quantiles, stock_points
from envs.stock import next_stock


@given(
    rewards=st.lists(st.floats(-10, 10), min_size=1, max_size=20),
    stock=st.floats(-20, 20),
    discount=st.sampled_from([0.5, 0.9, 0.997, 1.0]),
)
def test_stock_plus_return_is_constant_along_a_path(rewards, stock, discount):
    returns = [0.0]
    for reward in reversed(rewards):
        returns.append(reward + discount * returns[-1])
    returns, now = returns[::-1], np.float64(stock)
    for time, later in enumerate(returns):
        scale = abs(stock) + 10 * len(returns)
        assert discount**time * (now + later) == pytest.approx(stock + returns[0], abs=1e-13 * scale)
        if time < len(rewards):
            now = next_stock(now, rewards[time], discount)


def test_the_last_component_of_a_stock_varies_fastest():
    assert stock_points(StockGrid((0, 0), (1, 2))).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_refusals():
    with pytest.raises(ValueError, match="has no 0"):
        lattice(1, 2)
    with pytest.raises(ValueError, match="at least 2 atoms"):
        categorical(0, 1, 1)
    for low, high in ((1, 2), (-2, -1)):
        with pytest.raises(ValueError, match="expected a range that holds 0"):
            categorical(low, high, 3)
    with pytest.raises(ValueError, match="count=0"):
        quantiles(0)
