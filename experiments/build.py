"""From a configuration to the objects of a run.

Every section of a configuration is the keyword arguments of one factory, so that what can be configured is what the
factory documents. Values may be traced: ``build`` is called inside jit with the traced hyper-parameters of a sweep
in place of the configuration's numbers, which is why no factory branches on a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from agents.base import Agent, DataSpec
from agents.behaviour_cloning import Demonstrations, behaviour_cloning
from agents.credit import ESTIMATORS, Credit, Entry
from agents.networks import NetworkConfig
from agents.policy_gradient import policy_gradient, policy_network
from envs.envpool_host import EnvPoolHost, boxoban_host
from envs.functional import make_functional
from envs.gymnasium_host import GymnasiumHost
from envs.sokoban import Sokoban
from envs.sokoban_solver import demonstrations
from envs.types import Environment, EnvironmentSpec, VectorHost
from envs.wrappers import TimeLimit
from experiments.errors import UserError, unknown
from rewards import transforms
from rewards.base import RewardTransform, chain
from rewards.implicit_prm import implicit_prm

# Keys of everything that must not depend on a training seed.
EVALUATION_SEED, DEMONSTRATION_SEED = 2**31 - 2, 2**31 - 3


class World(NamedTuple):
    """The worlds of an experiment: a pure one (``environment``) or a factory of host batches (``host``)."""

    spec: EnvironmentSpec
    environment: Environment | None
    host: Callable[[int], VectorHost] | None


class Parts(NamedTuple):
    """What a configuration stands for: the learner and how its policy starts."""

    agent: Agent
    reward: RewardTransform
    warm_start: Callable[..., Any] | None


def _sokoban(*, time_limit: int, **arguments) -> Environment:
    return TimeLimit(Sokoban(**arguments), time_limit)


PURE_WORLDS: dict[str, Callable[..., Environment]] = {"sokoban": _sokoban, "functional": make_functional}
HOST_WORLDS: dict[str, Callable[..., VectorHost]] = {
    "gymnasium": GymnasiumHost,
    "envpool": EnvPoolHost,
    "boxoban": boxoban_host,
}
REWARDS: dict[str, Callable[..., RewardTransform]] = {
    "implicit_prm": implicit_prm,
    "scale": transforms.scale,
    "clip": transforms.clip,
    "normalise": transforms.normalise,
    "group_filter": transforms.group_filter,
}


def _plain(section: ConfigDict | Mapping) -> dict[str, Any]:
    return section.to_dict() if isinstance(section, ConfigDict) else dict(section)


def _call(factory: Callable, where: str, *positional, **arguments) -> Any:
    """Calls a factory; an argument it refuses becomes a ``UserError`` that says where it stands."""
    try:
        return factory(*positional, **arguments)
    except (ValueError, TypeError, ImportError, FileNotFoundError) as error:
        if isinstance(error, jax.errors.ConcretizationTypeError):
            raise
        raise UserError(f"configuration section {where!r}: {error}") from error


def build_world(config: ConfigDict) -> World:
    """The worlds of ``config.environment``.

    Raises:
      UserError: for an unknown kind, or arguments that the world refuses.
    """
    arguments = _plain(config.environment)
    kind = arguments.pop("kind")
    if kind in PURE_WORLDS:
        environment = _call(PURE_WORLDS[kind], "environment", **arguments)
        return World(environment.spec, environment, None)
    if kind not in HOST_WORLDS:
        raise unknown("environment kind", kind, [*PURE_WORLDS, *HOST_WORLDS])

    def make(num_envs: int) -> VectorHost:
        return _call(HOST_WORLDS[kind], "environment", num_envs=num_envs, **arguments)

    probe = make(1)
    spec = probe.spec
    probe.close()
    return World(spec, None, make)


def with_values(config: ConfigDict, values: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` as nested dictionaries with ``values`` (dotted key to number, traced or not) put in."""
    nested = config.to_dict()
    for key, value in values.items():
        *path, leaf = key.split(".")
        section = nested
        for part in path:
            section = section[part]
        section[leaf] = value
    return nested


def build_credit(sections: Mapping[str, Mapping[str, Any]], whiten: str) -> Credit:
    """The credit of ``config.credit``: per entry ``channel``, ``estimator``, ``weight``, and the estimator's own."""
    entries = {}
    for name, section in sections.items():
        arguments = dict(section)
        channel, estimator = arguments.pop("channel"), arguments.pop("estimator")
        weight = arguments.pop("weight")
        if estimator not in ESTIMATORS:
            raise unknown("estimator", estimator, ESTIMATORS, f"in credit {name!r}")
        entries[name] = Entry(channel, _call(ESTIMATORS[estimator], f"credit.{name}", **arguments), weight)
    return Credit(entries, whiten)


def _learning_rate(section: dict[str, Any], iterations: int) -> Any:
    """``learning_rate``, as a linear schedule to 0 over the run where ``anneal`` is set."""
    rate = section.pop("learning_rate")
    if not section.pop("anneal"):
        return rate
    return optax.linear_schedule(rate, 0.0, iterations * section["epochs"] * section["minibatches"])


def build_parts(config: ConfigDict, spec: EnvironmentSpec, values: Mapping[str, Any] | None = None) -> Parts:
    """The agent and the reward chain of ``config`` on a world of ``spec``.

    Args:
      config: the configuration.
      spec: the world's.
      values: dotted key to number in place of the configuration's; may be traced.

    Raises:
      UserError: if a factory refuses its arguments.
    """
    nested = with_values(config, values or {})
    data = _call(DataSpec, "data", **nested["data"])
    network_config = _call(NetworkConfig, "network", **nested["network"])
    agent_section = dict(nested["agent"])
    agent_section["learning_rate"] = _learning_rate(agent_section, config.iterations)
    credit = build_credit(nested["credit"], agent_section.pop("whiten"))
    known_channels = {
        "env",
        *(f"cost/{name}" for name in spec.costs),
        *(f"objective/{name}" for name in spec.objectives),
    }
    transforms_by_name = {}
    for name, section in nested["rewards"].items():
        arguments = dict(section)
        kind = arguments.pop("kind")
        if kind not in REWARDS:
            raise unknown("reward transform", kind, REWARDS, f"in rewards.{name}")
        factory = REWARDS[kind]
        accepted = inspect.signature(factory).parameters
        context = {"data": data, "network_config": network_config, "continuous": agent_section["continuous"]}
        context = {key: value for key, value in context.items() if key in accepted}
        positional = (spec,) if "spec" in accepted else ()
        transforms_by_name[name] = _call(factory, f"rewards.{name}", *positional, **context, **arguments)
        known_channels.add(arguments.get("channel", name if "spec" in accepted else "env"))
    for name, entry in credit.entries.items():
        if entry.channel not in known_channels:
            raise unknown("reward channel", entry.channel, sorted(known_channels), f"in credit.{name}")
    reward = chain(**transforms_by_name)
    agent = _call(
        policy_gradient, "agent", spec, credit=credit, data=data, network_config=network_config, **agent_section
    )
    return Parts(agent, reward, _warm_start(nested, spec, network_config))


def _warm_start(nested: Mapping[str, Any], spec: EnvironmentSpec, network_config: NetworkConfig):
    section = dict(nested["warm_start"])
    if section.pop("rooms") == 0:
        return None
    policy, distribution = policy_network(spec, network_config, continuous=nested["agent"]["continuous"])
    fit = _call(behaviour_cloning, "warm_start", policy, distribution, **section)

    def warm_start(params, key, demonstrations: Demonstrations):
        cloned, _ = fit(params["policy"], demonstrations, key)
        return params | {"policy": cloned}

    return warm_start


def require_expert(config: ConfigDict, world: World) -> None:
    """Checks that a warm start has an expert to learn from.

    Raises:
      UserError: if the world has no solver.
    """
    rooms = config.warm_start.rooms
    if rooms and not isinstance(getattr(world.environment, "environment", None), Sokoban):
        raise UserError(f"warm_start.rooms={rooms}: only Sokoban has an expert; expected warm_start.rooms=0")


def expert_demonstrations(config: ConfigDict, world: World) -> Demonstrations | None:
    """The solver's solutions of ``config.warm_start.rooms`` rooms, the same for every seed; ``None`` for no warm start.

    Raises:
      UserError: if the world has no solver.
    """
    require_expert(config, world)
    rooms = config.warm_start.rooms
    if rooms == 0:
        return None
    # ``require_expert`` saw that this is a time limit around Sokoban.
    environment: Any = world.environment
    keys = jax.random.split(jax.random.key(DEMONSTRATION_SEED), rooms)
    observation, action = demonstrations(environment.environment, keys)
    return Demonstrations(jnp.asarray(observation), jnp.asarray(np.asarray(action), jnp.int32))
