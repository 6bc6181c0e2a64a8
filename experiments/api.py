"""sagax from Python: load an experiment, train it, and act with what was trained.

    from experiments.api import load, restore, train

    experiment = load("ppo_cartpole:native", {"iterations": 20})
    rows = train(experiment, "runs/tour", seeds=2)
    policy = restore("runs/tour")
    action, carry = policy.act(observation)

Rows are plain dictionaries with one value per key: ``pandas.DataFrame(rows)`` is a table of them, and ``columns(rows)``
makes numpy arrays without pandas.

The commands do the same from a shell; a folder that ``train`` wrote is a run folder for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agents.base import Agent
from envs.base import EnvironmentSpec, PyTree
from envs.keys import seed_key
from experiments.assembly import registry
from experiments.assembly.checks import checked_environment, require_observations
from experiments.assembly.members import members_of, variant_name
from experiments.assembly.registry import Loaded
from experiments.errors import UserError
from experiments.rows.reading import Row
from experiments.training import train as training
from experiments.training.compilation_cache import enable_compilation_cache
from experiments.training.loggers.sink import require_loggers
from experiments.training.progress import Silent
from experiments.training.requirements import memory, require_memory, requirements
from experiments.training.restored import publish_run, restored_member
from experiments.training.stopping import StopRequested
from experiments.training.taking_back import taken_back_if_refused


def load(name: str, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """The experiment ``NAME`` or ``NAME:variant,variant``, or a variant as tables print it.

    Args:
      name: as in ``sagax run``.
      overrides: dotted key to value, such as ``{"agent.learning_rate": 1e-3}``; they become part of the variant's name.

    Raises:
      UserError: for an unknown experiment, variant or key, or a value of another type, with the nearest that fits.
    """
    loaded = registry.with_overrides(registry.load(name), overrides or {})
    return loaded._replace(variant=variant_name(loaded.variant, loaded.overrides, loaded.config))


def train(
    experiment: Loaded | str,
    folder: str | Path,
    *,
    seeds: int | None = None,
    first_seed: int = 0,
    loggers: Sequence[str] = (),
) -> list[Row]:
    """Trains ``experiment`` in ``folder``, or continues where it stopped there; returns the rows of all seeds.

    Args:
      experiment: from ``load``, or its name.
      folder: the run folder; made where there is none.
      seeds: how many, counted from ``first_seed``; those of the configuration if ``None``.
      first_seed: the first of them.
      loggers: what takes the rows as well, such as ``["wandb"]``; see ``--logger`` of ``sagax run``.

    Raises:
      UserError: for a configuration that cannot be run, a folder that holds another run, or a logger that is
        unknown or takes no rows.
    """
    loaded = load(experiment) if isinstance(experiment, str) else experiment
    source = checked_environment(loaded.config)
    require_observations(loaded.config, source)
    require_memory(requirements(loaded.config, source, seeds), memory())
    members = members_of(loaded.config, loaded.variant, seeds, first_seed)
    folder = Path(folder).expanduser()
    enable_compilation_cache()
    require_loggers(loggers)
    with taken_back_if_refused(folder):
        programs = training.prepare_folder(folder, loaded.config, members)
        outcome = training.train(
            loaded.config, loaded.name, programs, folder, Silent(), StopRequested(), source, loggers=loggers
        )
    return outcome.rows


def columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows as a table: each key of any row with its values ``[rows]``.

    A column of integers stays one where every row has its number; other numbers are ``float64``, with NaN where a row
    has none. Everything else is an array of objects, with ``None`` there.

    >>> table = columns([{"seed": 0, "return": 1.5}, {"seed": 1, "return": None, "device": "cpu"}])
    >>> table["seed"].tolist(), table["return"].tolist(), table["device"].tolist()
    ([0, 1], [1.5, nan], [None, 'cpu'])
    """
    made = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if all(type(value) is int for value in values):
            made[key] = np.array(values)
        elif all(value is None or type(value) in (int, float) for value in values):
            made[key] = np.array([np.nan if value is None else value for value in values], np.float64)
        else:
            made[key] = np.array(values, object)
    return made


def publish(folder: str | Path, destination: str | Path, *, checkpoint: str = "best") -> list[Path]:
    """Writes a run in the form of Hugging Face, as ``sagax publish`` does; returns the files.

    Args:
      folder: of the run.
      destination: a new folder, or an empty one; ``restore`` takes it.
      checkpoint: as in ``restore``.

    Raises:
      UserError: if there is no such run or checkpoint, or the folder cannot be made.
    """
    return publish_run(Path(folder).expanduser(), Path(destination).expanduser(), checkpoint)


@dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """What a run learned, for acting.

    Attributes:
      spec: of the environment that it was trained on.
      agent: the agent's functions.
      params: the agent's parameters.
      seed, iteration: which seed of the run, and after which iteration.
    """

    spec: EnvironmentSpec
    agent: Agent
    params: PyTree
    seed: int
    iteration: int

    @cached_property
    def _act(self) -> Any:
        def act(params, carry, observation, key, greedy):
            action, carry, _ = self.agent.act(params, carry, observation, key, greedy=greedy)
            return action, carry

        return jax.jit(act, static_argnames="greedy")

    def act(
        self, observation: Any, carry: PyTree = None, *, key: jax.Array | None = None, greedy: bool = True
    ) -> tuple[Any, PyTree]:
        """The action for one observation, or for a batch of them, and the carry for the next call.

        Args:
          observation: as the environment gives it, with or without a leading batch axis.
          carry: of the last call; ``None`` at the start of an episode. ``()`` throughout for a policy without memory.
          key: of the sampled action; needed where ``greedy`` is false.
          greedy: whether to take the most likely, or best, action.

        Raises:
          UserError: for an observation of another structure or shape, or a sampled action without a key.
        """
        if not greedy and key is None:
            raise UserError("act: a sampled action needs a key, such as key=jax.random.key(0)")
        template = self.spec.observation_template()
        if jax.tree.structure(observation) != jax.tree.structure(template):
            raise UserError(f"act: got an observation {jax.tree.structure(observation)}, expected {template}")
        wanted, shapes = jax.tree.leaves(template), [np.shape(leaf) for leaf in jax.tree.leaves(observation)]
        single = all(shape == leaf.shape for shape, leaf in zip(shapes, wanted, strict=True))
        if not single and not all(shape[1:] == leaf.shape for shape, leaf in zip(shapes, wanted, strict=True)):
            raise UserError(f"act: got observations of shapes {shapes}, expected {template}, or a batch of them")
        if single:
            observation = jax.tree.map(lambda x: np.asarray(x)[None], observation)
        batch = 1 if single else shapes[0][0]
        observation = jax.tree.map(lambda x, leaf: jnp.asarray(x, leaf.dtype), observation, template)
        carry = self.agent.initial_carry(batch) if carry is None else carry
        action, carry = self._act(self.params, carry, observation, seed_key(0) if key is None else key, greedy)
        action = jax.device_get(action)
        return (jax.tree.map(lambda x: x[0], action) if single else action), carry


def restore(folder: str | Path, *, checkpoint: str = "best", seed: int | None = None) -> TrainedPolicy:
    """The policy of a run folder.

    Args:
      folder: of a run, from ``train`` or ``sagax run``, or one that ``publish`` wrote.
      checkpoint: ``best`` (of all seeds together, by the evaluation's metric), ``latest`` or an iteration.
      seed: which seed of the run; its first if ``None``.

    Raises:
      UserError: if there is no such run, checkpoint or seed.
    """
    found = restored_member(Path(folder).expanduser(), checkpoint, seed)
    return TrainedPolicy(found.source.spec, found.agent, found.params, found.member.seed, found.iteration)
