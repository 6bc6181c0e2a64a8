"""From a configuration to the objects of a run.

Every section of a configuration is the keyword arguments of one factory, so that what can be configured is what the
factory documents. Values may be traced: ``build`` is called inside jit with the traced hyper-parameters of a sweep
in place of the configuration's numbers, which is why no factory branches on a number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from agents.actor_critic import policy_network
from agents.base import Agent, DataSpec
from agents.behaviour_cloning import Demonstrations, behaviour_cloning
from agents.credit import Credit, Entry
from agents.estimators import ESTIMATORS
from agents.functionals import FUNCTIONALS, Functional
from agents.networks import NetworkConfig
from agents.policy_gradient import policy_gradient
from agents.value_based import value_based
from envs.base import Environment, EnvironmentSpec, VectorHost
from envs.hosts.atari import atari_host
from envs.hosts.envpool import EnvPoolHost, boxoban_host
from envs.hosts.gymnasium import GymnasiumHost
from envs.hosts.minigrid import MiniGridHost
from envs.native.breakout import Breakout
from envs.native.functional import make_functional
from envs.native.maze import Maze
from envs.native.noisy_line import noisy_line
from envs.native.sokoban import Sokoban
from envs.native.tabular import TabularEnvironment, from_gymnasium, gridworld
from envs.stock import StockAugmented, StockHost
from envs.wrappers import TimeLimit, demonstrator
from experiments.annotation.http import Http
from experiments.annotation.service import AnnotationService, Annotator, Scripted
from experiments.assembly.factories import call
from experiments.assembly.registry import LARGEST_INTEGER
from experiments.errors import UserError, unknown
from experiments.evaluators.stock_objectives import JUDGED, require_units_of_stock
from rewards.base import RewardTransform, chain
from rewards.curiosity.count_bonus import count_bonus
from rewards.curiosity.icm import icm
from rewards.curiosity.latent_prediction import byol_explore, byol_hindsight
from rewards.curiosity.rnd import rnd
from rewards.feedback.language_feedback import QUESTION_SIZES, language_feedback
from rewards.process.implicit_prm import implicit_prm
from rewards.shaping import transforms

# Seeds of key streams that have nothing to do with training's. A run is evaluated in the first, which chooses its best
# checkpoint; a finished checkpoint is judged in the last. Both fold in the member's seed, see ``training.keys``.
EVALUATION_SEED, DEMONSTRATION_SEED, TEST_SEED = 2**31 - 2, 2**31 - 3, 2**31 - 2 - 2**20


class EnvironmentSource(NamedTuple):
    """The environments of an experiment: a pure one (``pure``) or a factory of host batches (``host``)."""

    spec: EnvironmentSpec
    pure: Environment | None
    host: Callable[[int], VectorHost] | None


class Parts(NamedTuple):
    """What a configuration stands for: the learner and how its policy starts."""

    agent: Agent
    reward: RewardTransform
    warm_start: Callable[..., Any] | None


def _limited(environment: Environment, time_limit: int) -> Environment:
    """``environment`` under the time limit of its section."""
    if isinstance(time_limit, bool) or not isinstance(time_limit, int) or time_limit < 1:
        raise ValueError(f"time_limit={time_limit!r}: expected an integer, at least 1")
    return TimeLimit(environment, time_limit)


def _sokoban(*, time_limit: int, **arguments) -> Environment:
    return _limited(call(Sokoban, "environment", **arguments), time_limit)


def _breakout(*, time_limit: int, **arguments) -> Environment:
    return _limited(call(Breakout, "environment", **arguments), time_limit)


def _gridworld(*, layout: str | tuple[str, ...], slip: float, time_limit: int) -> Environment:
    return _limited(TabularEnvironment(gridworld(layout, slip=slip)), time_limit)


def _maze(*, time_limit: int, **arguments) -> Environment:
    return _limited(call(Maze, "environment", **arguments), time_limit)


def _noisy_line(*, time_limit: int, observation: str = "index", **arguments) -> Environment:
    return _limited(TabularEnvironment(call(noisy_line, "environment", **arguments), observation), time_limit)


def _gymnasium_table(*, environment_id: str, time_limit: int | None = None, **parameters) -> Environment:
    model = from_gymnasium(environment_id, **parameters)
    limit = model.horizon if time_limit is None else time_limit
    source = TabularEnvironment(model)
    return source if limit is None else _limited(source, limit)


PURE_ENVIRONMENTS: dict[str, Callable[..., Environment]] = {
    "sokoban": _sokoban,
    "breakout": _breakout,
    "functional": make_functional,
    "gridworld": _gridworld,
    "gymnasium_table": _gymnasium_table,
    "maze": _maze,
    "noisy_line": _noisy_line,
}
HOST_ENVIRONMENTS: dict[str, Callable[..., VectorHost]] = {
    "gymnasium": GymnasiumHost,
    "envpool": EnvPoolHost,
    "boxoban": boxoban_host,
    "minigrid": MiniGridHost,
    "atari": atari_host,
}
REWARDS: dict[str, Callable[..., RewardTransform]] = {
    "implicit_prm": implicit_prm,
    "count_bonus": count_bonus,
    "rnd": rnd,
    "icm": icm,
    "byol_explore": byol_explore,
    "byol_hindsight": byol_hindsight,
    "language_feedback": language_feedback,
    "scale": transforms.scale,
    "clip": transforms.clip,
    "normalise": transforms.normalise,
    "group_filter": transforms.group_filter,
}
# These read their channel, which has to be there; the others write it.
READERS = ("scale", "clip", "normalise", "group_filter")

# Rewards that the agent makes for itself, and how one is credited where no entry of ``credit`` reads its channel: by a
# critic that is not episodic, because what the next episode may still find is worth something at the end of this one.
INTRINSIC = ("count_bonus", "rnd", "icm", "byol_explore", "byol_hindsight")
INTRINSIC_CREDIT = {"estimator": "gae", "weight": 1.0, "discount": 0.99, "gae_lambda": 0.95, "episodic": False}

ANNOTATORS: dict[str, Callable[..., Annotator]] = {"scripted": Scripted, "http": Http}


def _plain(section: ConfigDict | Mapping) -> dict[str, Any]:
    return section.to_dict() if isinstance(section, ConfigDict) else dict(section)


def builds_environment(config: ConfigDict, key: str) -> bool:
    """Whether the environment is built from ``key``: of the section environment, or the discount by which its stock
    grows."""
    stocked = config.environment.get("stock") is not None
    return key.startswith("environment.") or (stocked and key == "agent.discount")


def build_environment(config: ConfigDict) -> EnvironmentSource:
    """The environments of ``config.environment``.

    Raises:
      UserError: for an unknown kind, or arguments that the environment refuses.
    """
    arguments = _plain(config.environment)
    kind = arguments.pop("kind", None)
    stock = arguments.pop("stock", None)
    if stock is not None:
        # One number in two places would be two numbers one day: the stock grows by the agent's discount.
        stock = dict(stock) | {"discount": config.agent.discount}
    if kind in PURE_ENVIRONMENTS:
        environment = call(PURE_ENVIRONMENTS[kind], "environment", **arguments)
        if stock is not None:
            environment = call(StockAugmented, "environment.stock", environment, **stock)
        return EnvironmentSource(environment.spec, environment, None)
    if kind not in HOST_ENVIRONMENTS:
        raise unknown("environment kind", kind, [*PURE_ENVIRONMENTS, *HOST_ENVIRONMENTS])

    def make(num_envs: int) -> VectorHost:
        host = call(HOST_ENVIRONMENTS[kind], "environment", num_envs=num_envs, **arguments)
        return host if stock is None else call(StockHost, "environment.stock", host, **stock)

    probe = make(1)
    spec = probe.spec
    probe.close()
    return EnvironmentSource(spec, None, make)


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
        entries[name] = Entry(channel, call(ESTIMATORS[estimator], f"credit.{name}", **arguments), weight)
    return Credit(entries, whiten)


def _learning_rate(section: dict[str, Any], iterations: int) -> Any:
    """``learning_rate``, as a linear schedule to 0 over the run where ``anneal`` is set."""
    rate = section.pop("learning_rate")
    if not section.pop("anneal"):
        return rate
    return optax.linear_schedule(rate, 0.0, iterations * section["epochs"] * section["minibatches"])


def build_parts(config: ConfigDict, spec: EnvironmentSpec, values: Mapping[str, Any] | None = None) -> Parts:
    """The agent and the reward chain of ``config`` on an environment of ``spec``.

    Args:
      config: the configuration.
      spec: the environment's.
      values: dotted key to number in place of the configuration's; may be traced.

    Raises:
      UserError: if a factory refuses its arguments.
    """
    nested = with_values(config, values or {})
    data = call(DataSpec, "data", **nested["data"])
    network_config = call(NetworkConfig, "network", **nested["network"])
    section = dict(nested["agent"])
    family = section.pop("family", None)
    if family not in FAMILIES:
        raise unknown("agent family", family, FAMILIES)
    lacking = [f"agent.{key}" for key in FAMILY_KEYS[family] if key not in section]
    if lacking:
        fitting = [name for name, keys in FAMILY_KEYS.items() if all(key in section for key in keys)]
        raise UserError(
            f"agent.family={family!r} needs {', '.join(lacking)}, which this experiment has not: expected "
            f"{' or '.join(map(repr, fitting)) or 'an experiment of that family'}"
        )
    reward, channels = _rewards(nested, spec, data, network_config)
    context = {"data": data, "network_config": network_config}
    agent = FAMILIES[family](config, nested, spec, section, channels, context)
    return Parts(agent, reward, _warm_start(nested, spec, network_config))


def _rewards(nested, spec, data, network_config) -> tuple[RewardTransform, list[str]]:
    """The reward chain, and the channels that there are after it."""
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
        context = {"data": data, "network_config": network_config, "continuous": nested["agent"].get("continuous")}
        context = {key: value for key, value in context.items() if key in accepted}
        positional = (spec,) if "spec" in accepted else ()
        transforms_by_name[name] = call(factory, f"rewards.{name}", *positional, **context, **arguments)
        channel = written_channel(section)
        if kind in READERS and channel not in known_channels:
            raise unknown("reward channel", channel, sorted(known_channels), f"in rewards.{name}")
        if channel is not None:
            known_channels.add(channel)
    return chain(**transforms_by_name), sorted(known_channels)


def written_channel(section: Mapping[str, Any]) -> str | None:
    """The channel that a reward transform of a known kind writes, or reads where it writes none; ``None`` where it
    takes no name of a channel."""
    parameter = inspect.signature(REWARDS[section["kind"]]).parameters.get("channel")
    return None if parameter is None else section.get("channel", parameter.default)


def build_annotation(
    config: ConfigDict, source: EnvironmentSource, *, seed: int = 0, folder: Path | None = None
) -> AnnotationService | None:
    """What passes between the learner and the annotator of ``config.annotator``, not started; ``None`` where there is
    no such section.

    Its ``labels``, ``pairs`` and ``recent`` are the service's, all other keys the annotator's. Language feedback and
    an annotator are of no use without each other.

    Args:
      config, environment: what is trained, on host environments: a pure one would not wait for a rollout's messages.
      seed: the member's.
      folder: for the annotator's files.

    Raises:
      UserError: for the one without the other, a pure environment, an unknown kind, or arguments that are refused.
    """
    nested = config.to_dict()
    readers = [name for name, section in nested["rewards"].items() if section["kind"] == "language_feedback"]
    if not readers and "annotator" not in nested:
        return None
    if len(readers) != 1 or "annotator" not in nested:
        raise UserError(
            f"rewards of kind 'language_feedback': {', '.join(readers) or 'none'}; section annotator: "
            f"{'there' if 'annotator' in nested else 'none'}: expected one of each"
        )
    if source.pure is not None:
        raise UserError(
            f"rewards.{readers[0]}: a pure environment has nobody to ask; expected a host environment with messages"
        )
    defaults = inspect.signature(language_feedback).parameters
    model, capacity = (
        nested["rewards"][readers[0]].get(name, defaults[name].default) for name in ("model", "capacity")
    )
    arguments = dict(nested["annotator"])
    kind = arguments.pop("kind")
    if kind not in ANNOTATORS:
        raise unknown("annotator", kind, ANNOTATORS, "in annotator.kind")
    own = {name: arguments.pop(name) for name in ("labels", "pairs", "recent") if name in arguments}
    size = QUESTION_SIZES[model]
    annotator = call(ANNOTATORS[kind], "annotator", **arguments, seed=seed, size=size, folder=folder)
    settings = {"length": source.spec.message_length, "size": size, "capacity": capacity, "seed": seed}
    return call(AnnotationService, "annotator", annotator, **settings, **own)


def _unread(nested: Mapping[str, Any], read: Iterable[str]) -> list[tuple[str, str | None]]:
    """The transforms, each with its channel, that write a channel besides the environment's which is none of
    ``read``."""
    channels = {name: written_channel(section) for name, section in nested["rewards"].items()}
    known = {None, "env", *read}
    return [(name, channel) for name, channel in channels.items() if channel not in known]


def _policy_gradient(config, nested, spec, section, channels, context) -> Agent:
    steps = config.iterations * section["epochs"] * section["minibatches"]
    if steps > LARGEST_INTEGER:
        raise UserError(
            f"iterations={config.iterations}, agent.epochs={section['epochs']}, agent.minibatches="
            f"{section['minibatches']}: a run of {steps:,} gradient steps, expected at most {LARGEST_INTEGER:,}"
        )
    section["learning_rate"] = _learning_rate(section, config.iterations)
    sections = dict(nested["credit"])
    for name, channel in _unread(nested, [entry["channel"] for entry in sections.values()]):
        if nested["rewards"][name]["kind"] not in INTRINSIC or name in sections:
            raise UserError(
                f"rewards.{name}: nothing reads its channel {channel!r}: expected an entry of credit with "
                f"channel={channel!r}"
            )
        sections[name] = {"channel": channel, **INTRINSIC_CREDIT}
    credit = build_credit(sections, section.pop("whiten"))
    for name, entry in credit.entries.items():
        if entry.channel not in channels:
            raise unknown("reward channel", entry.channel, channels, f"in credit.{name}")
    return call(policy_gradient, "agent", spec, credit=credit, **context, **section)


def build_functional(section: Mapping[str, Any], where: str = "agent.functional") -> Functional | None:
    """The objective functional of a section; kind ``mean`` is none: the mean needs no functional.

    Raises:
      UserError: for an unknown kind, or arguments that it refuses.
    """
    arguments = dict(section)
    kind = arguments.pop("kind")
    if kind == "mean":
        return None
    if kind not in FUNCTIONALS:
        raise unknown("functional", kind, ["mean", *FUNCTIONALS], f"in {where}")
    return call(FUNCTIONALS[kind], where, **arguments)


def _value_based(config, nested, spec, section, channels, context) -> Agent:
    del config
    for name, channel in _unread(nested, section["channels"]):
        raise UserError(
            f"rewards.{name}: nothing reads its channel {channel!r}: expected its weight in agent.channels.{channel}"
        )
    for name in section["channels"]:
        if name not in channels:
            raise unknown("reward channel", name, channels, "in agent.channels")
    functional = build_functional(section.pop("functional"))
    stock = nested["environment"].get("stock")
    if stock is not None and functional is not None:
        channel = stock.get("channels", JUDGED)
        changes = {name: each for name, each in nested["rewards"].items() if written_channel(each) == channel}
        require_units_of_stock(nested["agent"], channel, changes)
    return call(value_based, "agent", spec, functional=functional, **context, **section)


FAMILIES: dict[str, Callable[..., Agent]] = {"policy_gradient": _policy_gradient, "value_based": _value_based}
# What is read of the section agent before its factory sees it, by which it is of the one family or of the other.
FAMILY_KEYS = {
    "policy_gradient": ("learning_rate", "anneal", "whiten", "epochs", "minibatches"),
    "value_based": ("channels", "functional"),
}


def _warm_start(nested: Mapping[str, Any], spec: EnvironmentSpec, network_config: NetworkConfig):
    section = dict(nested.get("warm_start", {}))
    if section.pop("demonstrations", 0) == 0:
        return None
    policy, distribution = policy_network(spec, network_config, continuous=nested["agent"]["continuous"])
    fit = call(behaviour_cloning, "warm_start", policy, distribution, **section)

    def warm_start(params, key, demonstrations: Demonstrations):
        cloned, _ = fit(params["policy"], demonstrations, key)
        return params | {"policy": cloned}

    return warm_start


def require_expert(config: ConfigDict, source: EnvironmentSource) -> None:
    """Checks that a warm start has an expert to learn from.

    Raises:
      UserError: if the environment is no ``envs.base.Demonstrator``.
    """
    wanted = _demonstrations(config)
    if wanted and demonstrator(source.pure) is None:
        raise UserError(
            f"warm_start.demonstrations={wanted}: environment.kind={config.environment.kind!r} has no expert; expected "
            "warm_start.demonstrations=0, or an environment that offers demonstrations, such as 'sokoban'"
        )


def expert_demonstrations(config: ConfigDict, source: EnvironmentSource) -> Demonstrations | None:
    """An expert's transitions from ``config.warm_start.demonstrations`` start states, the same for every seed; ``None``
    for no warm start.

    Raises:
      UserError: if the environment is no ``envs.base.Demonstrator``.
    """
    require_expert(config, source)
    expert, wanted = demonstrator(source.pure), _demonstrations(config)
    if expert is None or wanted == 0:
        return None
    observation, action = expert.demonstrations(jax.random.split(jax.random.key(DEMONSTRATION_SEED), wanted))
    return Demonstrations(jnp.asarray(observation), jnp.asarray(action, jnp.int32))


def _demonstrations(config: ConfigDict) -> int:
    """From how many start states an expert is shown; a family without warm start has no such section."""
    return config.warm_start.demonstrations if "warm_start" in config else 0
