"""What is checked in a configuration before any work starts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from ml_collections import ConfigDict

from envs.base import Observation, ObservationRangeError, PyTree, TimeStep, observation_template
from envs.keys import seed_key
from envs.rollout import bounded_action
from envs.spaces import leaves, narrowed
from experiments.assembly import registry
from experiments.assembly.build import (
    EnvironmentSource,
    build_annotation,
    build_environment,
    build_parts,
    require_expert,
)
from experiments.assembly.cameras import cameras
from experiments.assembly.evaluators import evaluation_metrics
from experiments.assembly.kinds import broken
from experiments.assembly.ranges import validate
from experiments.errors import UserError, unknown

DISCRETE = (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


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
    cameras(config, source, {})
    return source


def require_observations(config: ConfigDict, source: EnvironmentSource) -> None:
    """Checks a reset and a step of a pure environment against its spec; inside jit, it could refuse nothing later on.

    Shapes are only traced. Where a part of the observation is discrete, its values are computed, too: a network would
    see nothing but zeros for a value outside of its space. Host environments check all that they return themselves.

    Raises:
      UserError: for a reset or step that fails; for an observation of another structure or shape, or outside of its
        space; for a reward or an end that is not one number; for costs or objectives of other names.
    """
    environment = source.pure
    if environment is None:
        return
    spec, name = environment.spec, f"environment.kind={config.environment.kind!r}"
    action = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), observation_template(spec.action_space))

    def observed(key: jax.Array) -> tuple[Observation, TimeStep]:
        state, observation = environment.reset(key)
        return observation, environment.step(key, state, bounded_action(spec.action_space, action))[1]

    try:
        first, step = jax.eval_shape(observed, seed_key(0))
    # Somebody else's environment may fail in any way.
    except Exception as error:
        raise UserError(f"{name}: reset or step fails: {broken(error)}") from error
    expected = _shapes(spec.observation_template())
    for what, observation in (
        ("observation of reset", first),
        ("observation of step", step.observation),
        ("final_observation", step.final_observation),
    ):
        if _shapes(observation) != expected:
            raise UserError(
                f"{name}: the {what} has the shape {_shapes(observation)}, expected {expected}, as the spec's "
                f"observation space {spec.observation_space}"
            )
    for what, found, names in (("costs", step.costs, spec.costs), ("objectives", step.objectives, spec.objectives)):
        if sorted(found) != sorted(names):
            raise UserError(f"{name}: step returns the {what} {sorted(found)}, expected those of the spec, {[*names]}")
    numbers = {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated}
    for what, number in (numbers | step.costs | step.objectives).items():
        if jnp.shape(number) != ():
            raise UserError(f"{name}: {what} of step has the shape {jnp.shape(number)}, expected one number")
    if not any(isinstance(leaf, DISCRETE) for _, leaf in leaves(spec.observation_space)):
        return
    first, step = jax.device_get(jax.jit(observed)(seed_key(0)))
    for number, observation in enumerate((first, step.observation, step.final_observation)):
        batch = jax.tree.map(lambda value: np.asarray(value)[None], observation)
        try:
            narrowed(name, min(number, 1), spec.observation_space, batch)
        except ObservationRangeError as error:
            raise UserError(str(error)) from error


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.shape, tree)


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
