"""The learn step and the two drivers: members, agreement, compilations, streams, refused updates, counters."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.networks.sequence import NetworkConfig
from envs.base import NonFiniteEnvironmentError
from experiments.assembly import build, registry
from experiments.assembly.build import EVALUATION_SEED, TEST_SEED, build_environment, build_parts
from experiments.assembly.members import Member
from experiments.commands import run
from experiments.errors import UserError
from experiments.evaluators import base as evaluators_base
from experiments.training import drivers, learn, train
from experiments.training.checkpoint import Checkpoints
from experiments.training.host_driver import HostDriver
from experiments.training.keys import evaluation_key
from experiments.training.progress import progress
from experiments.training.scan_driver import ScanDriver
from experiments.training.stopping import StopRequested
from rewards.base import RewardTransform, chain, stateless, write_channel
from rewards.curiosity.count_bonus import count_bonus
from rewards.curiosity.latent_prediction import byol_explore
from rewards.curiosity.rnd import rnd
from tests.experiments import corridor

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(autouse=True)
def source(monkeypatch):
    corridor.register(monkeypatch)


@pytest.fixture
def compilations():
    """A list that grows by one for every program that XLA compiles or reads from the cache."""
    found = []

    def listen(event, duration, **details):
        if event == COMPILED:
            found.append(details)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def scan_driver(config, *seeds):
    return ScanDriver(config, build_environment(config), corridor.members(*seeds))


def host_driver(config, seed=0):
    return HostDriver(config, build_environment(config), corridor.members(seed)[0])


def member_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_a_member_of_a_program_is_the_single_run_of_its_seed():
    config = corridor.with_critic()
    together = scan_driver(config, 0, 1)
    both = together.start()
    alone = [scan_driver(config, seed) for seed in (0, 1)]
    states = [driver.start() for driver in alone]
    for index, state in enumerate(states):
        corridor.assert_same_arrays(member_of(both, index), member_of(state, 0))
    both, metrics = together.chunk(both, 0, 2)
    evaluated = together.evaluate(both)
    for index, (driver, state) in enumerate(zip(alone, states, strict=True)):
        state, single = driver.chunk(state, 0, 2)
        for found, expected in zip(
            corridor.arrays(member_of(both, index)), corridor.arrays(member_of(state, 0)), strict=True
        ):
            # A batched matrix product and a vectorised tanh or log-softmax round differently from single ones.
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)
        for name, value in single.items():
            np.testing.assert_allclose(metrics[name][index], value[0], rtol=1e-5, atol=1e-6, err_msg=name)
        for name, value in driver.evaluate(state).items():
            np.testing.assert_allclose(evaluated[name][index], value[0], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["unroll", "episodes"])
def test_both_drivers_learn_the_same_in_an_environment_without_chance(kind):
    config = corridor.with_critic() if kind == "unroll" else corridor.process(form="residual")
    config.environment = {"kind": "corridor", "fixed": True}
    scan = scan_driver(config, 3)
    config.environment.kind = "corridor_host"
    host = host_driver(config, 3)
    one, other = scan.start(), host.start()
    corridor.assert_same_arrays(member_of(one.agent, 0), other.agent)
    one, by_scan = scan.chunk(one, 0, 3)
    other, by_host = host.chunk(other, 0, 3)
    assert by_scan.keys() == by_host.keys()
    # Every action was the same: what is counted agrees exactly, what is computed to rounding.
    for name in ("sum/env_steps", "sum/episodes", "sum/return", "sum/length"):
        assert by_scan[name] == by_host[name], name
    assert by_scan["sum/episodes"] > 0
    for name in by_scan:
        np.testing.assert_allclose(by_scan[name], by_host[name], rtol=1e-4, atol=1e-5, err_msg=name)
    found, expected = corridor.arrays(other.agent.params), corridor.arrays(member_of(one.agent.params, 0))
    for one_leaf, other_leaf in zip(found, expected, strict=True):
        np.testing.assert_allclose(one_leaf, other_leaf, rtol=1e-5, atol=1e-6)
    host.close()


def test_the_host_driver_learns_without_jit():
    """A user may debug with jax.disable_jit, which leaves numpy arrays where jit would return jax arrays."""
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    config.data.length = config.data.batch = 2
    config.agent.epochs = config.agent.minibatches = 1
    driver = host_driver(config)
    state = driver.start()
    before = corridor.arrays(state.agent.params)
    with jax.disable_jit():
        state, metrics = driver.chunk(state, 0, 1)
    assert metrics["sum/env_steps"] == 4
    assert any((old != new).any() for old, new in zip(before, corridor.arrays(state.agent.params), strict=True))
    driver.close()


@pytest.mark.parametrize("make", [scan_driver, host_driver])
def test_a_second_chunk_compiles_nothing(make, compilations):
    config = corridor.with_critic()
    config.environment.kind = "corridor" if make is scan_driver else "corridor_host"
    driver = make(config)
    state = driver.start()
    state, _ = driver.chunk(state, 0, 2)
    driver.evaluate(state)
    assert compilations
    compilations.clear()
    state, _ = driver.chunk(state, 2, 2)
    driver.evaluate(state)
    assert compilations == []
    programs = list(driver._chunks.values()) if make is scan_driver else [driver._programs.act, driver._programs.learn]
    # ``act`` is compiled for the batch of the rollout and for that of the evaluation.
    expected = [1] if make is scan_driver else [2, 1]
    assert [program._cache_size() for program in programs] == expected
    driver.close()


def test_the_seeds_of_a_host_environment_compile_once(compilations):
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    states = []
    for make in drivers.drivers(config, build_environment(config), [corridor.members(0, 1)]):
        driver = make()
        state, _ = driver.chunk(driver.start(), 0, 2)
        driver.evaluate(state)
        driver.close()
        states.append(state.agent.params)
        if len(states) == 1:
            assert compilations
            compilations.clear()
    # All but what the environment, a host around JAX, compiles itself.
    assert {program["fun_name"] for program in compilations} <= {"jit(reset)", "jit(step)"}
    # Each is the run of its own seed.
    alone, _ = (single := host_driver(config, 1)).chunk(single.start(), 0, 2)
    single.close()
    corridor.assert_same_arrays(states[1], alone.agent.params)
    with pytest.raises(AssertionError):
        corridor.assert_same_arrays(states[0], states[1])


def test_every_seed_is_evaluated_on_episodes_of_its_own_apart_from_training():
    config = corridor.without_critic()
    config.evaluators.episodes.count = 64
    driver = scan_driver(config, 0, 1)
    state = driver.start()
    # The parameters of member 0 under both seeds: what differs is the draw.
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), state.agent.params)
    state = state._replace(agent=state.agent._replace(params=same))
    found = driver.evaluate(state)
    assert found.keys() == {"return", "length"}
    assert found["length"][0] != found["length"][1]
    # The evaluation does not use the training keys.
    other = driver.evaluate(state._replace(key=jax.vmap(jax.random.key)(jnp.asarray([7, 8]))))
    for name, values in found.items():
        np.testing.assert_array_equal(values, other[name])


def test_a_host_evaluates_every_seed_on_episodes_of_its_own(monkeypatch):
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    started = []
    original = evaluators_base.episodes_host

    def recording(*arguments, **keywords):
        started.append(keywords["seeds"])
        return original(*arguments, **keywords)

    monkeypatch.setattr(evaluators_base, "episodes_host", recording)
    for seed in (0, 1, 0):
        driver = host_driver(config, seed)
        driver.evaluate(driver.start())
        driver.close()
    first, other, again = started
    assert first == again and not set(first) & set(other) and len(set(first)) == 4


def test_evaluation_on_a_host_keeps_no_observations(monkeypatch):
    config = corridor.with_critic()
    config.environment.kind = "corridor_host"
    kept = []
    original = evaluators_base.episodes_host

    def recording(*arguments, **keywords):
        kept.append(original(*arguments, **keywords))
        return kept[-1]

    monkeypatch.setattr(evaluators_base, "episodes_host", recording)
    driver = host_driver(config)
    state = driver.start()
    lean = driver.evaluate(state)
    assert [trajectory.observation for trajectory in kept] == [()]

    def whole(*arguments, **keywords):
        return original(*arguments, **keywords | {"observations": True})

    monkeypatch.setattr(evaluators_base, "episodes_host", whole)
    assert driver.evaluate(state) == lean
    driver.close()


def test_streams_of_a_key_are_distinct():
    names = range(7)
    assert names == range(learn.AGENT_UPDATE + 1)
    seeds, indices = range(3), range(200)
    keys = {
        (seed, name, index): tuple(np.asarray(data).tolist())
        for seed in seeds
        for name in names
        for index, data in zip(
            indices,
            jax.random.key_data(
                jax.vmap(learn.stream, in_axes=(None, None, 0))(jax.random.key(seed), name, jnp.arange(len(indices)))
            ),
            strict=True,
        )
    }
    assert len(set(keys.values())) == len(keys) == 3 * 7 * 200
    others = [jax.random.key(seed) for seed in seeds]
    others += [evaluation_key(seed, stream) for seed in seeds for stream in (EVALUATION_SEED, TEST_SEED)]
    other_data = [tuple(jax.random.key_data(key).tolist()) for key in others]
    assert len(set(other_data)) == len(others) and not set(other_data) & set(keys.values())


@pytest.fixture
def rejecting(monkeypatch):
    """``rejecting(1, 2)`` makes the agent's updates of these iterations non-finite."""
    original = learn.learn

    def choose(*iterations):
        def learn_with_nan(agent, reward, state, trajectory, iteration):
            bad = jnp.isin(iteration, jnp.asarray(iterations))

            def update(agent_state, relabelled, key):
                new, metrics = agent.update(agent_state, relabelled, key)
                params = jax.tree.map(lambda leaf: jnp.where(bad, jnp.nan, leaf), new.params)
                return new._replace(params=params), metrics | {"poisoned": jnp.where(bad, jnp.nan, 1.0)}

            return original(agent._replace(update=update), reward, state, trajectory, iteration)

        monkeypatch.setattr(learn, "learn", learn_with_nan)

    return choose


def run_of(monkeypatch, config, runs, *arguments):
    monkeypatch.setattr(registry, "load", lambda name: corridor.loaded(config))
    monkeypatch.setattr(run, "enable_compilation_cache", lambda: None)
    return run.main(["corridor", f"--runs={runs}", *arguments])


def test_one_or_two_rejected_updates_do_not_stop_a_run(rejecting, monkeypatch, tmp_path, capsys):
    config = corridor.without_critic()
    config.iterations = 6
    rejecting(0, 2, 3)
    assert run_of(monkeypatch, config, tmp_path) == 0
    rows = corridor.rows_of(tmp_path / "corridor" / "default")
    assert [row["train/rejected_updates"] for row in rows] == [1, 2, 0]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_three_rejected_updates_in_a_row_stop_a_run(rejecting, monkeypatch, tmp_path, capsys):
    config = corridor.without_critic()
    config.iterations = 8
    # Across the border of two chunks: the count is a part of the state.
    rejecting(3, 4, 5)
    assert run_of(monkeypatch, config, tmp_path) == 2
    errors = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert len(errors) == 1
    stopped = "3 updates in a row were not finite, seeds [0], iterations 4 to 5: try a smaller agent.learning_rate; "
    assert stopped in errors[0]
    assert errors[0].endswith("program_0, iteration 4")
    folder = tmp_path / "corridor" / "default"
    assert [row["iteration"] for row in corridor.rows_of(folder)] == [2, 4]
    found = corridor.checkpoint_of(folder, scan_driver(config, 0).template())
    assert found.iteration == 4 and found.state.rejected.tolist() == [1]
    assert all(np.all(np.isfinite(leaf)) for leaf in corridor.arrays(found.state.agent))


@pytest.fixture
def rewarding(monkeypatch):
    """``rewarding(NAME=transform)`` gives every run a chain of these transforms, whatever its configuration says."""

    def choose(**transforms):
        initial_state, learn_step = learn.initial_state, learn.learn
        monkeypatch.setattr(
            learn, "initial_state", lambda agent, _, *a, **k: initial_state(agent, chain(**transforms), *a, **k)
        )
        monkeypatch.setattr(learn, "learn", lambda agent, _, *a: learn_step(agent, chain(**transforms), *a))

    return choose


def test_a_channel_that_is_not_finite_is_blamed_on_the_transform_that_wrote_it(
    rewarding, monkeypatch, tmp_path, capsys
):
    def init(key, **extra):
        return jnp.zeros((), jnp.int32)

    def update(state, trajectory, key, **extra):
        return state + 1, {}

    def apply(state, trajectory, **extra):
        # Infinite from the fourth iteration on.
        return write_channel(trajectory, "made", trajectory.mask / jnp.where(state > 3, 0.0, 1.0)), {}

    later = stateless(lambda t: write_channel(t, "env", t.rewards["env"] + 0.0 * t.rewards["made"]))
    rewarding(first=stateless(lambda t: t), broken=RewardTransform(init, apply, update), later=later)
    config = corridor.without_critic()
    config.iterations = 8
    assert run_of(monkeypatch, config, tmp_path) == 2
    [error] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    assert "3 updates in a row were not finite, seeds [0], iterations 4 to 5: " in error
    assert "the reward transform 'broken' wrote NaN or infinity into 'made' in iteration 5; the last good" in error
    rows = corridor.rows_of(tmp_path / "corridor" / "default")
    assert not [name for row in rows for name in row if "non_finite" in name]


def test_a_channel_of_another_shape_is_one_message_before_anything_is_learned(rewarding, monkeypatch, tmp_path, capsys):
    rewarding(broken=stateless(lambda t: write_channel(t, "env", jnp.sum(t.rewards["env"], axis=0))))
    config = corridor.without_critic()
    assert run_of(monkeypatch, config, tmp_path / "runs") == 2
    assert not (tmp_path / "runs").exists()
    [error] = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error:")]
    length, batch = config.data.length, config.data.batch
    expected = f"has shape ({batch},): expected [T, B] = ({length}, {batch}); the last good checkpoint: there is no"
    assert f"the channel 'env', written by the reward transform 'broken', {expected}" in error


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        ({}, "try a smaller agent.learning_rate"),
        ({"agent": 5, "channel/a/x": -1, "state/a": -1}, "try a smaller agent.learning_rate"),
        # A channel that was not finite once, earlier, did not cause the last steps to be undone.
        ({"agent": 5, "channel/a/x": 2, "state/a": 2}, "try a smaller agent.learning_rate"),
        (
            {"agent": 5, "channel/a/x": -1, "state/a": 5},
            "transform 'a' learned NaN or infinity in iteration 5: try a smaller learning rate in rewards.a",
        ),
        (
            {"agent": 5, "channel/a/cost/x": 5, "state/a": 5, "state/b": -1},
            "transform 'a' wrote NaN or infinity into 'cost/x' in iteration 5",
        ),
    ],
)
def test_an_undone_step_has_a_cause(found, cause):
    metrics = {f"max/non_finite/{name}": np.asarray([-1, value]) for name, value in found.items()}
    assert learn.cause_of_rejection(metrics | {"max/rejected": np.asarray([0, 3])}, 1).endswith(cause)


def test_a_rejected_update_leaves_the_state(rejecting):
    rejecting(0, 1)
    driver = scan_driver(corridor.without_critic(), 0)
    start = driver.start()
    before = corridor.arrays(start.agent)
    state, metrics = driver.chunk(start, 0, 2)
    corridor.assert_same_arrays(corridor.arrays(state.agent), before)
    assert metrics["sum/rejected"].tolist() == metrics["max/rejected"].tolist() == [2]
    state, metrics = driver.chunk(state, 2, 2)
    assert metrics["max/rejected"].tolist() == [0] and state.rejected.tolist() == [0]
    with pytest.raises(AssertionError):
        corridor.assert_same_arrays(corridor.arrays(state.agent), before)


def replaying():
    return scan_driver(corridor.process(form="residual", replay=3, groups_per_update=1), 0)


def test_the_learning_data_of_a_reward_are_not_copied():
    driver = replaying()
    template = driver.template()
    text = driver._make_chunk(2).lower(template, driver._values, jnp.int32(0)).as_text()
    store = template.reward["implicit_prm"].replay.observation
    shape = "x".join(map(str, store.shape)) + "xf32"
    lines = [line for line in text.splitlines() if shape in line]
    assert lines and not [line for line in lines if "stablehlo.select" in line or "is_finite" in line]


def test_an_undone_step_leaves_nothing_in_the_learning_data_of_a_reward(rejecting):
    rejecting(1)
    driver = replaying()
    before, _ = driver.chunk(driver.start(), 0, 1)
    old = jax.tree.map(jnp.copy, before.reward["implicit_prm"].replay)
    undone, metrics = driver.chunk(before, 1, 1)
    assert metrics["sum/rejected"].tolist() == [1]
    left = undone.reward["implicit_prm"]
    restored = jax.tree.map(jnp.copy, undone._replace(reward={"implicit_prm": left._replace(replay=old)}))
    # There are data that were not learned from.
    with pytest.raises(AssertionError):
        corridor.assert_same_arrays(left.replay, old)
    corridor.assert_same_arrays(driver.chunk(undone, 2, 1)[0], driver.chunk(restored, 2, 1)[0])


def test_a_rejected_update_leaves_what_rewards_remember_of_the_environments():
    config = corridor.with_critic()
    source = build_environment(config)
    agent, _, _ = build_parts(config, source.spec)
    shared = {"data": agent.data, "network_config": NetworkConfig(hidden=(4,))}
    sizes = {"embedding_size": 2, "memory_size": 2, "hidden_size": 2}
    reward = chain(
        visits=count_bonus(source.spec, data=agent.data, identify="hash", bits=6, episodic=True),
        distillation=rnd(source.spec, embedding_size=2, **shared),
        latent=byol_explore(source.spec, **sizes, **shared),
    )

    def same(found, expected):
        pairs = zip(corridor.arrays(found), corridor.arrays(expected), strict=True)
        return all(one.tobytes() == other.tobytes() for one, other in pairs)

    def spoilt(tree, number):
        return jax.tree.map(lambda leaf: leaf + number, tree)

    @jax.jit
    def step(state, iteration, bad, worse):
        """A step of the loop; adds ``bad`` to the agent's new parameters and ``worse`` to a running return."""

        def update_agent(*arguments):
            new, metrics = agent.update(*arguments)
            return new._replace(params=spoilt(new.params, bad)), metrics

        def update_reward(*arguments, **extra):
            new, metrics = reward.update(*arguments, **extra)
            returns = new["distillation"]
            return new | {"distillation": returns._replace(running=returns.running + worse)}, metrics

        state, trajectory = learn.collect(source.pure, agent, state, iteration)
        parts = agent._replace(update=update_agent), reward._replace(update=update_reward)
        return learn.learn(*parts, state, trajectory, iteration)[0]

    @jax.jit
    def begin():
        return learn.start_rollout(source.pure, agent, learn.initial_state(agent, reward, jax.random.key(0)))

    state = step(begin(), 0, 0.0, 0.0)
    good, undone, lost = (step(state, 1, *spoil) for spoil in ((0.0, 0.0), (jnp.nan, 0.0), (jnp.nan, jnp.inf)))
    assert [each.rejected.tolist() for each in (good, undone, lost)] == [0, 1, 1]
    remembered = {"visits": ("counts", "entering"), "distillation": ("running",), "latent": ("entering", "leaving")}
    for name, fields in remembered.items():
        old, new, found = (each.reward[name] for each in (state, good, undone))
        changed = {field for field in old._fields if not same(getattr(new, field), getattr(old, field))}
        assert changed >= set(fields) and (changed > set(fields)) == (name != "visits")
        for field in old._fields:
            assert same(getattr(found, field), getattr(new if field in fields else old, field)), (name, field)
    # A memory that is not finite would cause every later step to be undone.
    corridor.assert_same_arrays(lost.reward, state.reward)
    for each in (undone, lost):
        corridor.assert_same_arrays(each.agent, state.agent)
        corridor.assert_same_arrays(each.rollout, good.rollout)


@pytest.mark.parametrize("kind", ["corridor", "corridor_host"])
def test_an_environment_that_returns_nan_is_one_message(kind, monkeypatch, tmp_path, capsys):
    config = corridor.with_critic()
    config.evaluate_every = 1
    # One episode goes on over the iterations of 4 steps; its step 9 is in the third, and no evaluation gets there.
    config.environment, config.evaluators.episodes.cut = {"kind": kind, "limit": 100, "poison": 9}, 4
    config.data.batch = 2
    monkeypatch.setattr(corridor.Corridor, "_observation", staticmethod(lambda state: jnp.zeros(2)))
    original = corridor.Corridor.step

    def endless(self, key, state, action):
        return original(self, key, state, action * 0)

    monkeypatch.setattr(corridor.Corridor, "step", endless)
    assert run_of(monkeypatch, config, tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [one for one in lines if one.startswith("error:")]
    assert len(errors) == 1 and not any("Traceback" in one for one in lines)
    assert "NaN" in errors[0] or "nan" in errors[0]
    assert errors[0].endswith("program_0, iteration 2")
    assert [row["iteration"] for row in corridor.rows_of(tmp_path / "corridor" / "default")] == [1, 2]


def test_a_program_names_the_seeds_whose_environment_is_not_finite():
    config = corridor.with_critic()
    config.environment = {"kind": "corridor", "poison": 0}
    driver = scan_driver(config, 4, 5)
    with pytest.raises(NonFiniteEnvironmentError, match=r"iterations 0 to 0, seeds \[4, 5\]"):
        driver.chunk(driver.start(), 0, 1)


def test_steps_are_counted_in_python_and_are_the_sum_of_masks(monkeypatch, tmp_path):
    config = corridor.without_critic()
    masks = []
    original = learn.collect

    def recording(*arguments, **keywords):
        state, trajectory = original(*arguments, **keywords)
        jax.debug.callback(lambda mask: masks.append(int(mask.sum())), trajectory.mask)
        return state, trajectory

    monkeypatch.setattr(learn, "collect", recording)
    assert run_of(monkeypatch, config, tmp_path) == 0
    jax.effects_barrier()
    rows = corridor.rows_of(tmp_path / "corridor" / "default")
    assert len(masks) == 4
    sums = list(itertools.accumulate(masks))
    # Episodes end at the goal too, so that some steps are padding.
    assert sums[-1] < 4 * 4 * 8
    assert [row["env_steps"] for row in rows] == [sums[1], sums[3]]


def test_the_count_of_steps_has_no_largest_number(monkeypatch, tmp_path):
    class Counting:
        """A driver of 2**31 steps a chunk."""

        members, compiles_ahead = corridor.members(0), False

        def start(self):
            return {"nothing": jnp.zeros(1)}

        def chunk(self, state, first_iteration, iterations):
            metrics = {"sum/env_steps": 2**31 - 1, "sum/episodes": 0.0, "sum/rejected": 0, "max/rejected": 0}
            return state, {
                name: np.asarray([value]) for name, value in (metrics | {"sum/non_finite_environments": 0}).items()
            }

        def evaluate(self, state):
            return {"return": np.zeros(1)}

        def snapshot(self):
            return None

        def close(self):
            pass

    monkeypatch.setattr(train, "drivers", lambda *arguments: [Counting])
    config = corridor.without_critic()
    config.iterations, config.evaluate_every = 3, 1
    assert run_of(monkeypatch, config, tmp_path) == 0
    rows = corridor.rows_of(tmp_path / "corridor" / "default")
    assert [row["env_steps"] for row in rows] == [n * (2**31 - 1) for n in (1, 2, 3)]
    assert all(type(row["env_steps"]) is int for row in rows)


def test_a_stopped_member_learns_nothing_more():
    driver = scan_driver(corridor.process(form="residual"), 0, 1)
    state = driver.start()
    state = state._replace(rejected=jnp.asarray([learn.REJECTED_LIMIT, 0], jnp.int32))
    before = [jax.tree.map(np.asarray, member_of((state.agent, state.reward), index)) for index in (0, 1)]
    state, metrics = driver.chunk(state, 0, 2)
    assert state.rejected.tolist() == metrics["max/rejected"].tolist() == [learn.REJECTED_LIMIT, 0]
    corridor.assert_same_arrays(member_of((state.agent, state.reward), 0), before[0])
    with pytest.raises(AssertionError):
        corridor.assert_same_arrays(member_of((state.agent, state.reward), 1), before[1])


@pytest.mark.parametrize("part", ["environment", "evaluation"])
def test_of_a_sweep_only_the_member_that_is_not_finite_stops(part, monkeypatch, tmp_path, capsys):
    class Uneven:
        """A driver of two members; the second is not finite in iteration 1."""

        members, compiles_ahead = (Member(0, "good"), Member(0, "bad")), False

        def start(self):
            return learn.RunState(jnp.zeros(2), (), (), (), jnp.zeros(2, jnp.int32))

        def chunk(self, state, first_iteration, iterations):
            counts = {"sum/env_steps": [1, 1], "sum/episodes": [0, 0], "sum/rejected": [0, 0]}
            broken = [0, int(part == "environment" and first_iteration == 1)]
            metrics = counts | {"max/rejected": state.rejected, "sum/non_finite_environments": broken}
            return state, {name: np.asarray(value) for name, value in metrics.items()}

        def evaluate(self, state):
            return {"return": np.asarray([1.0, np.nan if part == "evaluation" else 5.0])}

        def snapshot(self):
            return None

        def close(self):
            pass

    monkeypatch.setattr(train, "drivers", lambda *arguments: [Uneven])
    config = corridor.without_critic()
    config.iterations, config.evaluate_every = 3, 1
    with progress(1, "sweep") as reporter:
        outcome = train.train(
            config, "corridor", [Uneven.members], tmp_path, reporter, StopRequested(), source=(), sweep=True
        )
    good, bad = ([row for row in outcome.rows if row["variant"] == name] for name in ("good", "bad"))
    assert outcome.finished and not any("train/stopped" in row for row in good)
    assert [row.get("train/stopped") for row in bad] == ([1, 1, 1] if part == "evaluation" else [None, 1, 1])
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stopped:")]
    what = {
        "environment": "the environment returned NaN or infinity",
        "evaluation": "has a 'return' that is not finite",
    }
    assert line.startswith("stopped: bad, seed 0: ") and what[part] in line
    # The mean of the members that continue chooses the best checkpoint.
    found = Checkpoints(tmp_path / "checkpoints" / "program_0", read_only=True)
    assert found.restore(Uneven().start()).state.rejected.tolist() == [0, learn.REJECTED_LIMIT]
    assert found.best() == (1 if part == "environment" else 3)
    found.close()


def test_a_host_environment_has_no_expert():
    config = corridor.without_critic()
    config.environment.kind = "corridor_host"
    config.warm_start.demonstrations = 4
    with pytest.raises(UserError, match=r"warm_start.demonstrations"):
        host_driver(config)


def test_members_are_split_into_programs():
    config = corridor.without_critic()
    source = build.build_environment(config)
    made = drivers.drivers(config, source, [corridor.members(0, 1), corridor.members(2)])
    assert [[member.seed for member in make().members] for make in made] == [[0, 1], [2]]
    config.environment.kind = "corridor_host"
    made = drivers.drivers(config, build.build_environment(config), [corridor.members(0, 1)])
    assert [[member.seed for member in make().members] for make in made] == [[0], [1]]
