"""One gymnasium environment: made with errors that say what to do, drawn, and tried before a host makes a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import gymnasium
import numpy as np

from envs.base import ACTION_MASK, Observation
from envs.choices import nearest

RENDERS = ("rgb_array", "ansi")
# Identifiers that other packages register, and the extra of sagax that installs the package.
_EXTRAS = {"ALE/": "atari", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}


def make_environment(
    environment_id: str, make_kwargs: Mapping[str, Any], wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]]
) -> gymnasium.Env:
    """``gymnasium.make`` with errors that say what to do."""
    try:
        environment = gymnasium.make(environment_id, **make_kwargs)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        entry_point = str(getattr(gymnasium.registry.get(environment_id), "entry_point", ""))
        family = entry_point.removeprefix("gymnasium.envs.").split(".")[0].split(":")[0]
        extra = {"phys2d": "jax", "tabular": "jax"}.get(family, family.replace("_", "-"))
        hint = f"; pip install 'gymnasium[{extra}]'" if entry_point.startswith("gymnasium.envs.") else ""
        raise ImportError(f"{environment_id}: a package that it needs is missing: {error}{hint}") from error
    except gymnasium.error.Error as error:
        extra = next((extra for prefix, extra in _EXTRAS.items() if environment_id.startswith(prefix)), "")
        hint = f"; it comes with the extra {extra!r}: pip install -e '.[{extra}]'" if extra else ""
        raise ValueError(
            f"unknown environment {environment_id!r}{nearest(environment_id, gymnasium.registry)} ({error}{hint})"
        ) from error
    for wrapper in wrappers:
        environment = wrapper(environment)
    return environment


def drawn(
    environment_id: str,
    make_kwargs: dict[str, Any],
    wrappers: Sequence[Callable[[gymnasium.Env], gymnasium.Env]],
    render: str,
) -> tuple[dict[str, Any], list[Callable[[gymnasium.Env], gymnasium.Env]]]:
    """What makes environments that keep their pictures.

    Raises:
      ValueError: they cannot be drawn so.
    """
    trial = make_environment(environment_id, make_kwargs, wrappers)
    modes, own = (each.metadata.get("render_modes") or () for each in (trial, trial.unwrapped))
    trial.close()
    if render not in modes:
        known = [mode for mode in RENDERS if mode in modes]
        raise ValueError(f"render={render!r}: {environment_id} can be drawn as {' or '.join(known) or 'nothing'}")
    # A wrapper may draw what the environment itself cannot.
    make_kwargs = make_kwargs | ({"render_mode": render} if render in own else {})
    return make_kwargs, [*wrappers, partial(gymnasium.wrappers.RenderCollection, reset_clean=False)]


def objective_weights(environment_id: str, reward: Any, weights: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of the entries of ``reward`` by their names; ``{}`` for a reward of one number.

    Raises:
      ValueError: weights for a reward of one number, or of another number of entries; a reward that is no vector.
    """
    shape = np.shape(reward)
    if shape == () and not weights:
        return {}
    if len(shape) != 1:
        raise ValueError(f"{environment_id}: the reward has the shape {list(shape)}, expected a number, or a vector")
    if weights is None:
        return {str(index): 1.0 for index in range(shape[0])}
    if len(weights) != shape[0]:
        raise ValueError(
            f"{environment_id}: objectives={dict(weights)}: the reward has {shape[0]} entries, expected one name each"
        )
    return dict(weights)


def trial_step(trial: gymnasium.Env) -> tuple[Observation, Any, dict[str, Any]]:
    """The observation, the reward and the ``info`` of an environment's first step."""
    observation, _ = trial.reset(seed=0)
    trial.action_space.seed(0)
    allowed = None
    if isinstance(observation, dict) and ACTION_MASK in observation:
        mask = np.asarray(observation[ACTION_MASK]) > 0
        fits = isinstance(trial.action_space, gymnasium.spaces.Discrete) and mask.shape == (trial.action_space.n,)
        allowed = mask.astype(np.int8) if fits else None
    observation, reward, _, _, info = trial.step(trial.action_space.sample(mask=allowed))
    return observation, reward, info
