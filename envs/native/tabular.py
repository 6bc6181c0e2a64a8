"""Known models: finite environments as tables, which planners solve and agents act in.

A model lists, for every state and action, the outcomes that can follow: a probability, a next state, a reward and
whether the episode ends. The outcome, not the next state, carries the reward, so that one next state may come with
several rewards. The same model is solved by a planner and, as a ``TabularEnvironment``, sampled by a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Environment, EnvironmentSpec, TimeStep
from envs.choices import nearest, require_known
from envs.native.drawing import image_of
from envs.wrappers import TimeLimit

_SUM_TOLERANCE = 1e-6
_OBSERVATIONS = ("index", "one_hot")

STAY, UP, RIGHT, DOWN, LEFT = range(5)
GRID_MOVES = ((0, 0), (-1, 0), (0, 1), (1, 0), (0, -1))
"""Row and column change of the actions stay, up, right, down, left of a ``gridworld``."""

TABLES = ("FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4")
"""The gymnasium environments that publish their model."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "two_rewards": ("S..+", ".#..", "..#.", "-..G"),
    "short_and_risky": ("....", ".##.", "S--G", "...+"),
    "open": ("+...", "....", ".S..", "...-"),
}
"""Layouts for ``gridworld``, by name. They were made for this repository; no published figure uses them."""


class TabularModel(NamedTuple):
    """A finite environment as concrete numpy arrays.

    Attributes:
      probability: ``[S, A, O]``, the probability of each outcome; rows sum to one, padding has probability 0.
      next_state: ``int32 [S, A, O]``.
      reward: ``[S, A, O]``, or ``[S, A, O, m]`` where the reward is a vector.
      terminated: ``bool [S, A, O]``, whether the outcome ends the episode.
      initial: ``[S]``, distribution of the start state.
      horizon: time limit of an episode in steps, or ``None``.
    """

    probability: np.ndarray
    next_state: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    initial: np.ndarray
    horizon: int | None = None

    @property
    def num_states(self) -> int:
        """``S``."""
        return self.probability.shape[0]

    @property
    def num_actions(self) -> int:
        """``A``."""
        return self.probability.shape[1]

    @property
    def reward_dimension(self) -> int:
        """The number of components ``m`` of a vector reward; 0 for a scalar reward."""
        return 0 if self.reward.ndim == 3 else self.reward.shape[-1]


def validated(model: TabularModel) -> TabularModel:
    """Checks ``model`` and converts its arrays to the types that ``TabularModel`` documents.

    Raises:
      ValueError: the shapes do not match, a probability is negative, a row does not sum to one, a next state is not
        an integer from 0 to S - 1, a reward is not finite, ``initial`` is not a distribution, or the horizon is below
        1.
    """
    probability = np.asarray(model.probability, np.float64)
    if probability.ndim != 3 or 0 in probability.shape:
        raise ValueError(f"probability has shape {probability.shape}, expected [S, A, O] with at least one of each")
    next_state, reward = np.asarray(model.next_state), np.asarray(model.reward, np.float64)
    terminated, initial = np.asarray(model.terminated, bool), np.asarray(model.initial, np.float64)
    for name, array in (("next_state", next_state), ("reward", reward[..., 0] if reward.ndim == 4 else reward)):
        if array.shape != probability.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {probability.shape} as probability has")
    if terminated.shape != probability.shape:
        raise ValueError(f"terminated has shape {terminated.shape}, expected {probability.shape} as probability has")
    if not (probability >= 0).all():
        state, action, outcome = np.argwhere(~(probability >= 0))[0]
        raise ValueError(
            f"probability[{state}, {action}, {outcome}]={probability[state, action, outcome]}: expected at least 0"
        )
    sums = probability.sum(-1)
    if not (abs(sums - 1) <= _SUM_TOLERANCE).all():
        state, action = np.argwhere(~(abs(sums - 1) <= _SUM_TOLERANCE))[0]
        raise ValueError(
            f"state {state}, action {action}: the probabilities sum to {sums[state, action]:.6g}, expected 1"
        )
    num_states = probability.shape[0]
    if not ((next_state >= 0) & (next_state < num_states)).all():
        state, action, outcome = np.argwhere(~((next_state >= 0) & (next_state < num_states)))[0]
        raise ValueError(
            f"next_state[{state}, {action}, {outcome}]={next_state[state, action, outcome]}: expected a state from "
            f"0 to {num_states - 1}"
        )
    if not (next_state == np.rint(next_state)).all():
        state, action, outcome = np.argwhere(next_state != np.rint(next_state))[0]
        raise ValueError(
            f"next_state[{state}, {action}, {outcome}]={next_state[state, action, outcome]}: expected an integer"
        )
    if not np.isfinite(reward).all():
        position = tuple(int(index) for index in np.argwhere(~np.isfinite(reward))[0])
        raise ValueError(f"reward{list(position)} is {reward[position]}, expected a finite number")
    if initial.shape != (num_states,):
        raise ValueError(f"initial has shape {initial.shape}, expected ({num_states},), one probability per state")
    if not (initial >= 0).all() or not abs(initial.sum() - 1) <= _SUM_TOLERANCE:
        raise ValueError(
            f"initial sums to {initial.sum():.6g} with minimum {initial.min():.6g}: expected a distribution over states"
        )
    horizon = model.horizon
    if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1):
        raise ValueError(f"horizon={horizon!r}: expected an integer, at least 1, or None for no time limit")
    return TabularModel(
        probability,
        next_state.astype(np.int32),
        reward,
        terminated,
        initial,
        None if horizon is None else int(horizon),
    )


Outcome = tuple[float, int, Any, bool]
"""Probability, next state, reward (a number or a vector), terminated."""


def from_outcomes(
    outcomes: Sequence[Sequence[Sequence[Outcome]]], initial: Any, horizon: int | None = None
) -> TabularModel:
    """A model from ``outcomes[state][action]``, a list of ``(probability, next_state, reward, terminated)``.

    Equal outcomes are merged, outcomes of probability 0 are dropped, and rows are padded to the longest.

    Raises:
      ValueError: as ``validated``; also if states have different numbers of actions or rewards different shapes.
    """
    counts = {len(actions) for actions in outcomes}
    if len(counts) != 1:
        raise ValueError(f"states have {sorted(counts)} actions: expected the same number in every state")
    tail = np.shape(next((reward for actions in outcomes for row in actions for _, _, reward, _ in row), 0.0))
    merged: list[list[dict[tuple, float]]] = []
    for state, actions in enumerate(outcomes):
        merged.append([])
        for action, row in enumerate(actions):
            parts: dict[tuple, float] = {}
            for probability, following, reward, terminated in row:
                # Checked before merging: the sum of equal outcomes could hide a negative probability.
                if not probability >= 0:
                    raise ValueError(f"state {state}, action {action}: probability {probability}, expected at least 0")
                vector = np.asarray(reward, np.float64)
                if vector.shape != tail:
                    raise ValueError(
                        f"state {state}, action {action}: reward {reward} has shape {vector.shape}, expected {tail} as "
                        "the first one has"
                    )
                name = (float(following), tuple(vector.ravel().tolist()), bool(terminated))
                parts[name] = parts.get(name, 0.0) + float(probability)
            merged[-1].append({name: probability for name, probability in parts.items() if probability != 0.0})
    shape = (len(outcomes), counts.pop(), max((len(row) for actions in merged for row in actions), default=0))
    # next_state is floating point until ``validated`` has checked that it holds integers.
    masses, next_state = np.zeros(shape), np.zeros(shape)
    rewards, ended = np.zeros((*shape, *tail)), np.zeros(shape, bool)
    for state, distributions in enumerate(merged):
        for action, distribution in enumerate(distributions):
            for index, ((following, vector, ends), mass) in enumerate(distribution.items()):
                where = state, action, index
                masses[where], next_state[where], ended[where] = mass, following, ends
                rewards[where] = np.reshape(vector, tail)
    return validated(TabularModel(masses, next_state, rewards, ended, np.asarray(initial), horizon))


def from_dense(
    transition: Any,
    reward: Any,
    initial: Any,
    *,
    terminal: Sequence[int] = (),
    vector: bool = False,
    horizon: int | None = None,
) -> TabularModel:
    """A model from a dense transition matrix.

    Args:
      transition: ``[S, A, S']``; the rows of terminal states are ignored.
      reward: ``[S, A]`` or ``[S, A, S']``; with ``vector`` one more axis ``[m]`` at the end.
      initial: ``[S]``, distribution of the start state.
      terminal: states that end the episode when they are entered.
      vector: whether the last axis of ``reward`` holds the components of a vector.
      horizon: time limit in steps, or ``None``.

    Raises:
      ValueError: the shapes do not match or a terminal state does not exist; also as ``validated``.
    """
    transition, reward = np.asarray(transition, np.float64), np.asarray(reward, np.float64)
    if transition.ndim != 3 or transition.shape[0] != transition.shape[2]:
        raise ValueError(f"transition has shape {transition.shape}, expected [S, A, S]")
    tail = reward.shape[-1:] if vector else ()
    per_action, per_next = transition.shape[:2] + tail, transition.shape + tail
    if reward.shape == per_action:
        reward = np.broadcast_to(np.expand_dims(reward, 2), per_next)
    elif reward.shape != per_next:
        raise ValueError(f"reward has shape {reward.shape}, expected {per_action} or {per_next}")
    num_states, num_actions, _ = transition.shape
    ends = np.zeros(num_states, bool)
    for state in terminal:
        if not 0 <= state < num_states:
            raise ValueError(f"terminal state {state}: expected a state from 0 to {num_states - 1}")
        ends[state] = True
    zero = np.zeros(tail)
    outcomes: list[list[list[Outcome]]] = [
        [
            [(1.0, state, zero, True)]
            if ends[state]
            else [
                (transition[state, action, following], following, reward[state, action, following], ends[following])
                for following in range(num_states)
            ]
            for action in range(num_actions)
        ]
        for state in range(num_states)
    ]
    return from_outcomes(outcomes, initial, horizon)


def from_gymnasium(environment_id: str, **parameters: Any) -> TabularModel:
    """The model that a gymnasium environment publishes, with the registered time limit as horizon.

    The environments of ``TABLES`` publish one; of these, ``CliffWalking-v1`` has no time limit.

    Args:
      environment_id: gymnasium's identifier.
      **parameters: passed to ``gymnasium.make``, such as ``is_slippery=True``.

    Raises:
      ValueError: the identifier is unknown, or the environment has no attribute ``P``.
    """
    try:
        environment = gymnasium.make(environment_id, **parameters)
    except gymnasium.error.Error as error:
        raise ValueError(
            f"environment_id={environment_id!r}: {error}{nearest(environment_id, TABLES)} (known: {', '.join(TABLES)})"
        ) from error
    try:
        inside = environment.unwrapped
        table = getattr(inside, "P", None)
        initial = getattr(inside, "initial_state_distrib", None)
        if table is None or initial is None:
            raise ValueError(
                f"{environment_id} publishes no model (no attribute P with initial_state_distrib): expected a tabular "
                f"environment such as {', '.join(TABLES)}"
            )
        limit = None if environment.spec is None else environment.spec.max_episode_steps
        outcomes = [[list(table[state][action]) for action in sorted(table[state])] for state in sorted(table)]
        return from_outcomes(outcomes, np.asarray(initial, np.float64), limit)
    finally:
        environment.close()


def one_state(reward_distributions: Sequence[Sequence[tuple[Any, float]]], horizon: int | None = None) -> TabularModel:
    """A bandit: one state without an end, in which action ``a`` pays a reward drawn from ``reward_distributions[a]``.

    Args:
      reward_distributions: for each action a list of ``(reward, probability)``.
      horizon: time limit in steps, or ``None``.

    Raises:
      ValueError: as ``validated``.
    """
    outcomes: list[list[Outcome]] = [
        [(probability, 0, reward, False) for reward, probability in distribution]
        for distribution in reward_distributions
    ]
    return from_outcomes([outcomes], [1.0], horizon)


def gridworld(layout: str | Sequence[str], *, slip: float = 0.0, horizon: int | None = None) -> TabularModel:
    """A grid with the actions stay, up, right, down and left.

    The cells: ``.`` is free; ``S`` is free and a possible start; ``+`` pays 1 and ``-`` pays -1 when the agent enters
    it from another cell; ``G`` ends the episode when it is entered; ``#`` is a wall. A move against a wall or the
    border leaves the agent where it is. An episode starts in one of the ``S``, or, if there are none, in any cell but
    ``G``, all equally likely. States number the cells without a wall, row by row.

    Args:
      layout: rows of equal length, or a name of ``LAYOUTS``.
      slip: probability that one of the five moves, drawn uniformly, replaces the chosen one.
      horizon: time limit in steps, or ``None``.

    Raises:
      ValueError: a name or cell is unknown, the rows have different lengths, or ``slip`` is outside [0, 1].
    """
    if isinstance(layout, str):
        require_known("layout", layout, LAYOUTS)
        layout = LAYOUTS[layout]
    if not 0 <= slip <= 1:
        raise ValueError(f"slip={slip}: expected a probability from 0 to 1")
    if len({len(row) for row in layout}) != 1:
        raise ValueError(f"rows have lengths {[len(row) for row in layout]}: expected one length")
    cells = {(r, c): symbol for r, row in enumerate(layout) for c, symbol in enumerate(row)}
    for place, symbol in cells.items():
        if symbol not in ".S+-G#":
            raise ValueError(f"cell {place} is {symbol!r}: expected one of . S + - G #")
    free = {place: index for index, place in enumerate(p for p, symbol in cells.items() if symbol != "#")}
    pays = {"+": 1.0, "-": -1.0}

    def outcome(place: tuple[int, int], move: int, probability: float) -> Outcome:
        target = place[0] + GRID_MOVES[move][0], place[1] + GRID_MOVES[move][1]
        target = target if target in free else place
        entered = cells[target] if target != place else "."
        return probability, free[target], pays.get(entered, 0.0), entered == "G"

    moves = range(len(GRID_MOVES))
    outcomes: list[list[list[Outcome]]] = [
        [
            [(1.0, index, 0.0, True)]
            if cells[place] == "G"
            else [outcome(place, action, 1 - slip), *(outcome(place, move, slip / len(moves)) for move in moves)]
            for action in moves
        ]
        for place, index in free.items()
    ]
    starts = [index for place, index in free.items() if cells[place] == "S"]
    starts = starts or [index for place, index in free.items() if cells[place] != "G"]
    if not starts:
        raise ValueError(f"layout {tuple(layout)}: expected a cell to start in, such as S")
    initial = np.zeros(len(free))
    initial[starts] = 1 / len(starts)
    return from_outcomes(outcomes, initial, horizon)


def scalarised(model: TabularModel, weights: Sequence[float]) -> TabularModel:
    """``model`` with the scalar reward ``sum_i weights_i r_i`` in place of the vector reward ``r [m]``.

    Raises:
      ValueError: ``weights`` does not have ``m`` entries.
    """
    array = np.asarray(weights, np.float64)
    if array.shape != (model.reward_dimension,):
        raise ValueError(f"weights has shape {array.shape}, expected ({model.reward_dimension},), one per component")
    return model._replace(reward=model.reward @ array)


@dataclass(frozen=True, eq=False)
class TabularEnvironment:
    """A model as a pure ``Environment``, so that agents can learn what planners solve; equal only to itself.

    It has no time limit: wrap it in ``TimeLimit`` with ``model.horizon``. The first component of a vector reward is
    the reward. Its components become the objectives ``"0"``, ``"1"``, ..., or, with ``costs``, those after the first
    become the costs of these names. The environment's state is the index of the model's state, ``int32 []``.

    Attributes:
      model: checked by ``validated``.
      observation: ``"index"`` (``Discrete(S)``) or ``"one_hot"`` (``Box [S]``).
      costs: names of the components of a vector reward after the first.

    Raises:
      ValueError: ``observation`` is unknown, there is another number of ``costs`` than of components after the first,
        or the model is invalid (see ``validated``).
    """

    model: TabularModel
    observation: str = "index"
    costs: tuple[str, ...] = ()

    def __post_init__(self):
        require_known("observation", self.observation, _OBSERVATIONS)
        object.__setattr__(self, "model", validated(self.model))
        if self.costs and len(self.costs) != self.model.reward_dimension - 1:
            raise ValueError(
                f"costs={self.costs}: expected {max(self.model.reward_dimension - 1, 0)} names, one for each component "
                "of the reward after the first"
            )

    @cached_property
    def spec(self) -> EnvironmentSpec:
        """``Discrete(A)`` and the space of the chosen observation."""
        size, spaces = self.model.num_states, gymnasium.spaces
        return EnvironmentSpec(
            spaces.Discrete(size) if self.observation == "index" else spaces.Box(0, 1, (size,), np.float32),
            spaces.Discrete(self.model.num_actions),
            costs=self.costs,
            objectives=self._objectives,
        )

    @property
    def _objectives(self) -> tuple[str, ...]:
        return () if self.costs else tuple(str(index) for index in range(self.model.reward_dimension))

    @cached_property
    def _cumulative(self) -> np.ndarray:
        # The last possible outcome gets the mass lost to rounding, so that padding is never drawn.
        cumulative = self.model.probability.cumsum(-1)
        later = np.flip(np.flip(self.model.probability, -1).cumsum(-1), -1) - self.model.probability
        return np.where(later > 0, cumulative, np.inf).astype(np.float32)

    def reset(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draws a start state from ``initial``."""
        state = jax.random.choice(key, self.model.num_states, p=jnp.asarray(self.model.initial, jnp.float32))
        state = state.astype(jnp.int32)
        return state, self.observe(state)

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array) -> tuple[jax.Array, TimeStep]:
        """Draws an outcome; never resets and never truncates."""
        draw = jax.random.uniform(key)
        outcome = jnp.argmax(draw < jnp.asarray(self._cumulative)[state, action])
        following = jnp.asarray(self.model.next_state)[state, action, outcome]
        reward = jnp.asarray(self.model.reward, jnp.float32)[state, action, outcome]
        dimension = self.model.reward_dimension
        observation = self.observe(following)
        return following, TimeStep(
            observation=observation,
            reward=reward[0] if dimension else reward,
            costs={name: reward[index] for index, name in enumerate(self.costs, start=1)},
            objectives={name: reward[int(name)] for name in self._objectives},
            terminated=jnp.asarray(self.model.terminated)[state, action, outcome],
            truncated=jnp.zeros((), bool),
            final_observation=observation,
            info={},
        )

    def observe(self, state: jax.Array) -> jax.Array:
        """The observation of ``state``."""
        return state if self.observation == "index" else jax.nn.one_hot(state, self.model.num_states, dtype=jnp.float32)


_GRID_COLOURS = {
    ".": (240, 240, 240),
    "S": (220, 220, 250),
    "+": (120, 200, 120),
    "-": (220, 120, 120),
    "G": (240, 190, 40),
    "#": (60, 60, 60),
    "@": (40, 90, 200),
}


@dataclass(frozen=True, eq=False)
class GridworldEnvironment(TabularEnvironment):
    """A ``gridworld`` as an environment that can be drawn.

    Attributes:
      layout: its rows.
    """

    layout: tuple[str, ...] = ()

    def draw_text(self, state: jax.Array) -> str:
        """The layout with ``@`` where the agent is."""
        free = [(i, j) for i, line in enumerate(self.layout) for j, cell in enumerate(line) if cell != "#"]
        rows = [list(row) for row in self.layout]
        row, column = free[int(state)]
        rows[row][column] = "@"
        return "\n".join("".join(row) for row in rows)

    def draw_image(self, state: jax.Array) -> np.ndarray:
        """``draw_text`` in colours."""
        return image_of(self.draw_text(state), _GRID_COLOURS)


def gridworld_environment(layout: str | tuple[str, ...], *, slip: float = 0.0) -> GridworldEnvironment:
    """``gridworld(layout, slip=slip)`` as an environment, without a time limit."""
    model = gridworld(layout, slip=slip)
    return GridworldEnvironment(model, layout=tuple(LAYOUTS[layout] if isinstance(layout, str) else layout))


def gymnasium_table(environment_id: str, *, time_limit: int | None = None, **parameters: Any) -> Environment:
    """``from_gymnasium(environment_id, **parameters)`` as an environment, with gymnasium's time limit.

    Args:
      environment_id, parameters: see ``from_gymnasium``.
      time_limit: another time limit; ``None`` keeps gymnasium's, which some environments have not.

    Raises:
      TypeError, ValueError: see ``from_gymnasium`` and ``TimeLimit``.
    """
    model = from_gymnasium(environment_id, **parameters)
    limit = model.horizon if time_limit is None else time_limit
    environment = TabularEnvironment(model)
    return environment if limit is None else TimeLimit(environment, limit)
