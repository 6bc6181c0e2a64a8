"""Cases that compare PPO with other libraries': PureJaxRL inside jit, stable-baselines3 and sbx on the host."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ml_collections import ConfigDict

from envs.hosts.gymnasium import GymnasiumHost
from envs.keys import seed_key
from experiments.assembly.build import build_environment
from experiments.assembly.members import Member
from experiments.benchmarks.baseline_sides import Baseline, baseline, baseline_job
from experiments.benchmarks.sides import Chunks, Options, has_baselines, loaded, scan_driver, slots_of
from experiments.benchmarks.timing import Comparison, Side, compared, in_turns, rates, timed
from experiments.errors import UserError
from experiments.training.host_driver import HostDriver


def purejaxrl(options: Options) -> list[Comparison]:
    """Whole runs of PPO in jit beside PureJaxRL's ``ppo.py``, whose numbers and losses both sides have.

    CartPole is compared with gymnasium's functional environment on one side and gymnax's on the other, where one costs
    more than the other: the environments are also compared alone, and the details give their share of a run's time.
    Then both sides have the same environments, CartPole and MinAtar's Breakout of gymnax (extra ``gymnax``).

    Raises:
      UserError: without a checkout of PureJaxRL.
    """
    if options.baseline is None or not (options.baseline / "purejaxrl" / "ppo.py").is_file():
        given = "no --baseline" if options.baseline is None else f"--baseline={options.baseline}"
        raise UserError(
            f"{given}: expected a checkout of https://github.com/luchris429/purejaxrl (it is not part of "
            "this repository), and --baseline-python=PYTHON of an environment with: "
            "pip install jax flax optax distrax gymnax==0.0.9"
        )
    native = loaded("ppo_cartpole:native", **_cartpole_numbers(options))
    library, path = ("purejaxrl", "PureJaxRL's ppo.py, the same numbers"), str(options.baseline.resolve())
    return [
        *runs_in_jit(options, "training", native, "ppo_cartpole:native", *library, path=path, alone=True),
        *(
            found
            for name, ours, config in _on_gymnax(options)
            for found in runs_in_jit(options, name, config, ours, *library, path=path)
        ),
    ]


def rejax(options: Options) -> list[Comparison]:
    """Whole runs of PPO in jit beside rejax's, on CartPole and MinAtar's Breakout of gymnax (extra ``gymnax``).

    Its networks, and its numbers but for the schedule of the learning rate, are the same.
    """
    if not has_baselines(options, "rejax", "rejax", "rejax"):
        return []
    return [
        found
        for name, ours, config in _on_gymnax(options)
        for found in runs_in_jit(options, name, config, ours, "rejax", "PPO of rejax, the same numbers")
    ]


def _cartpole_numbers(options: Options) -> dict[str, Any]:
    """PureJaxRL's for CartPole."""
    numbers: dict[str, Any] = {"data__batch": 4, "data__length": 128, "agent__learning_rate": 2.5e-4}
    return numbers | {"agent__value_clip": 0.2, "iterations": 8 if options.tiny else 976}


def _on_gymnax(options: Options) -> list[tuple[str, str, ConfigDict]]:
    """Name, description and configuration of what is compared on gymnax's environments."""
    environment = {"environment__kind": "gymnax", "environment__environment_id": "CartPole-v1"}
    cartpole = loaded("ppo_cartpole:native", **_cartpole_numbers(options), **environment)
    breakout = loaded("ppo_minatar:breakout", iterations=1 if options.tiny else 61)
    return [
        ("gymnax_cartpole", "ppo_cartpole:native on gymnax's CartPole", cartpole),
        ("gymnax_breakout", "ppo_minatar:breakout", breakout),
    ]


def runs_in_jit(
    options: Options,
    name: str,
    config: ConfigDict,
    ours: str,
    library: str,
    reference: str,
    *,
    path: str = "",
    alone: bool = False,
) -> list[Comparison]:
    """Whole runs of ``config`` beside those of ``library``, which may need the ``path`` of a checkout, and with
    ``alone`` the environments of both under random actions."""
    steps = config.iterations * slots_of(config)
    python = str(options.baseline_python or sys.executable)
    job = baseline_job(config, library, steps, path=path)
    sides: dict[str, Side] = {}
    # The baselines start first, so that a missing package is reported before anything is compiled here. They wait
    # until they are asked.
    with contextlib.ExitStack() as stack:
        theirs = stack.enter_context(baseline(python, job))
        sides["baseline"] = theirs.side
        if alone:
            sides["gymnax"] = stack.enter_context(baseline(python, job | {"baseline": "gymnax_environment"})).side
            source = random_steps(config, steps)
            source()
            sides["environment"] = lambda: timed(source)
        driver = scan_driver(config)

        def whole_run() -> int:
            state, _ = driver.chunk(driver.start(), 0, config.iterations)
            jax.block_until_ready(state.agent)
            return steps

        first = timed(whole_run).seconds
        sides["sagax"] = lambda: timed(whole_run)
        samples = in_turns(sides, options.repeats, options.say)
    # What the first run took longer than the others.
    compiling = {
        "compile_seconds": first - statistics.median(sample.seconds for sample in samples["sagax"]),
        "baseline_compile_seconds": theirs.first_seconds
        - statistics.median(sample.seconds for sample in samples["baseline"]),
    }
    shares, environments = {}, []
    if alone:
        shares = {
            "share_of_time_in_environment": statistics.median(rates(samples["sagax"]))
            / statistics.median(rates(samples["environment"])),
            "baseline_share_of_time_in_environment": statistics.median(rates(samples["baseline"]))
            / statistics.median(rates(samples["gymnax"])),
        }
        environments = [
            compared(
                samples,
                "environment",
                "gymnax",
                name="environment",
                ours="4 functional CartPoles of gymnasium, unrolled with random actions",
                reference="4 CartPoles of gymnax, the same",
                unit="environment steps/s",
            )
        ]
    return [
        compared(
            samples,
            "sagax",
            "baseline",
            name=name,
            ours=_described(ours, config),
            reference=reference,
            unit="environment steps/s",
            target=1.2,
            details={"steps": steps, "baseline_versions": theirs.versions} | compiling | shares,
        ),
        *environments,
    ]


def random_steps(config: ConfigDict, steps: int) -> Callable[[], int]:
    """A function that unrolls the environments of ``config`` under uniformly random actions."""
    from envs.rollout import start_unroll, unroll

    environment: Any = build_environment(config).pure
    batch, length = config.data.batch, config.data.length
    size = int(environment.spec.action_space.n)

    def policy(carry, observation, key):
        return jax.random.randint(key, (batch,), 0, size), carry, {}

    @jax.jit
    def run(key):
        def step(state, index):
            state, trajectory = unroll(
                environment, policy, state, jax.random.fold_in(key, index), length=length, initial_carry=()
            )
            return state, trajectory.rewards["env"].sum() + trajectory.next_observation.sum()

        return jax.lax.scan(step, start_unroll(environment, key, batch, ()), jax.numpy.arange(steps // batch // length))

    def piece() -> int:
        jax.block_until_ready(run(seed_key(0)))
        return steps

    return piece


def host(options: Options) -> list[Comparison]:
    """The host driver on gymnasium's CartPole-v1, 16 environments, beside stable-baselines3 and sbx; see
    ``host_comparisons``."""
    config = loaded("ppo_cartpole", **({"data__length": 32} if options.tiny else {}))
    return host_comparisons(options, "host", config, "ppo_cartpole", iterations=2 if options.tiny else 20, share=None)


def host_mujoco(options: Options) -> list[Comparison]:
    """The host driver on MuJoCo's Hopper, 8 environments with normalised observations and rewards, beside the same two
    (extra ``mujoco``); see ``host_comparisons``."""
    config = loaded("ppo_mujoco:hopper", **({"data__length": 32} if options.tiny else {}))
    iterations = 2 if options.tiny else 10
    return host_comparisons(options, "host_mujoco", config, "ppo_mujoco:hopper", iterations=iterations, share=0.6)


def host_comparisons(
    options: Options, case: str, config: ConfigDict, name: str, *, iterations: int, share: float | None
) -> list[Comparison]:
    """The host driver beside stable-baselines3 and sbx, and beside the environments alone.

    The target is for the faster of the two libraries. ``share_of_raw_environment`` compares training with the same
    environments under random actions alone: its ratio, whose target is ``share``, is the share of their speed that
    training keeps. ``adapter`` is the share that is kept where the environments are stepped through ``GymnasiumHost``
    and nothing learns.
    """
    identifier, batch, steps = config.environment.environment_id, config.data.batch, iterations * slots_of(config)
    theirs: dict[str, Baseline] = {}
    with contextlib.ExitStack() as stack:
        if has_baselines(options, case, "stable-baselines3 and sbx", "stable-baselines3 sbx-rl gymnasium[mujoco]"):
            for library in ("stable_baselines3", "sbx"):
                # Networks of 64 units: a second thread of torch costs more than it saves.
                job = baseline_job(config, library, steps, threads=1, normalise=bool(config.rewards))
                theirs[library] = stack.enter_context(baseline(str(options.baseline_python), job))
        driver = HostDriver(config, build_environment(config), Member(0, ""))
        stack.callback(driver.close)
        sagax = Chunks(driver, iterations, slots_of(config))
        vector = SyncVectorEnv([lambda: gymnasium.make(identifier)] * batch, autoreset_mode=AutoresetMode.SAME_STEP)
        stack.callback(vector.close)
        vector.reset(seed=0)
        adapter = GymnasiumHost(identifier, batch)
        stack.callback(adapter.close)
        adapter.reset(0)
        vector.action_space.seed(0)
        actions = [vector.action_space.sample() for _ in range(steps // batch)]

        def stepped(environments: SyncVectorEnv | GymnasiumHost) -> int:
            for action in actions:
                environments.step(action)
            return steps

        sides: dict[str, Side] = {
            "sagax": sagax,
            "raw": lambda: timed(lambda: stepped(vector)),
            "adapter": lambda: timed(lambda: stepped(adapter)),
        }
        sides |= {library: each.side for library, each in theirs.items()}
        samples = in_turns(sides, options.repeats, options.say)
    ours = _described(name, config)
    comparisons = [
        compared(
            samples,
            "sagax",
            library,
            name=library,
            ours=ours,
            reference=f"PPO of {library}, the same numbers",
            unit="environment steps/s",
            details={"baseline_versions": each.versions},
        )
        for library, each in theirs.items()
    ]
    if comparisons:
        # The faster of the two is the one to beat.
        fastest = max(comparisons, key=lambda comparison: comparison.report()["reference_median"])
        comparisons = [c._replace(target=2.0) if c is fastest else c for c in comparisons]
    return [
        *comparisons,
        compared(
            samples,
            "sagax",
            "raw",
            name="share_of_raw_environment",
            ours=ours,
            reference="the same environments alone, random actions",
            unit="environment steps/s",
            target=share,
        ),
        compared(
            samples,
            "adapter",
            "raw",
            name="adapter",
            ours=f"GymnasiumHost, {batch} environments of {identifier}, random actions",
            reference="gymnasium's SyncVectorEnv of them",
            unit="environment steps/s",
            target=0.7,
        ),
    ]


def _described(name: str, config: ConfigDict) -> str:
    data, agent = config.data, config.agent
    passes = f"{agent.epochs} epochs of {agent.minibatches} minibatches"
    return f"{name}, {data.batch} environments, {data.length} steps, {passes}"
