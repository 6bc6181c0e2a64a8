"""The contract of an evaluator, and the episodes that evaluators ask for.

An evaluator measures a run between two chunks of training. It is a named tuple of pure functions made by a factory,

    factory(context, **section) -> Evaluator

with one section of the configuration each, ``config.evaluators.NAME = {"kind": KIND, ...}``. The scan driver calls
``evaluate`` inside jit, vmapped over the members; the host driver calls it from Python for one member. An evaluator
that needs episodes takes them from ``context.episodes``, which is the only part that differs between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from agents.base import Agent
from envs import rollout
from envs.base import Environment, EnvironmentSpec, Observation, PyTree, Trajectory, VectorHost
from envs.host_rollout import episodes_host
from envs.stock import StartingAt


class Evaluator(NamedTuple):
    """Measures a run.

    Attributes:
      evaluate: ``(run state, key) -> metrics`` by name, numbers ``[]`` (an evaluator of a command may return arrays).
        The run state has the fields ``agent`` and ``reward`` (``experiments.training.learn.RunState``); ``key`` is the
        evaluator's own.
      metrics: the names of these metrics, known before anything runs.
      watch: ``(run state, trajectory) -> metrics``, of every iteration of training: the state whose policy acted, and
        what it met, before anything is learned from it. Means over a chunk, or maxima where a name starts with
        ``max/``; rows have them under ``train/``. For pure environments; ``None`` for no such metrics.
    """

    evaluate: Callable[[Any, jax.Array], dict[str, Any]]
    metrics: tuple[str, ...]
    watch: Callable[[Any, Trajectory], dict[str, Any]] | None = None


class Episodes(Protocol):
    """Whole episodes of an agent in one environment, the same for pure and for host environments."""

    def play(
        self,
        params: PyTree,
        key: jax.Array,
        *,
        count: int,
        length: int,
        greedy: bool,
        stocks: jax.Array | None = None,
    ) -> Trajectory:
        """``count`` episodes of at most ``length`` steps, each from a start state of its own that ``key`` draws.

        Args:
          params: of the agent.
          key: of start states, actions and chance.
          count, length: ``B`` and ``T``.
          greedy: whether the agent acts greedily.
          stocks: ``[K]``, for a stock-augmented environment: as many episodes from each of these stocks, all from the
            same start states.

        Returns:
          A trajectory ``[T, B]``, or ``[K, T, B]``; on host environments without observations, actions and carries.
        """

    def first_observations(self, key: jax.Array, count: int) -> Observation:
        """Observations ``[count, ...]`` of episodes at their start."""


class Context(NamedTuple):
    """What an evaluator is made from.

    Attributes:
      spec: of the environment.
      environment: the pure environment; ``None`` for host environments.
      agent: that is evaluated.
      episodes: of this agent in this environment.
      sections: the configuration as nested dictionaries; the numbers that a sweep traces are traced.
      written: by the name of each reward transform, the channels that it writes or rewrites.
    """

    spec: EnvironmentSpec
    environment: Environment | None
    agent: Agent
    episodes: Episodes
    sections: Mapping[str, Any]
    written: Mapping[str, Set[str]]


def evaluator_key(key: jax.Array, position: int) -> jax.Array:
    """The key of the evaluator at ``position`` in the configuration, from that of the evaluation."""
    return jax.random.fold_in(key, position)


def metric_names(evaluators: Mapping[str, Evaluator]) -> list[str]:
    """What ``evaluate`` reports, in order.

    A metric keeps the name that its evaluator gives it; one that an earlier evaluator reports already is
    ``EVALUATOR/METRIC``.
    """
    names: list[str] = []
    for name, evaluator in evaluators.items():
        names += [metric if metric not in names else f"{name}/{metric}" for metric in evaluator.metrics]
    return names


def evaluate(evaluators: Mapping[str, Evaluator], state: Any, key: jax.Array) -> dict[str, Any]:
    """The metrics of all evaluators, named as in ``metric_names``.

    Raises:
      ValueError: if an evaluator reports other metrics than it says.
    """
    metrics: dict[str, Any] = {}
    for position, (name, evaluator) in enumerate(evaluators.items()):
        found = evaluator.evaluate(state, evaluator_key(key, position))
        if set(found) != set(evaluator.metrics):
            raise ValueError(
                f"evaluators.{name} reports {sorted(found)}, which is not what its metrics say: "
                f"{sorted(evaluator.metrics)}"
            )
        metrics |= {metric if metric not in metrics else f"{name}/{metric}": found[metric] for metric in found}
    return metrics


def watch(evaluators: Mapping[str, Evaluator], state: Any, trajectory: Trajectory) -> dict[str, Any]:
    """The metrics that evaluators take of an iteration of training, under ``train/`` and ``max/``.

    Raises:
      ValueError: if two evaluators report one name.
    """
    metrics: dict[str, Any] = {}
    for name, evaluator in evaluators.items():
        for metric, value in (evaluator.watch(state, trajectory) if evaluator.watch else {}).items():
            named = metric if metric.startswith("max/") else f"train/{metric}"
            if named in metrics:
                raise ValueError(f"evaluators.{name}: another evaluator watches {metric!r}, too; expected one of them")
            metrics[named] = value
    return metrics


def episode_length(spec: EnvironmentSpec, cut: int | None = None) -> int:
    """The steps after which every episode of an evaluation has ended: ``cut``, or the environment's own bound where
    that is smaller or ``cut`` is ``None``.

    Raises:
      ValueError: if neither is there.
    """
    bounds = [bound for bound in (cut, spec.max_episode_steps) if bound is not None]
    if not bounds:
        raise ValueError(
            "cut=None: the episodes of this environment have no bound; expected cut=STEPS, which ends each of them "
            "there, or an environment with a time limit"
        )
    return min(bounds)


def acting_policy(agent: Agent, params: PyTree, *, greedy: bool = False) -> rollout.Policy:
    """The policy function of ``agent`` at ``params``."""

    def policy(carry, observation, key):
        return agent.act(params, carry, observation, key, greedy=greedy)

    return policy


def host_act(agent: Agent) -> Callable[..., Any]:
    """``(params, carry, observation, key, t, *, greedy) -> (action, carry, {})``, compiled, for ``HostEpisodes``."""

    def act(params, carry, observation, key, t, *, greedy):
        action, carry, _ = agent.act(params, carry, observation, jax.random.fold_in(key, t), greedy=greedy)
        return action, carry, {}

    return jax.jit(act, static_argnames="greedy")


class PureEpisodes:
    """``Episodes`` of a pure environment; traceable."""

    def __init__(self, environment: Environment, agent: Agent):
        self._environment, self._agent = environment, agent

    def play(self, params, key, *, count, length, greedy, stocks=None):
        def from_stock(environment: Environment) -> Trajectory:
            return rollout.episodes(
                environment,
                acting_policy(self._agent, params, greedy=greedy),
                key,
                length=length,
                batch=count,
                group_size=1,
                initial_carry=self._agent.initial_carry(count),
            )

        if stocks is None:
            return from_stock(self._environment)
        environment: Any = self._environment
        return jax.vmap(lambda stock: from_stock(StartingAt(environment, stock)))(stocks)

    def first_observations(self, key, count):
        return jax.vmap(self._environment.reset)(jax.random.split(key, count))[1]


def episode_seeds(key: jax.Array, count: int) -> list[int]:
    """31-bit seeds of ``count`` host environments, one episode each."""
    drawn = jax.random.bits(jax.random.fold_in(key, rollout.RESET), (count,), jnp.uint32)
    return [int(bits) for bits in np.asarray(drawn >> 1)]


class HostEpisodes:
    """``Episodes`` of host environments, which are made when they are first asked for and kept until ``close``.

    Args:
      make_host: ``(number of environments) -> VectorHost``.
      agent: whose initial carry episodes start with.
      act: ``(params, carry, observation, key, t, *, greedy) -> (action, carry, extras)``, compiled.
    """

    def __init__(self, make_host: Callable[[int], VectorHost], agent: Agent, act: Callable[..., Any]):
        self._make_host, self._agent, self._act = make_host, agent, act
        self._hosts: dict[int, Any] = {}

    def play(self, params, key, *, count, length, greedy, stocks=None):
        host = self._host(count)

        def episodes() -> Trajectory:
            return episodes_host(
                host,
                functools.partial(self._act, greedy=greedy),
                params,
                key,
                seeds=episode_seeds(key, count),
                group_size=1,
                length=length,
                initial_carry=jax.device_get(self._agent.initial_carry(count)),
                observations=False,
            )

        if stocks is None:
            return jax.tree.map(jnp.asarray, episodes())
        before = host.start
        played = []
        for stock in np.asarray(stocks):
            host.start_at(float(stock))
            played.append(episodes())
        host.start_at(before)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *played)

    def first_observations(self, key, count):
        return self._host(count).reset(episode_seeds(key, count))

    def close(self) -> None:
        """Closes the environments; others are made where more is asked for."""
        for host in self._hosts.values():
            host.close()
        self._hosts.clear()

    def _host(self, count: int) -> Any:
        if count not in self._hosts:
            self._hosts[count] = self._make_host(count)
        return self._hosts[count]
