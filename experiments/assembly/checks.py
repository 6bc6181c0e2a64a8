"""What is checked of a configuration before any work starts."""

from __future__ import annotations

from ml_collections import ConfigDict

from experiments.assembly.build import (
    EnvironmentSource,
    build_annotation,
    build_environment,
    build_parts,
    require_expert,
)
from experiments.assembly.evaluators import evaluation_metrics
from experiments.assembly.ranges import validate
from experiments.errors import unknown


def checked_environment(config: ConfigDict) -> EnvironmentSource:
    """The environment of ``config``, once everything else that ``config`` describes has been built on it as well.

    Raises:
      UserError: for a configuration that cannot be run, before anything is written or computed.
    """
    validate(config)
    source = build_environment(config)
    build_parts(config, source.spec)
    build_annotation(config, source)
    require_expert(config, source)
    measured = evaluation_metrics(config, source)
    if config.evaluation.metric not in measured:
        raise unknown("metric", config.evaluation.metric, measured, "in evaluation.metric")
    return source
