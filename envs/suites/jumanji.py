"""Jumanji's environments (extra ``jumanji``).

Most of them report the end of the time as the end of the task (``discount`` 0). Where an environment has the argument
``time_limit``, it gets one that no episode reaches and ``TimeLimit`` truncates instead; ``MMST-v0`` is left as it is,
because it allocates arrays of that length. The environments without a time limit end by themselves.

An observation is a Dict of the suite's fields. The field ``action_mask`` of environments with one Discrete action rules
actions out, see ``agents.action_masks``; where actions have several parts the mask stays an observation like others,
and what the environment does with an action that it does not allow is the suite's.

Source: Bonnet et al., "Jumanji: a Diverse Suite of Scalable Reinforcement Learning Environments in JAX", ICLR 2024,
arXiv 2306.09884.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np

from envs.base import Environment, Observation
from envs.choices import require_known
from envs.suites.adapter import (
    NO_LIMIT,
    OWN_LIMIT,
    Drawing,
    Game,
    Step,
    arguments_of,
    box,
    limited,
    require_parameters,
    suite_errors,
    suite_module,
)

_NEEDS_ITS_LIMIT = ("MMST-v0",)
# A count that an environment shows is a number and not one of as many choices.
_COUNTS = ("step_count",)


def jumanji_environment(
    environment_id: str,
    *,
    time_limit: int | None = OWN_LIMIT,
    generator: str | None = None,
    generator_settings: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Environment:
    """Jumanji's ``environment_id``, such as ``Snake-v1``.

    Args:
      environment_id: the suite's name.
      time_limit: steps after which an episode is truncated; the suite's own where it is not given, ``None`` for none.
      generator: what makes the instances, a class of the environment's module ``generator``, such as
        ``RandomGenerator``; the suite's own if ``None``. ``Sokoban-v0`` downloads its levels unless the generator is
        ``SimpleSolveGenerator`` or ``ToyGenerator``.
      generator_settings: the arguments of the generator, such as ``num_rows`` and ``num_cols`` of ``Maze-v0``.
      **parameters: further arguments of the environment.

    Raises:
      ImportError: the extra ``jumanji`` is not installed.
      ValueError: an unknown environment or generator; several agents with a reward each; integer actions
        that are not counted from 0; an environment that the suite fails to make, such as one whose levels it cannot
        download.
      TypeError: the environment or its generator does not have a parameter.
    """
    suite = suite_module("jumanji", "jumanji", "Jumanji")
    require_known("environment of Jumanji", environment_id, suite.registered_environments())
    settings = tuple(sorted((generator_settings or {}).items()))
    game, own = _game(environment_id, generator, settings, tuple(sorted(parameters.items())))
    return limited(game, own, time_limit)


# Cached, so that the same arguments make the same object, see ``adapter.limited``.
@lru_cache
def _game(
    environment_id: str,
    generator: str | None,
    generator_settings: tuple[tuple[str, Any], ...],
    parameters: tuple[tuple[str, Any], ...],
) -> tuple[Game, int | None]:
    name, arguments = f"Jumanji: {environment_id}", dict(parameters)
    kind = _class_of(environment_id)
    require_parameters(environment_id, arguments, arguments_of(kind) - {"generator", "time_limit"})
    if generator is not None:
        factory = _generator(environment_id, kind, generator)
        require_parameters(generator, dict(generator_settings), arguments_of(factory))
        arguments["generator"] = factory(**dict(generator_settings))
    described = _made(environment_id, arguments)
    if described.reward_spec.shape:
        raise ValueError(
            f"{name}: rewards have the shape {list(described.reward_spec.shape)}, one for each of several agents; "
            "expected an environment with one reward"
        )
    limit = getattr(described, "time_limit", None)
    raised = limit is not None and environment_id not in _NEEDS_ITS_LIMIT
    environment = _made(environment_id, arguments | {"time_limit": NO_LIMIT}) if raised else described

    def start(key):
        state, step = environment.reset(key)
        return state, _as_dict(step.observation)

    def step(key, state, action):
        del key  # the state holds one of its own
        state, step = environment.step(state, action)
        terminated = step.last() & jnp.all(step.discount == 0)
        return Step(state, _as_dict(step.observation), step.reward, terminated, step.last() & ~terminated)

    # The bounds are those under the suite's own limit: no step counts beyond it.
    observations = _observation_space(described.observation_spec)
    actions = _action_space(name, described.action_spec)
    draw = _drawing(environment.unwrapped)
    return Game(name, start, step, observations, actions, None if raised else limit, draw), (limit if raised else None)


def _drawing(environment: Any) -> Drawing | None:
    """What the environment's own viewer draws, on a figure of 400 by 400 pixels that no window shows."""
    module = suite_module("jumanji.viewer", "jumanji", "Jumanji")
    viewer = next((part for part in vars(environment).values() if isinstance(part, module.MatplotlibViewer)), None)
    if viewer is None:
        return None

    def draw(state):
        figure = module.plt.Figure(figsize=(4, 4), dpi=100)
        axes = figure.add_subplot()
        # A viewer makes its figure by pyplot, which opens a window, and shows it there.
        viewer._get_fig_ax = lambda *_, **__: (figure, axes)
        viewer._display = lambda _: None
        viewer.render(state)
        pixels = io.BytesIO()
        figure.savefig(pixels, format="rgba", dpi=100)
        return np.frombuffer(pixels.getvalue(), np.uint8).reshape(400, 400, 4)[..., :3]

    return draw


def _made(environment_id: str, arguments: Mapping[str, Any]) -> Any:
    with suite_errors(f"Jumanji: {environment_id}"):
        return suite_module("jumanji", "jumanji", "Jumanji").make(environment_id, **arguments)


def _class_of(environment_id: str) -> type:
    registration = suite_module("jumanji.registration", "jumanji", "Jumanji")
    module, _, kind = registration._REGISTRY[environment_id].entry_point.partition(":")
    return getattr(importlib.import_module(module), kind)


def _generator(environment_id: str, kind: type, generator: str) -> type:
    """The class ``generator`` of the module ``generator`` beside the environment's own."""
    package = kind.__module__.rpartition(".")[0]
    try:
        found = vars(importlib.import_module(f"{package}.generator"))
    except ModuleNotFoundError as error:
        raise ValueError(f"generator={generator!r}: {environment_id} has no generators") from error
    kinds = {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) and name.endswith("Generator") and not inspect.isabstract(value)
    }
    require_known(f"generator of {environment_id}", generator, kinds)
    return kinds[generator]


def _as_dict(observation: Any) -> Observation:
    """Named tuples and dataclasses as dictionaries, whose keys are those of the space."""
    if isinstance(observation, Mapping):
        return {name: _as_dict(part) for name, part in observation.items()}
    if hasattr(observation, "_asdict"):
        return {name: _as_dict(part) for name, part in observation._asdict().items()}
    if dataclasses.is_dataclass(observation):
        fields = dataclasses.fields(observation)
        return {field.name: _as_dict(getattr(observation, field.name)) for field in fields}
    return observation


def _observation_space(spec: Any, name: str = "") -> gymnasium.Space:
    if spec._specs:
        return gymnasium.spaces.Dict({key: _observation_space(part, key) for key, part in spec._specs.items()})
    if hasattr(spec, "num_values") and np.ndim(spec.num_values) == 0 and name not in _COUNTS:
        return gymnasium.spaces.Discrete(int(spec.num_values))
    kind = np.dtype(spec.dtype)
    unbounded = (-np.inf, np.inf) if kind.kind != "b" else (0, 1)
    low, high = getattr(spec, "minimum", unbounded[0]), getattr(spec, "maximum", unbounded[1])
    return box(low, high, tuple(spec.shape), kind)


def _action_space(name: str, spec: Any) -> gymnasium.Space:
    if hasattr(spec, "num_values"):
        values = np.asarray(spec.num_values)
        return gymnasium.spaces.MultiDiscrete(values) if values.ndim else gymnasium.spaces.Discrete(int(values))
    kind, shape = np.dtype(spec.dtype), tuple(spec.shape)
    if kind.kind == "i" and len(shape) == 1 and np.all(np.asarray(spec.minimum) == 0):
        return gymnasium.spaces.MultiDiscrete(np.broadcast_to(np.asarray(spec.maximum, np.int64) + 1, shape))
    if kind.kind != "f":
        raise ValueError(f"{name}: actions are {spec}: expected Discrete, MultiDiscrete, or numbers with bounds")
    return box(spec.minimum, spec.maximum, shape, kind)
