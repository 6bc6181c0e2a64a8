"""Random constrained models: small enough to be solved exactly, and to learn in within seconds."""

from __future__ import annotations

import numpy as np

from envs.native.tabular import TabularEnvironment, TabularModel, validated
from envs.wrappers import TimeLimit


def random_model(
    *, states: int = 8, actions: int = 4, costs: int = 1, successors: int = 3, going_on: float = 0.9, seed: int = 0
) -> TabularModel:
    """A model with ``costs`` costs, drawn as Garnet problems are (Archibald, McKinnon and Thomas, 1995).

    Every state and action leads to ``successors`` different states, with probabilities of a flat Dirichlet
    distribution. The reward and each cost of a state and action are drawn from [0, 1], so that what pays best is not
    what costs least. After every step the episode ends with probability ``1 - going_on``: totals that are not
    discounted are those of a problem with this discount and no end.

    Args:
      states, actions: their numbers.
      costs: how many components the reward has after the first.
      successors: at most ``states``.
      going_on: above 0 and below 1.
      seed: of the model; the same number draws the same model.

    Raises:
      ValueError: counts below 1, more successors than states, or ``going_on`` outside of (0, 1).
    """
    for name, count in {"states": states, "actions": actions, "costs": costs, "successors": successors}.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")
    if successors > states:
        raise ValueError(f"successors={successors}: expected at most the number of states, {states}")
    if not 0 < going_on < 1:
        raise ValueError(f"going_on={going_on}: expected a probability above 0 and below 1")
    rng = np.random.default_rng(seed)
    following = np.stack([rng.permutation(states)[:successors] for _ in range(states * actions)])
    following = following.reshape(states, actions, successors)
    moves = rng.dirichlet(np.ones(successors), (states, actions))
    reward = rng.random((states, actions, 1, 1 + costs))
    shape = (states, actions, 2 * successors)
    return validated(
        TabularModel(
            probability=np.concatenate([going_on * moves, (1 - going_on) * moves], axis=-1),
            next_state=np.concatenate([following, following], axis=-1),
            reward=np.broadcast_to(reward, (*shape, 1 + costs)),
            terminated=np.broadcast_to(np.arange(shape[-1]) >= successors, shape),
            initial=np.full(states, 1 / states),
        )
    )


def random_model_environment(
    *,
    states: int = 8,
    actions: int = 4,
    costs: int = 1,
    successors: int = 3,
    going_on: float = 0.9,
    model_seed: int = 0,
    time_limit: int | None = 200,
) -> TabularEnvironment | TimeLimit:
    """``random_model`` as an environment, whose costs are named ``"1"``, ``"2"``, ...

    Args:
      states, actions, costs, successors, going_on: see ``random_model``.
      model_seed: of the model.
      time_limit: in steps; ``None`` for none. With the defaults, one episode in a billion is still running after 200.

    Raises:
      ValueError: see ``random_model``.
    """
    model = random_model(
        states=states, actions=actions, costs=costs, successors=successors, going_on=going_on, seed=model_seed
    )
    environment = TabularEnvironment(model, costs=tuple(str(index) for index in range(1, 1 + costs)))
    return environment if time_limit is None else TimeLimit(environment, time_limit)
