"""The two drivers: what the outer loop drives, a chunk at a time.

A *program* trains its members side by side: a member is a seed and, in a sweep, values of traced hyper-parameters.
The scan driver compiles rollout and learn into one scan over a chunk and vmaps it over the members. The host driver
steps host worlds from Python, one member at a time, around the same jitted ``act`` and ``learn``.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agents.behaviour_cloning import Demonstrations
from envs.host_rollout import episodes_host, start_host, unroll_host
from envs.types import EnvironmentSpec, NonFiniteEnvironmentError, VectorHost
from experiments import learn
from experiments.annotation import AnnotationService
from experiments.build import (
    EVALUATION_SEED,
    World,
    build_annotation,
    build_objectives,
    build_parts,
    expert_demonstrations,
)
from experiments.errors import UserError
from experiments.learn import RunState
from experiments.objectives import discounted_returns, evaluate_objectives, initial_stocks, objective_metrics


class Member(NamedTuple):
    """One run of a program: its seed, the variant its rows are filed under, and traced values by dotted key."""

    seed: int
    variant: str
    values: dict[str, float] = {}  # noqa: RUF012  (never written)


class Driver(Protocol):
    """What the outer loop needs; metrics are numpy arrays ``[members]`` by name.

    Attributes:
      members: what it trains.
      resumed_exactly: whether the last ``resume`` goes on where the run was, and not with new episodes.
    """

    members: Sequence[Member]
    resumed_exactly: bool

    def template(self) -> RunState:
        """The shapes of a run state, for a restore; nothing is computed."""

    def start(self) -> RunState: ...

    def chunk(
        self, state: RunState, first_iteration: int, iterations: int
    ) -> tuple[RunState, dict[str, np.ndarray]]: ...

    def evaluate(self, state: RunState, seed: int = EVALUATION_SEED) -> dict[str, np.ndarray]:
        """Means over whole episodes, whose start states and actions are drawn from ``seed``."""

    def snapshot(self) -> bytes | None:
        """The host's state, ``None`` where there is nothing beside the run state (or it cannot be saved)."""

    def resume(self, state: RunState, snapshot: bytes | None, iteration: int) -> RunState:
        """Continues after a restore."""

    def close(self) -> None: ...


def seed_key(seed: int | jax.Array) -> jax.Array:
    """The typed key of a seed."""
    return jax.random.key(seed)


def evaluation_key(seed: int = EVALUATION_SEED) -> jax.Array:
    """The key of an evaluation: of no training seed, so that all are evaluated on the same start states."""
    return jax.random.key(seed)


class ScanDriver:
    """Trains all members in one compiled program on a pure world.

    Args:
      config: the configuration.
      world: with a pure ``environment``.
      members: what to train; member i of a program equals the single run of member i.
      sweep: leave a world that is not finite to the outer loop, so that the other members go on.
    """

    resumed_exactly = True

    def __init__(self, config: ConfigDict, world: World, members: Sequence[Member], sweep: bool = False):
        # The maker of drivers saw that it is not None.
        environment: Any = world.environment
        self.members = list(members)
        self._config, self._world, self._sweep = config, world, sweep
        self._seeds = jnp.asarray([member.seed for member in members], jnp.uint32)
        names = sorted({name for member in members for name in member.values})
        self._values = {name: jnp.asarray([member.values[name] for member in members], jnp.float32) for name in names}
        start_states = config.rollout.start_states

        def parts(values):
            return build_parts(config, world.spec, values)

        def start(seed, values, demonstrations: Demonstrations | None):
            agent, reward, warm_start = parts(values)
            if demonstrations is None:
                warm_start = None
            if warm_start is not None:
                warm_start = functools.partial(warm_start, demonstrations=demonstrations)
            state = learn.initial_state(agent, reward, seed_key(seed), warm_start=warm_start)
            return learn.start_rollout(environment, agent, state)

        def chunk(state, values, first_iteration, iterations):
            agent, reward, _ = parts(values)
            return learn.run_chunk(
                environment,
                agent,
                reward,
                state,
                first_iteration,
                iterations=iterations,
                start_states=start_states,
            )

        def evaluate(params, values, key):
            agent, _, _ = parts(values)
            objectives = build_objectives(config, world.spec, values)
            settings = {
                "num_episodes": config.evaluation.episodes,
                "length": config.evaluation.length,
                "greedy": config.evaluation.greedy,
            }
            metrics = learn.evaluate_episodes(environment, agent, params, key, **settings)
            if objectives is not None:
                metrics |= evaluate_objectives(environment, agent, objectives, params, key, **settings)
            return metrics

        # Built once outside jit, with the configuration's own numbers: a refusal is a message, not a traced error.
        parts({})
        build_annotation(config, world)
        build_objectives(config, world.spec)
        self._start = jax.jit(jax.vmap(start, in_axes=(0, 0, None)))
        self._chunks: dict[int, Callable[..., Any]] = {}
        self._make_chunk = lambda iterations: jax.jit(
            jax.vmap(functools.partial(chunk, iterations=iterations), in_axes=(0, 0, None)), donate_argnums=0
        )
        self._evaluate = jax.jit(jax.vmap(evaluate, in_axes=(0, 0, None)))

    def template(self) -> RunState:
        # What the policy is cloned from does not change its shape.
        return jax.eval_shape(self._start, self._seeds, self._values, None)

    def start(self) -> RunState:
        return self._start(self._seeds, self._values, expert_demonstrations(self._config, self._world))

    def chunk(self, state, first_iteration, iterations):
        if iterations not in self._chunks:
            self._chunks[iterations] = self._make_chunk(iterations)
        state, metrics = self._chunks[iterations](state, self._values, jnp.int32(first_iteration))
        metrics = jax.device_get(metrics)
        if np.any(metrics["sum/non_finite_worlds"] > 0) and not self._sweep:
            seeds = [m.seed for m, bad in zip(self.members, metrics["sum/non_finite_worlds"], strict=True) if bad > 0]
            raise NonFiniteEnvironmentError(
                f"the world returned NaN or infinity in an observation or a reward, in iterations {first_iteration} to "
                f"{first_iteration + iterations - 1}, seeds {seeds}: expected finite numbers"
            )
        return state, metrics

    def evaluate(self, state, seed=EVALUATION_SEED):
        return jax.device_get(self._evaluate(state.agent.params, self._values, evaluation_key(seed)))

    def trace(self) -> None:
        """Traces one iteration without compiling or running it; raises what its values make it raise."""
        jax.eval_shape(self._make_chunk(1), self.template(), self._values, jnp.int32(0))

    def snapshot(self):
        return None

    def resume(self, state, snapshot, iteration):
        del snapshot, iteration
        return state

    def close(self):
        pass


class HostPrograms:
    """What the runs on a host world compile, once for all members with the same values.

    Args:
      config: the configuration.
      spec: of the world.
      values: traced values by dotted key.

    Attributes:
      agent: acts and learns.
      objectives: what is evaluated beside the return, or ``None``.
      carry: of the agent before an episode, numpy.
      start: ``seed -> RunState`` without worlds.
      act, act_evaluation: ``(params, carry, observation, key, t) -> (action, carry, {})``.
      learn: ``(state, trajectory, iteration, annotations) -> (state, metrics)``; it donates the state.
      initial_stocks: ``(online, observation) -> [objectives]``; asked only where there are any.
      rollout_key: ``(key, iteration) -> key``.
    """

    def __init__(self, config: ConfigDict, spec: EnvironmentSpec, values: dict[str, float]):
        traced = {name: jnp.float32(value) for name, value in values.items()}
        agent, reward, warm_start = build_parts(config, spec, traced)
        if warm_start is not None:
            raise UserError("warm_start.rooms: host worlds have no expert; expected warm_start.rooms=0")
        self.agent, self.objectives = agent, build_objectives(config, spec, traced)
        objectives: Any = self.objectives

        def act(params, carry, observation, key, t, *, greedy):
            action, carry, _ = agent.act(params, carry, observation, jax.random.fold_in(key, t), greedy=greedy)
            return action, carry, {}

        def learn_step(state, trajectory, iteration, annotations):
            # A step of the worlds waits for its action alone; what else acting tells is worked out here, all steps at
            # once. The parameters are still those that acted.
            def describe(carry, observation, action):
                return agent.act(state.agent.params, carry, observation, state.key, action=action)[2]

            extras = jax.vmap(describe)(trajectory.extras["carry"], trajectory.observation, trajectory.action)
            trajectory = trajectory._replace(extras=trajectory.extras | extras)
            return learn.learn(agent, reward, state, trajectory, iteration, annotations)

        self.start = jax.jit(lambda seed: learn.initial_state(agent, reward, seed_key(seed)))
        self.act = jax.jit(functools.partial(act, greedy=False))
        self.act_evaluation = jax.jit(functools.partial(act, greedy=config.evaluation.greedy))
        self.learn = jax.jit(learn_step, donate_argnums=0)
        self.initial_stocks = jax.jit(lambda online, observation: initial_stocks(objectives, online, observation))
        self.rollout_key = jax.jit(lambda key, iteration: learn.stream(key, learn.ROLLOUT, iteration))
        self.carry = jax.device_get(agent.initial_carry(agent.data.batch))


class HostDriver:
    """Trains one member on host worlds.

    Args:
      config, world: with a ``host`` factory.
      member: what to train.
      folder: the run folder, for the files of an annotator; without it there are none.
      programs: those of another member with the same values; its own if ``None``.
    """

    def __init__(
        self,
        config: ConfigDict,
        world: World,
        member: Member,
        folder: Path | None = None,
        programs: HostPrograms | None = None,
    ):
        self.members = [member]
        self._config, self._member = config, member
        self._make_annotation = functools.partial(build_annotation, config, world, seed=member.seed, folder=folder)
        self._annotation: AnnotationService | None = None
        # What it goes on from.
        self._annotated: dict[str, Any] | None = None
        self._seed = jnp.uint32(member.seed)
        self._programs = HostPrograms(config, world.spec, member.values) if programs is None else programs
        self._agent = self._programs.agent
        make_host: Any = world.host
        self._make_host: Callable[[int], VectorHost] = make_host
        self._host = make_host(self._agent.data.batch)
        self._evaluation_host: VectorHost | None = None
        self.resumed_exactly = True

    def template(self) -> RunState:
        return self._with_worlds(jax.eval_shape(self._programs.start, self._seed), 0)

    def start(self) -> RunState:
        self._close_annotation()
        return self._with_worlds(self._programs.start(self._seed), 0)

    def _start_annotation(self) -> None:
        """Starts the annotator, where the configuration has one, before the first chunk: to look at what was trained
        asks nobody.

        Raises:
          UserError: if it cannot be reached.
        """
        if self._annotation is None and "annotator" in self._config:
            annotation: Any = self._make_annotation()
            annotation.start(self._annotated)
            self._annotation = annotation

    def _close_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.close()
        self._annotation = self._annotated = None

    def _with_worlds(self, state: RunState, iteration: int) -> RunState:
        """Fresh episodes, from seeds of their own, where the agent unrolls."""
        if self._agent.data.kind == "episodes":
            return state
        return state._replace(rollout=start_host(self._host, self._world_seed(iteration), self._programs.carry))

    def _world_seed(self, iteration: int) -> int:
        """A 31-bit seed of the worlds, spread so that the worlds of two seeds or iterations do not overlap."""
        key = learn.stream(seed_key(self._member.seed), learn.ENVIRONMENT_INIT, iteration)
        return int(jax.random.bits(key, dtype=jnp.uint32) >> 1)

    def _episode_seeds(self, iteration: int) -> list[int]:
        key = learn.stream(seed_key(self._member.seed), learn.ENVIRONMENT_INIT, iteration)
        groups = self._agent.data.batch // self._agent.data.group_size
        return [int(bits) for bits in np.asarray(jax.random.bits(key, (groups,), jnp.uint32) >> 1)]

    def chunk(self, state, first_iteration, iterations):
        data = self._agent.data
        self._start_annotation()
        history = []
        for iteration in range(first_iteration, first_iteration + iterations):
            key = self._programs.rollout_key(state.key, iteration)
            if data.kind == "episodes":
                rollout: Any = ()
                trajectory = episodes_host(
                    self._host,
                    self._programs.act,
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
                    self._programs.act,
                    state.agent.params,
                    state.rollout,
                    key,
                    length=data.length,
                    initial_carry=self._programs.carry,
                )
            # The worlds' part is numpy and stays here: only what learns is donated to the device.
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

    def evaluate(self, state, seed=EVALUATION_SEED):
        settings = self._config.evaluation
        if self._evaluation_host is None:
            self._evaluation_host = self._make_host(settings.episodes)
        metrics = jax.device_get(learn.episode_means(self._evaluation_episodes(state, seed)))
        if self._programs.objectives is not None:
            metrics |= self._evaluate_objectives(state, self._programs.objectives, seed)
        return {name: np.asarray([value]) for name, value in metrics.items()}

    def _evaluation_seeds(self, seed: int) -> list[int]:
        # Held-out start states: consecutive seeds near the top of the range, where training's random ones hardly are.
        return [seed - index for index in range(self._config.evaluation.episodes)]

    def _evaluation_episodes(self, state, seed):
        settings, host = self._config.evaluation, self._evaluation_host
        assert host is not None
        trajectory = episodes_host(
            host,
            self._programs.act_evaluation,
            state.agent.params,
            evaluation_key(seed),
            seeds=self._evaluation_seeds(seed),
            group_size=1,
            length=settings.length,
            initial_carry=jax.device_get(self._agent.initial_carry(settings.episodes)),
            observations=False,
        )
        return jax.tree.map(jnp.asarray, trajectory)

    def _evaluate_objectives(self, state, objectives, seed):
        # Objectives need a stock, and a world with one is a ``StockHost``.
        host: Any = self._evaluation_host
        stocks = self._programs.initial_stocks(state.agent.params["online"], host.reset(self._evaluation_seeds(seed)))
        returns = []
        for stock in np.asarray(stocks):
            host.start_at(float(stock))
            returns.append(discounted_returns(self._evaluation_episodes(state, seed), self._config.agent.discount))
        host.start_at(self._config.environment.stock.get("start"))
        return jax.device_get(objective_metrics(objectives, stocks, jnp.stack(returns)))

    def snapshot(self):
        worlds = self._host.snapshot() if self._agent.data.kind != "episodes" else None
        if "annotator" not in self._config:
            return worlds
        return pickle.dumps((worlds, self._annotated if self._annotation is None else self._annotation.state()))

    def resume(self, state, snapshot, iteration):
        self._close_annotation()
        if "annotator" in self._config and snapshot is not None:
            snapshot, self._annotated = pickle.loads(snapshot)
        self.resumed_exactly = self._agent.data.kind == "episodes" or snapshot is not None
        if self._agent.data.kind == "episodes":
            return state
        if snapshot is None:
            # These worlds cannot be saved.
            return self._with_worlds(state, iteration)
        return state._replace(rollout=state.rollout._replace(observation=self._host.restore(snapshot)))

    def close(self):
        self._close_annotation()
        self._host.close()
        if self._evaluation_host is not None:
            self._evaluation_host.close()


def drivers(
    config: ConfigDict,
    world: World,
    members: Sequence[Member],
    members_per_program: int | None = None,
    folder: Path | None = None,
    sweep: bool = False,
) -> list[Callable[[], Any]]:
    """Makers of the drivers that train ``members``, one after the other: on a pure world programs of at most
    ``members_per_program`` (all if ``None``), ``sweep`` as there; on host worlds one each, with what it keeps besides
    checkpoints in ``folder``."""
    if world.environment is None:
        programs: dict[tuple, HostPrograms] = {}

        def host_driver(member):
            values = tuple(sorted(member.values.items()))
            if values not in programs:
                programs[values] = HostPrograms(config, world.spec, member.values)
            return HostDriver(config, world, member, folder, programs[values])

        return [functools.partial(host_driver, member) for member in members]
    size = members_per_program or len(members)
    parts = [members[start : start + size] for start in range(0, len(members), size)]
    return [functools.partial(ScanDriver, config, world, part, sweep) for part in parts]
