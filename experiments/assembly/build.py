"""From a configuration to the objects of a run.

Every section of a configuration is the keyword arguments of one factory, so that what can be configured is what the
factory documents. Values may be traced: ``build`` is called inside jit with the traced hyper-parameters of a sweep
in place of the configuration's numbers, which is why no factory branches on a number.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agents.actor_critic import policy_network
from agents.base import Agent, DataSpec
from agents.behaviour_cloning import Demonstrations, behaviour_cloning
from agents.catalogue import FAMILIES, Family
from agents.channels import channel_weights
from agents.credit import Credit, Entry
from agents.estimators import ESTIMATORS, Estimator
from agents.functionals import FUNCTIONALS, Functional, expectation
from agents.networks.base import Head, Network, NetworkBuilder, checked_network
from agents.networks.catalogue import DEFAULT_NETWORK, NETWORKS
from agents.networks.sequence import NetworkConfig
from agents.optimisers import SCHEDULE_KEYS, learning_rate_schedule
from envs.base import Environment, EnvironmentSpec, VectorHost
from envs.catalogue import ENVIRONMENTS
from envs.hosts.wrappers import WRAPPERS, wrapper
from envs.keys import seed_key
from envs.stock import StockAugmented, StockHost
from envs.wrappers import TimeLimit, demonstrator
from experiments.annotation.catalogue import ANNOTATORS
from experiments.annotation.service import AnnotationService
from experiments.assembly.factories import arguments_of, call, require_accepted, wrong_result
from experiments.assembly.kinds import import_module, is_import_path, resolve
from experiments.assembly.overrides import LARGEST_INTEGER
from experiments.assembly.reward_chain import (
    ACTION_KEYS,
    require_read_channels,
    require_weighed,
    reward_chain,
    reward_kinds,
    unread,
    written_channels,
)
from experiments.assembly.sections import ANNOTATION_KEYS, is_host
from experiments.errors import UserError, unknown
from experiments.evaluators.stock_objectives import JUDGED, require_units_of_stock
from rewards.base import RewardTransform
from rewards.catalogue import INTRINSIC_CREDIT, Kind

# Seeds of key streams that have nothing to do with training's. A run is evaluated in the first, which chooses its best
# checkpoint; a finished checkpoint is judged in the last. Both fold in the member's seed, see ``training.keys``.
EVALUATION_SEED, DEMONSTRATION_SEED, TEST_SEED = 2**31 - 2, 2**31 - 3, 2**31 - 2 - 2**20


class EnvironmentSource(NamedTuple):
    """The environments of an experiment: a pure one (``pure``), or a factory of host batches (``host``), which takes
    their number and, to have them drawn, ``render`` (see ``GymnasiumHost``)."""

    spec: EnvironmentSpec
    pure: Environment | None
    host: Callable[..., VectorHost] | None


class Parts(NamedTuple):
    """What a configuration stands for: the learner and how its policy starts."""

    agent: Agent
    reward: RewardTransform
    warm_start: Callable[..., Any] | None


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
    factory = resolve(arguments.pop("kind", None), ENVIRONMENTS, "environment kind").factory
    stock = arguments.pop("stock", None)
    identifier = arguments.get("environment_id", "")
    if is_import_path(identifier):
        # gymnasium imports the module, too, but looks for it where Python does and not in the working directory.
        import_module(identifier.partition(":")[0], f"environment.environment_id={identifier!r}")
    if "wrappers" in arguments:
        arguments["wrappers"] = _wrappers(arguments["wrappers"] or {})
    if stock is not None:
        # One number in two places would be two numbers one day: the stock grows by the agent's discount.
        stock = dict(stock) | {"discount": config.agent.discount}
    if not is_host(factory):
        environment = _pure_environment(factory, arguments)
        if stock is not None:
            environment = call(StockAugmented, "environment.stock", environment, **stock)
        return EnvironmentSource(environment.spec, environment, None)

    def make(num_envs: int, render: str | None = None) -> VectorHost:
        drawn = {} if render is None else {"render": render}
        if drawn and "render" not in inspect.signature(factory).parameters:
            raise UserError(f"environment.kind={config.environment.kind!r} cannot be drawn: it takes no 'render'")
        host = call(factory, "environment", num_envs=num_envs, **drawn, **arguments)
        return host if stock is None else call(StockHost, "environment.stock", host, **stock)

    probe = make(1)
    spec = probe.spec
    probe.close()
    return EnvironmentSource(spec, None, make)


def _wrappers(sections: Mapping[str, Mapping[str, Any]]) -> tuple[Callable[..., gymnasium.Env], ...]:
    """What wraps each environment of a host, in the alphabetical order of the names."""
    made = []
    for name, section in sorted(sections.items()):
        where = f"environment.wrappers.{name}"
        factory = resolve(section.get("kind"), WRAPPERS, "wrapper", f"in {where}").factory
        require_accepted(factory, where, 1, arguments_of(section))
        made.append(call(wrapper, where, name, factory, arguments_of(section)))
    return tuple(made)


def _pure_environment(factory: Callable[..., Environment], arguments: dict[str, Any]) -> Environment:
    """A pure environment under the ``time_limit`` of its section.

    A factory that takes ``time_limit`` gets it. Any other environment is wrapped; without the key it keeps a limit of
    its own, and one that has none is refused: where nothing ends an episode, that has to be asked for (``None``).
    """
    limit = arguments.get("time_limit")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise UserError(f"configuration section 'environment': time_limit={limit!r}: expected an integer, at least 1")
    wrapped = "time_limit" not in inspect.signature(factory).parameters
    own = {key: value for key, value in arguments.items() if not (wrapped and key == "time_limit")}
    environment = call(factory, "environment", **own)
    if not isinstance(environment, Environment):
        expected = "an Environment (spec, reset, step); a factory of host environments takes num_envs"
        raise wrong_result("environment", factory.__name__, environment, expected)
    if wrapped and limit is not None:
        return TimeLimit(environment, limit)
    if "time_limit" not in arguments and environment.spec.max_episode_steps is None:
        raise UserError(
            "configuration section 'environment' lacks 'time_limit': the environment has no limit of its own; expected "
            "a number of steps, or none for episodes without a limit"
        )
    return environment


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
        channel, weight = arguments.pop("channel", "env"), arguments.pop("weight", 1.0)
        estimator = arguments.pop("estimator", None)
        factory = resolve(estimator, ESTIMATORS, "estimator", f"in credit {name!r}").factory
        made = call(factory, f"credit.{name}", **arguments)
        if not isinstance(made, Estimator):
            raise wrong_result(f"credit.{name}", estimator, made, "an Estimator")
        entries[name] = Entry(channel, made, weight)
    return Credit(entries, whiten)


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
    context = {
        "data": call(DataSpec, "data", **nested["data"]),
        "network_config": _network_builder(nested["network"]),
    }
    kinds = reward_kinds(nested)
    reward, written = reward_chain(nested, kinds, spec, context)
    agent = _agent(nested, kinds, spec, written, context)
    return Parts(agent, reward, _warm_start(nested, spec, context["network_config"]))


@dataclass(frozen=True)
class OtherNetwork:
    """A builder of another kind than ``sequence``: what it builds is checked, and what is refused names the section."""

    kind: str
    build: NetworkBuilder

    def __call__(self, observation_space: gymnasium.Space, heads: Mapping[str, Head]) -> Network:
        return call(checked_network, "network", self.build, observation_space, heads)

    def __str__(self) -> str:
        return f"network.kind={self.kind!r}"


def _network_builder(section: Mapping[str, Any]) -> NetworkBuilder:
    """What builds the networks of the section ``network``."""
    kind = section.get("kind", DEFAULT_NETWORK)
    made = call(resolve(kind, NETWORKS, "network kind").factory, "network", **arguments_of(section))
    if isinstance(made, NetworkConfig):
        return made
    if not callable(made) or isinstance(made, Network):
        raise wrong_result("network", kind, made, "a function (observation_space, heads) -> Network")
    return OtherNetwork(kind, made)


def _agent(nested, kinds: Mapping[str, Kind], spec, written: list[str], context: Mapping[str, Any]) -> Agent:
    """The agent of ``config.agent``; what its factory takes besides the section is built from other sections."""
    section = dict(nested["agent"])
    family: Family = resolve(section.pop("family", None), FAMILIES, "agent family", record=Family)
    parameters = inspect.signature(family.factory).parameters
    for name in sorted({name for other in FAMILIES.values() for name in other.sections} - {*family.sections}):
        if nested.get(name):
            raise UserError(
                f"section {name}: agent.family={nested['agent']['family']!r} does not read it; expected no such section"
            )
    supplied = {key: value for key, value in context.items() if key in parameters}
    if "credit" in parameters:
        supplied["credit"] = _credit(nested, kinds, written, section.pop("whiten", "none"))
        require_weighed(nested, kinds, tuple(supplied["credit"].entries), "credit.{}")
    else:
        require_weighed(nested, kinds, tuple(channel_weights(section.get("channels"))), "agent.channels.{}")
        require_read_channels(nested, kinds, written, channel_weights(section.get("channels")))
    if "functional" in parameters:
        functional = build_functional(section.pop("functional", {"kind": "mean"}))
        supplied["functional"] = functional
        _require_units(nested, functional)
    _schedule(family, section, nested["iterations"])
    return call(family.factory, "agent", spec, **supplied, **section)


def _credit(nested, kinds: Mapping[str, Kind], written: list[str], whiten: str) -> Credit:
    """The credit of ``config.credit``, with an entry for each intrinsic reward that no entry reads."""
    sections = dict(nested.get("credit", {}))
    for name, channel in unread(nested, kinds, {entry.get("channel", "env") for entry in sections.values()}).items():
        if not kinds[name].intrinsic or name in sections:
            raise UserError(
                f"rewards.{name}: nothing reads its channel {channel!r}: expected an entry of credit with "
                f"channel={channel!r}"
            )
        sections[name] = {"channel": channel, **INTRINSIC_CREDIT}
    if not sections:
        raise UserError("section credit has no entry: nothing would be learned; expected one, such as credit.env")
    credit = build_credit(sections, whiten)
    for name, entry in credit.entries.items():
        if entry.channel not in written:
            raise unknown("reward channel", entry.channel, written, f"in credit.{name}")
    return credit


def _require_units(nested, functional: Functional | None) -> None:
    """Refuses an agent that adds returns of other units than the stock's to the stock."""
    stock = nested["environment"].get("stock")
    if stock is None or functional is None:
        return
    channel = stock.get("channels", JUDGED)
    rewards, written = nested["rewards"], written_channels(nested)
    changes = {name: rewards[name] for name in written if channel in written[name]}
    require_units_of_stock(nested["agent"], channel, changes)


def _schedule(family: Family, section: dict[str, Any], iterations: int) -> None:
    """Replaces ``learning_rate`` by the function of the optimiser's steps that ``schedule`` and ``warmup`` say."""
    counts = {name: section[name] for name in family.optimiser_steps if name in section}
    steps = iterations * math.prod(counts.values())
    if steps > LARGEST_INTEGER:
        shown = ", ".join(f"agent.{name}={count}" for name, count in counts.items())
        raise UserError(
            f"iterations={iterations}, {shown}: a run of {steps:,} gradient steps, expected at most {LARGEST_INTEGER:,}"
        )
    settings = {name: section.pop(name) for name in SCHEDULE_KEYS if name in section}
    if "learning_rate" in section:
        section["learning_rate"] = call(
            learning_rate_schedule, "agent", section["learning_rate"], **settings, optimiser_steps=steps
        )


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
    asking = {name: kind.question for name, kind in reward_kinds(nested).items() if kind.question is not None}
    if not asking and "annotator" not in nested:
        return None
    if len(asking) != 1 or "annotator" not in nested:
        raise UserError(
            f"rewards that learn from an annotator: {', '.join(asking) or 'none'}; section annotator: "
            f"{'there' if 'annotator' in nested else 'none'}: expected one of each"
        )
    [(name, question)] = asking.items()
    if source.pure is not None:
        raise UserError(
            f"rewards.{name}: a pure environment has no messages; expected a host environment with messages"
        )
    size, capacity = call(question, f"rewards.{name}", **arguments_of(nested["rewards"][name]))
    section = nested["annotator"]
    factory = resolve(section.get("kind"), ANNOTATORS, "annotator", "in annotator.kind").factory
    own = {key: section[key] for key in ANNOTATION_KEYS if key in section}
    annotator = call(
        factory, "annotator", **arguments_of(section, *ANNOTATION_KEYS), seed=seed, size=size, folder=folder
    )
    settings = {"length": source.spec.message_length, "size": size, "capacity": capacity, "seed": seed}
    return call(AnnotationService, "annotator", annotator, **settings, **own)


def build_functional(section: Mapping[str, Any], where: str = "agent.functional") -> Functional | None:
    """The objective functional of a section; kind ``mean`` is none: the mean needs no functional.

    Raises:
      UserError: for an unknown kind, or arguments that it refuses.
    """
    kind = section.get("kind")
    if kind == "mean":
        return None
    factory = resolve(kind, {"mean": expectation, **FUNCTIONALS}, "functional", f"in {where}").factory
    return call(factory, where, **arguments_of(section))


def _warm_start(nested: Mapping[str, Any], spec: EnvironmentSpec, network_config: NetworkBuilder):
    section = dict(nested.get("warm_start", {}))
    if section.pop("demonstrations", 0) == 0:
        return None
    policy, distribution = policy_network(
        spec, network_config, **{name: nested["agent"][name] for name in ACTION_KEYS if name in nested["agent"]}
    )
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
    observation, action = expert.demonstrations(jax.random.split(seed_key(DEMONSTRATION_SEED), wanted))
    return Demonstrations(jnp.asarray(observation), jnp.asarray(action, jnp.int32))


def _demonstrations(config: ConfigDict) -> int:
    """From how many start states an expert is shown; a family without warm start has no such section."""
    return config.warm_start.demonstrations if "warm_start" in config else 0
