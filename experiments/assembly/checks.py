"""What is checked in a configuration before any work starts."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.assembly import registry
from experiments.assembly.build import (
    EnvironmentSource,
    build_annotation,
    build_environment,
    build_parts,
    require_expert,
)
from experiments.assembly.evaluators import evaluation_metrics
from experiments.assembly.ranges import validate
from experiments.errors import UserError, unknown


def checked_environment(config: ConfigDict) -> EnvironmentSource:
    """The environment of ``config``, once everything else that ``config`` describes has been built on it as well.

    Raises:
      UserError: for a configuration that cannot be run, before anything is written or computed.
    """
    validate(config)
    _require_countable(config)
    source = build_environment(config)
    build_parts(config, source.spec)
    build_annotation(config, source)
    require_expert(config, source)
    measured = evaluation_metrics(config, source)
    if config.evaluation.metric not in measured:
        raise unknown("metric", config.evaluation.metric, measured, "in evaluation.metric")
    return source


def _require_countable(config: ConfigDict) -> None:
    """Checks that a counter of 32 bits holds the environment steps between two evaluations; those of a whole run are
    counted outside of compiled programs and have no limit."""
    steps = min(config.evaluate_every, config.iterations) * config.data.length * config.data.batch
    if steps > registry.LARGEST_INTEGER:
        raise UserError(
            f"evaluate_every={config.evaluate_every}, data.length={config.data.length}, data.batch="
            f"{config.data.batch}: {steps:,} environment steps of a seed between two evaluations, expected at most "
            f"{registry.LARGEST_INTEGER:,}"
        )
