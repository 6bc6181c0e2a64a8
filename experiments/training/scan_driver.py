"""The scan driver: rollout and learning compiled into one scan over a chunk, vmapped over the members and sharded over
the devices."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from agents.behaviour_cloning import Demonstrations
from envs.base import NonFiniteEnvironmentError
from envs.keys import seed_key
from experiments.assembly.build import (
    EVALUATION_SEED,
    EnvironmentSource,
    build_annotation,
    build_parts,
    expert_demonstrations,
)
from experiments.assembly.evaluators import build_evaluators
from experiments.assembly.members import Member
from experiments.evaluators.base import PureEpisodes, watch
from experiments.evaluators.base import evaluate as evaluate_all
from experiments.training import learn
from experiments.training.keys import evaluation_key
from experiments.training.learn import RunState
from experiments.training.sharding import device_mesh, member_program, placed, split_environments, stored_sharding


class ScanDriver:
    """Trains all members in one compiled program on a pure environment.

    Args:
      config: the configuration.
      environment: with a pure ``environment``.
      members: what to train; member i of a program equals the single run of member i.
      sweep: leave an environment that is not finite to the outer loop, so that the other members go on.
      devices: over which the members, or the environments of a single one, are sharded as ``sharding.py`` says; all if
        ``None``.
    """

    new_episodes = None
    compiles_ahead = True

    def __init__(
        self,
        config: ConfigDict,
        source: EnvironmentSource,
        members: Sequence[Member],
        sweep: bool = False,
        devices: Sequence[jax.Device] | None = None,
    ):
        # The maker of drivers saw that it is not None.
        environment: Any = source.pure
        self.members = list(members)
        self._config, self._environment, self._sweep = config, source, sweep
        mesh = device_mesh(len(members), devices)
        self._sharding = stored_sharding(mesh, len(members))
        self._seeds = placed(np.asarray([member.seed for member in members], np.uint32), self._sharding)
        names = sorted({name for member in members for name in member.values})
        values = {name: np.asarray([member.values[name] for member in members], np.float32) for name in names}
        self._values = placed(values, self._sharding)
        start_states = config.rollout.start_states

        def parts(values):
            return build_parts(config, source.spec, values)

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
            further = {"watch": functools.partial(watch, evaluators(agent, values))} if watched else {}
            return learn.run_chunk(
                environment,
                agent,
                reward,
                state,
                first_iteration,
                iterations=iterations,
                start_states=start_states,
                split=functools.partial(split_environments, mesh),
                **further,
            )

        def evaluators(agent, values):
            return build_evaluators(config, source, agent, PureEpisodes(environment, agent), values)

        def evaluate(state, values, seed, stream):
            return evaluate_all(evaluators(parts(values).agent, values), state, evaluation_key(seed, stream))

        # Built once outside jit, with the configuration's own numbers: a refusal is a message, not a traced error.
        built = evaluators(parts({}).agent, {})
        watched = any(evaluator.watch is not None for evaluator in built.values())
        build_annotation(config, source)
        program = functools.partial(member_program, mesh=mesh, members=len(members))
        self._start = program(start, in_axes=(0, 0, None))
        self._chunks: dict[int, Any] = {}
        self._make_chunk = lambda iterations: program(
            functools.partial(chunk, iterations=iterations),
            in_axes=(0, 0, None),
            whole=(False, True),
            donate_argnums=(0,),
        )
        self._evaluate = program(evaluate, in_axes=(0, 0, 0, None), whole=True)

    def template(self) -> RunState:
        # What the policy is cloned from does not change its shape.
        shapes = jax.eval_shape(self._start, self._seeds, self._values, None)
        return jax.tree.map(lambda leaf: leaf.update(sharding=self._sharding), shapes)

    def start(self) -> RunState:
        return self._start(self._seeds, self._values, expert_demonstrations(self._config, self._environment))

    def compile(self, state, iterations):
        # The call that follows finds the same lowering with its executable.
        self._compiled_chunk(iterations).lower(state, self._values, np.int32(0)).compile()
        self._evaluate.lower(*self._evaluation(state, EVALUATION_SEED)).compile()

    def _compiled_chunk(self, iterations: int):
        if iterations not in self._chunks:
            self._chunks[iterations] = self._make_chunk(iterations)
        return self._chunks[iterations]

    def chunk(self, state, first_iteration, iterations):
        state, metrics = self._compiled_chunk(iterations)(state, self._values, np.int32(first_iteration))
        metrics = jax.device_get(metrics)
        if np.any(metrics["sum/non_finite_environments"] > 0) and not self._sweep:
            seeds = [
                m.seed for m, bad in zip(self.members, metrics["sum/non_finite_environments"], strict=True) if bad > 0
            ]
            raise NonFiniteEnvironmentError(
                f"the environment returned NaN or infinity in an observation or a reward, in iterations "
                f"{first_iteration} to "
                f"{first_iteration + iterations - 1}, seeds {seeds}: expected finite numbers"
            )
        return state, metrics

    def evaluate(self, state, stream=EVALUATION_SEED):
        return jax.device_get(self._evaluate(*self._evaluation(state, stream)))

    def _evaluation(self, state: RunState, stream: int) -> tuple[Any, ...]:
        """The arguments of ``_evaluate``; no evaluator reads the environments that are trained in. A state of another
        driver may be on other devices."""
        state = jax.device_put(state._replace(rollout=()), self._sharding)
        return state, self._values, self._seeds, np.uint32(stream)

    def trace(self) -> None:
        """Traces one iteration without compiling or running it; raises what its values make it raise."""
        jax.eval_shape(self._make_chunk(1), self.template(), self._values, np.int32(0))

    def snapshot(self):
        return None

    def resume(self, state, snapshot, iteration):
        del snapshot, iteration
        return state

    def close(self):
        pass
