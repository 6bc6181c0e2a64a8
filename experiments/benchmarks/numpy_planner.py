"""Distributional value iteration in NumPy, beside which the planner of ``agents`` is measured.

Not meant to be built on: rewards are numbers, there is a time limit, and of tied actions the lowest is taken. It is
written to be fast: whole arrays of 32 bits; loops over time steps, rewards and outcomes alone; distributions moved only
where the chosen action needs them, and shifted by slices where the reward is a multiple of the atoms' distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agents.planning.dynamic_programming import TIE_TOLERANCE
from envs.native.tabular import TabularModel


def value_iteration(
    model: TabularModel,
    utility: Callable[[np.ndarray], np.ndarray],
    stocks: np.ndarray,
    atoms: np.ndarray,
    *,
    discount: float,
    horizon: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The policy ``[H, S, C]``, distributions ``[S, C, K]`` and ``E f(c + G)`` ``[S, C]`` at time 0.

    Args:
      model: with rewards that are numbers.
      utility: ``f``, elementwise.
      stocks, atoms: ``[C]`` and ``[K]``, evenly spaced; an atom is 0.
      discount, horizon: of the problem.
    """
    num_states, states = model.num_states, np.arange(model.num_states)[:, None]
    rewards, inverse = np.unique(model.reward, return_inverse=True)
    group, probability = inverse.reshape(model.reward.shape), model.probability.astype(np.float32)
    following_state = np.where(model.terminated, num_states, model.next_state)
    totals = stocks[:, None] + discount * atoms
    utilities = [utility(reward + totals).astype(np.float32) for reward in rewards]
    places = [_interpolation(stocks, (stocks + reward) / discount) for reward in rewards]
    moves = [_move(atoms, reward + discount * atoms) for reward in rewards]
    distributions = np.zeros((num_states + 1, len(stocks), len(atoms)), np.float32)
    distributions[..., np.abs(atoms).argmin()] = 1
    policy = np.zeros((horizon, num_states, len(stocks)), np.int32)
    for time in reversed(range(horizon)):
        # Rounding the stock mixes distributions, and the utility of a mixture is the mixture of the utilities.
        following = np.stack(
            [
                sum(weight * np.einsum("sck,ck->sc", distributions[:, index], values) for index, weight in corners)
                for corners, values in zip(places, utilities, strict=True)
            ]
        )
        action_values = (probability[..., None] * following[group, following_state]).sum(2)
        best = action_values.max(1, keepdims=True)
        ties = action_values >= best - np.float32(TIE_TOLERANCE) * np.maximum(1, np.abs(best))
        policy[time] = actions = ties.argmax(1)
        earlier = np.zeros_like(distributions)
        earlier[-1] = distributions[-1]
        for outcome in range(probability.shape[2]):
            share, successor, kind = (x[states, actions, outcome] for x in (probability, following_state, group))
            for reward, (corners, move) in enumerate(zip(places, moves, strict=True)):
                chosen, stock = np.nonzero((kind == reward) & (share > 0))
                after = successor[chosen, stock]
                rows = [distributions[after, index[stock]] * weight[stock, None] for index, weight in corners]
                earlier[chosen, stock] += share[chosen, stock, None] * move(sum(rows))
        distributions = earlier
    distributions = distributions[:-1]
    return (
        policy,
        distributions,
        np.einsum("sck,ck->sc", distributions, utility(stocks[:, None] + atoms).astype(np.float32)),
    )


def _interpolation(points: np.ndarray, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices and weights ``[N]`` of the points around each image, clipped to the ends; one where all are on points."""
    position = np.clip((images - points[0]) / (points[1] - points[0]), 0, len(points) - 1)
    nearest = np.rint(position)
    if np.allclose(position, nearest, atol=1e-6):
        return [(nearest.astype(int), np.ones(len(images), np.float32))]
    below = np.minimum(np.floor(position).astype(int), len(points) - 2)
    share = (position - below).astype(np.float32)
    return [(below, 1 - share), (below + 1, share)]


def _move(atoms: np.ndarray, images: np.ndarray) -> Callable[[Any], np.ndarray]:
    """``distributions [N, K] -> [N, K]`` where atom ``j`` moves to ``images[j]``: slices if that is a shift, else a
    product."""
    size = len(atoms)
    shift = (images[0] - atoms[0]) / (atoms[1] - atoms[0])
    if np.allclose(images - atoms, images[0] - atoms[0]) and abs(shift - round(shift)) < 1e-6:
        places = min(abs(round(shift)), size)

        def slide(distributions):
            moved = np.zeros_like(distributions)
            if shift >= 0:
                moved[:, places:] = distributions[:, : size - places]
                moved[:, -1] += distributions[:, size - places :].sum(1)
            else:
                moved[:, : size - places] = distributions[:, places:]
                moved[:, 0] += distributions[:, :places].sum(1)
            return moved

        return slide
    matrix = np.zeros((size, size), np.float32)
    for index, weight in _interpolation(atoms, images):
        np.add.at(matrix, (np.arange(size), index), weight)
    return lambda distributions: distributions @ matrix
