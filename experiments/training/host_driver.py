"""The host driver: host environments stepped from Python around the jitted ``act`` and ``learn``, member by member."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from envs.base import VectorHost
from envs.host_rollout import episodes_host, start_host, unroll_host
from envs.keys import seed_key
from envs.snapshots import Snapshot, SnapshotError, unwrap, wrap
from experiments.annotation.service import AnnotationService
from experiments.assembly.build import (
    EVALUATION_SEED,
    EnvironmentSource,
    build_annotation,
    build_parts,
)
from experiments.assembly.evaluators import build_evaluators
from experiments.assembly.members import Member
from experiments.errors import RefusedAtStartError, UserError
from experiments.evaluators.base import HostEpisodes, host_act
from experiments.evaluators.base import evaluate as evaluate_all
from experiments.training import learn
from experiments.training.keys import evaluation_key
from experiments.training.learn import RunState


class HostPrograms:
    """What the runs on a host environment compile, once for all members with the same values.

    Args:
      config: the configuration.
      source: with a ``host`` factory.
      values: traced values by dotted key.

    Attributes:
      agent: acts and learns.
      episodes: of the agent, for evaluators; its environments are made when an evaluation needs them.
      evaluators: by name.
      carry: of the agent before an episode, numpy.
      start: ``seed -> RunState`` without environments.
      act: ``(params, carry, observation, key, t, *, greedy) -> (action, carry, {})``.
      learn: ``(state, trajectory, iteration, annotations) -> (state, metrics)``; it donates the state.
      rollout_key: ``(key, iteration) -> key``.
    """

    def __init__(self, config: ConfigDict, source: EnvironmentSource, values: dict[str, float]):
        traced = {name: jnp.float32(value) for name, value in values.items()}
        agent, reward, warm_start = build_parts(config, source.spec, traced)
        if warm_start is not None:
            raise UserError(
                "warm_start.demonstrations: host environments have no expert; expected warm_start.demonstrations=0"
            )
        self.agent = agent

        def learn_step(state, trajectory, iteration, annotations):
            # Inside jit they are jax arrays already; with jax.disable_jit they would stay numpy arrays.
            state, trajectory = jax.tree.map(jnp.asarray, (state, trajectory))

            # A step of the environments waits for its action alone; what else acting tells is worked out here, all
            # steps at once. The parameters are still those that acted.
            def describe(carry, observation, action):
                return agent.act(state.agent.params, carry, observation, state.key, action=action)[2]

            extras = jax.vmap(describe)(trajectory.extras["carry"], trajectory.observation, trajectory.action)
            trajectory = trajectory._replace(extras=trajectory.extras | extras)
            return learn.learn(agent, reward, state, trajectory, iteration, annotations)

        self.start = jax.jit(lambda seed: learn.initial_state(agent, reward, seed_key(seed)))
        self.act = host_act(agent)
        self.learn = jax.jit(learn_step, donate_argnums=0)
        self.rollout_key = jax.jit(lambda key, iteration: learn.stream(key, learn.ROLLOUT, iteration))
        self.carry = jax.device_get(agent.initial_carry(agent.data.batch))
        make_host: Any = source.host
        self.episodes = HostEpisodes(make_host, agent, self.act)
        self.evaluators = build_evaluators(config, source, agent, self.episodes, traced)
        for name, evaluator in self.evaluators.items():
            if evaluator.watch is not None:
                raise UserError(f"evaluators.{name} watches every iteration: expected a pure environment for it")


def annotation_state(snapshot: Snapshot | None) -> dict[str, Any] | None:
    """What ``HostDriver.snapshot`` holds of its annotation service, ``None`` where there was none.

    Raises:
      UserError: it is no state of one.
    """
    try:
        state = None if snapshot is None else unwrap(snapshot)[1].get("annotation")
    except SnapshotError as error:
        raise UserError(f"cannot read what the checkpoint holds of its host environments: {error}") from error
    if not isinstance(state, dict | None):
        raise UserError("the checkpoint holds no state of an annotation service: expected an object")
    return state


class HostDriver:
    """Trains one member on host environments.

    Args:
      config, environment: with a ``host`` factory.
      member: what to train.
      folder: the run folder, for the files of an annotator; without it there are none.
      programs: those of another member with the same values; its own if ``None``.
      device: that acts and learns; the first one of this process if ``None``.
    """

    # The shapes of a trajectory are known once its environments were stepped.
    compiles_ahead = False

    def __init__(
        self,
        config: ConfigDict,
        source: EnvironmentSource,
        member: Member,
        folder: Path | None = None,
        programs: HostPrograms | None = None,
        device: jax.Device | None = None,
    ):
        self.members = [member]
        self._config, self._member = config, member
        self._make_annotation = functools.partial(build_annotation, config, source, seed=member.seed, folder=folder)
        self._annotation: AnnotationService | None = None
        # What it goes on from.
        self._annotated: dict[str, Any] | None = None
        self._placement = SingleDeviceSharding(jax.local_devices()[0] if device is None else device)
        # The state is made where the seed is, and stays there.
        self._seed = jax.device_put(np.uint32(member.seed), self._placement)
        self._programs = HostPrograms(config, source, member.values) if programs is None else programs
        self._agent = self._programs.agent
        make_host: Any = source.host
        self._make_host: Callable[[int], VectorHost] = make_host
        self._host = make_host(self._agent.data.batch)
        self.new_episodes: str | None = None

    def template(self) -> RunState:
        shapes = jax.eval_shape(self._programs.start, self._seed)
        shapes = jax.tree.map(lambda leaf: leaf.update(sharding=self._placement), shapes)
        return self._with_environments(shapes, 0)

    def start(self) -> RunState:
        self._close_annotation()
        return self._with_environments(self._programs.start(self._seed), 0)

    def _start_annotation(self) -> None:
        """Starts the annotator, where the configuration has one, before the first chunk: to look at what was trained
        asks nobody.

        Raises:
          RefusedAtStartError: if it cannot be reached, or refuses.
        """
        if self._annotation is None and "annotator" in self._config:
            annotation: Any = self._make_annotation()
            try:
                annotation.start(self._annotated)
            except UserError as error:
                raise RefusedAtStartError(error) from error
            self._annotation = annotation

    def _close_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.close()
        self._annotation = self._annotated = None

    def _with_environments(self, state: RunState, iteration: int) -> RunState:
        """Fresh episodes, from seeds of their own, where the agent unrolls."""
        if self._agent.data.kind == "episodes":
            return state
        return state._replace(rollout=start_host(self._host, self._environment_seed(iteration), self._programs.carry))

    def _environment_seed(self, iteration: int) -> int:
        """A 31-bit seed of the environments, spread so that the environments of two seeds or iterations do not
        overlap."""
        key = learn.stream(seed_key(self._member.seed), learn.ENVIRONMENT_INIT, iteration)
        return int(jax.random.bits(key, dtype=jnp.uint32) >> 1)

    def _episode_seeds(self, iteration: int) -> list[int]:
        key = learn.stream(seed_key(self._member.seed), learn.ENVIRONMENT_INIT, iteration)
        groups = self._agent.data.batch // self._agent.data.group_size
        return [int(bits) for bits in np.asarray(jax.random.bits(key, (groups,), jnp.uint32) >> 1)]

    def compile(self, state, iterations):
        del state, iterations

    def chunk(self, state, first_iteration, iterations):
        data = self._agent.data
        self._start_annotation()
        # Named, so that an evaluation of sampled actions is the same program.
        act = functools.partial(self._programs.act, greedy=False)
        history = []
        for iteration in range(first_iteration, first_iteration + iterations):
            key = self._programs.rollout_key(state.key, iteration)
            if data.kind == "episodes":
                rollout: Any = ()
                trajectory = episodes_host(
                    self._host,
                    act,
                    state.agent.params,
                    key,
                    seeds=self._episode_seeds(iteration),
                    group_size=data.group_size,
                    length=data.length,
                    initial_carry=self._programs.carry,
                )
            else:
                rollout, trajectory = unroll_host(
                    self._host,
                    act,
                    state.agent.params,
                    state.rollout,
                    key,
                    length=data.length,
                    initial_carry=self._programs.carry,
                )
            # The environments' part is numpy and stays here: only what learns is donated to the device.
            labels = None if self._annotation is None else self._annotation.exchange(trajectory)
            learned, metrics = self._programs.learn(
                state._replace(rollout=()), trajectory, jnp.int32(iteration), labels
            )
            state = learned._replace(rollout=rollout)
            if self._annotation is not None:
                self._annotation.note_undone(metrics[f"{learn.SUM_PREFIX}rejected"])
            history.append(metrics)
        fetched = jax.device_get(history)
        stacked = {name: np.stack([metrics[name] for metrics in fetched]) for name in fetched[0]}
        reduced = {name: learn.reduce_metric(name, values)[None] for name, values in stacked.items()}
        if self._annotation is not None:
            reduced |= {f"annotator/{name}": np.asarray([n]) for name, n in self._annotation.counts().items()}
        return state, reduced

    def evaluate(self, state, stream=EVALUATION_SEED):
        key = evaluation_key(self._member.seed, stream)
        metrics = jax.device_get(evaluate_all(self._programs.evaluators, state._replace(rollout=()), key))
        return {name: np.asarray([value]) for name, value in metrics.items()}

    def snapshot(self):
        environments = self._host.snapshot() if self._agent.data.kind != "episodes" else None
        annotated = self._annotated if self._annotation is None else self._annotation.state()
        if environments is None and annotated is None:
            return None
        return wrap(environments, {"annotation": annotated}, {})

    def resume(self, state, snapshot, iteration):
        self._close_annotation()
        self.new_episodes = None
        environments = None
        if snapshot is not None:
            environments, self._annotated = unwrap(snapshot)[0], annotation_state(snapshot)
        if self._agent.data.kind == "episodes":
            return state
        try:
            if environments is None:
                raise SnapshotError("these environments cannot be saved")
            observation = self._host.restore(environments)
        except SnapshotError as error:
            self.new_episodes = str(error)
            return self._with_environments(state, iteration)
        return state._replace(rollout=state.rollout._replace(observation=observation))

    def close(self):
        self._close_annotation()
        self._host.close()
        self._programs.episodes.close()
