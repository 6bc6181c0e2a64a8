"""Shared by the tests of planners: the start of an objective, and a tail mean by a loop."""

import jax.numpy as jnp
import numpy as np

from agents.functionals import initial_stock
from agents.planning.distributional import return_distribution


def start(functional, plan, model):
    """The functional's value, the initial stock, and particles and weights of the return from there."""
    value, index = initial_stock(functional, plan.stocks, jnp.asarray(model.initial, float) @ plan.values)
    return value, plan.stocks[index], *return_distribution(plan, model.initial, plan.stocks[index])


def lower_mean(level):
    """The mean of the worst share ``level``, by a loop."""

    def score(particles, weights):
        total, rest = 0.0, level
        for index in np.argsort(particles):
            share = min(rest, weights[index])
            total, rest = total + share * particles[index], rest - share
        return total / level

    return score
