"""From ``config.evaluators`` to the evaluators of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from agents.base import Agent
from experiments.assembly.build import EnvironmentSource, build_parts, with_values
from experiments.assembly.factories import call
from experiments.assembly.kinds import resolve
from experiments.assembly.reward_chain import written_channels
from experiments.evaluators.base import Context, Episodes, Evaluator, HostEpisodes, PureEpisodes, metric_names
from experiments.evaluators.catalogue import EVALUATORS


def evaluation_context(
    config: ConfigDict,
    source: EnvironmentSource,
    agent: Agent,
    episodes: Episodes,
    values: Mapping[str, Any] | None = None,
) -> Context:
    """What the evaluators of ``config`` are made from; arguments as in ``build_evaluators``."""
    nested = with_values(config, values or {})
    return Context(source.spec, source.pure, agent, episodes, nested, written_channels(nested))


def build_evaluators(
    config: ConfigDict,
    source: EnvironmentSource,
    agent: Agent,
    episodes: Episodes,
    values: Mapping[str, Any] | None = None,
) -> dict[str, Evaluator]:
    """The evaluators of ``config.evaluators`` by name, in the order of the configuration.

    Args:
      config: the configuration.
      source: of the environments.
      agent: that is evaluated.
      episodes: of this agent in these environments.
      values: dotted key to number in place of the configuration's; may be traced.

    Raises:
      UserError: for an unknown kind, or arguments that an evaluator refuses.
    """
    context = evaluation_context(config, source, agent, episodes, values)
    evaluators = {}
    for name, section in context.sections["evaluators"].items():
        arguments = dict(section)
        factory = resolve(arguments.pop("kind", None), EVALUATORS, "evaluator", f"in evaluators.{name}").factory
        evaluators[name] = call(factory, f"evaluators.{name}", context, **arguments)
    return evaluators


def evaluation_metrics(config: ConfigDict, source: EnvironmentSource) -> list[str]:
    """The names of what ``config.evaluators`` report in the environments of ``source``; nothing is run.

    Raises:
      UserError: see ``build_evaluators``.
    """
    agent = build_parts(config, source.spec).agent
    episodes: Episodes
    if source.pure is not None:
        episodes = PureEpisodes(source.pure, agent)
    else:
        assert source.host is not None
        episodes = HostEpisodes(source.host, agent, agent.act)
    return metric_names(build_evaluators(config, source, agent, episodes))
