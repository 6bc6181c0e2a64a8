"""Tabular optimism: bounds against loops over policies, mixtures by hand, what is played against exact values."""

import itertools
from functools import cache, partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents import tabular_optimism
from agents.base import DataSpec
from agents.planning.dynamic_programming import policy_evaluation
from agents.tabular_optimism import Counts, tabular
from envs.base import EnvironmentSpec, Transition, UnsupportedSpaceError
from envs.native.tabular import TabularEnvironment, from_outcomes
from envs.rollout import episodes
from envs.wrappers import TimeLimit
from experiments.evaluators.base import acting_policy
from experiments.evaluators.played_policy import played_policy
from experiments.training.learn import initial_state, run_chunk
from rewards.base import chain

KEY = jax.random.key(0)
H, S, A = 2, 2, 2
# Probability, next state, reward, whether it ends. Action 1 pays less and moves.
MODEL = from_outcomes(
    [
        [[(0.7, 0, 0.5, False), (0.3, 1, 0.5, False)], [(1.0, 1, 0.2, False)]],
        [[(1.0, 1, 1.0, False)], [(0.5, 0, 0.0, False), (0.5, 1, 0.0, False)]],
    ],
    [0.6, 0.4],
)
ENVIRONMENT = TimeLimit(TabularEnvironment(MODEL), H)
DATA = DataSpec("episodes", H, 1)
STARTS = np.array([5, 3])
MOVES = np.array([[[3, 1, 0], [0, 2, 0]], [[0, 4, 0], [2, 1, 3]]])
REWARDS = np.array([[0.5, 0.2], [1.0, 0.0]])
BASELINE = (0.2, 0.8, 0.8, 0.2)


def counts(starts=STARTS, moves=MOVES, rewards=REWARDS):
    return Counts(jnp.asarray(starts), jnp.asarray(moves), jnp.asarray(rewards, jnp.float32))


@cache
def agent(**arguments):
    """An agent whose functions are compiled: one by one, their operations take longer."""
    made = tabular(ENVIRONMENT.spec, data=DATA, **arguments)
    return made._replace(init=jax.jit(made.init), update=jax.jit(made.update))


@partial(jax.jit, static_argnames=("scale", "reward_noise", "early_ends"))
def estimated(found, *, scale, reward_noise=True, early_ends=True):
    """The estimated model, its optimistic policy and the upper bound."""
    model = tabular_optimism._estimate(
        found, confidence=0.1, scale=scale, reward_noise=reward_noise, early_ends=early_ends
    )
    return model, *tabular_optimism._optimistic(model, H, early_ends)


def test_the_radii_are_those_of_the_formula():
    model, _, _ = estimated(counts(), scale=2.0)
    # State 1, action 1: 6 visits, 3 outcomes. log(3 * 2 * 2 / 0.1) = 4.787492, 2 log(e (1 + 6 / 2)) = 4.772589.
    np.testing.assert_allclose(model.move_radius[1, 1], 2 * np.sqrt((4.787492 + 4.772589) / 12), rtol=1e-6)
    # log(6 * 4 * 6 * 7 / 0.1) = 9.218309.
    np.testing.assert_allclose(model.reward_radius[1, 1], 2 * np.sqrt(9.218309 / 12), rtol=1e-6)
    # 8 episodes, 2 states: log(3 / 0.1) = 3.401197, log(e (1 + 8)) = 3.197225.
    np.testing.assert_allclose(model.start_radius, 2 * np.sqrt((3.401197 + 3.197225) / 16), rtol=1e-6)
    np.testing.assert_allclose(model.transition[1, 1], [2 / 6, 1 / 6])
    known, _, _ = estimated(counts(), scale=2.0, reward_noise=False, early_ends=False)
    assert (known.reward_radius == 0).all()
    np.testing.assert_allclose(known.move_radius[1, 1], 2 * np.sqrt((4.787492 + 1 + np.log(7)) / 12), rtol=1e-6)


def looped(policy, sign, *, scale, early_ends, moves=MOVES, starts=STARTS):
    """The bound of ``policy [H, S, A]``, or of greedy backups for ``None``, in plain loops; ``sign`` is 1 for the upper
    and -1 for the lower one."""
    outcomes, values = S + early_ends, np.zeros(S)
    for h in reversed(range(H)):
        span = max([*values, 0.0]) - min([*values, 0.0]) if early_ends else max(values) - min(values)
        found = np.zeros((S, A))
        for s, a in itertools.product(range(S), range(A)):
            n = moves[s, a].sum()
            if n == 0:
                bound = (H - h) if sign > 0 else 0.0
            else:
                beta = np.log(3 * S * A / 0.1) + (outcomes - 1) * np.log(np.e * (1 + n / (outcomes - 1)))
                noise = np.log(6 * S * A * n * (n + 1) / 0.1)
                radius = scale * (span * np.sqrt(beta / (2 * n)) + np.sqrt(noise / (2 * n)))
                bound = REWARDS[s, a] + moves[s, a, :S] @ values / n + sign * radius
            found[s, a] = min(max(bound, 0.0), H - h)
        values = found.max(-1) if policy is None else (policy[h] * found).sum(-1)
    k = starts.sum()
    beta = np.log(3 / 0.1) + (S - 1) * np.log(np.e * (1 + k / (S - 1)))
    bound = starts @ values / k + sign * scale * (max(values) - min(values)) * np.sqrt(beta / (2 * k))
    return min(max(bound, 0.0), H)


def deterministic():
    """All policies ``[H, S, A]`` that draw nothing."""
    for chosen in itertools.product(range(A), repeat=H * S):
        yield np.eye(A)[np.reshape(chosen, (H, S))]


@pytest.mark.parametrize("early_ends", [True, False])
@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_bounds_are_those_of_loops_over_every_policy(scale, early_ends):
    model, policy, upper = estimated(counts(), scale=scale, early_ends=early_ends)
    every = np.stack([*deterministic(), np.full((H, S, A), 0.5)])
    lower = jax.jit(partial(tabular_optimism._pessimistic, early_ends=early_ends))(model, jnp.asarray(every))
    expected = [looped(policy, -1, scale=scale, early_ends=early_ends) for policy in every]
    np.testing.assert_allclose(lower, expected, atol=1e-6)
    assert len({round(value, 4) for value in expected}) > 4
    greedy, chosen = (looped(one, 1, scale=scale, early_ends=early_ends) for one in (None, np.asarray(policy)))
    np.testing.assert_allclose([upper, upper], [greedy, chosen], atol=1e-6)
    # It is above the bound of values that do not count what is uncertain.
    assert upper > max(looped(policy, 1, scale=0.0, early_ends=early_ends) for policy in every)


def test_without_data_nothing_is_proved_and_actions_are_tried_in_their_order():
    nothing = agent().init(KEY)
    mixture = nothing.params["policy"]
    assert (float(mixture.lower), float(mixture.upper), float(mixture.share)) == (0, H, 1)
    assert (np.asarray(mixture.tables[1]).argmax(-1) == 0).all()
    tried = counts(moves=np.array([[[1, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]]))
    _, policy, upper = estimated(tried, scale=1.0)
    # In state 0, action 1 is untried; where every bound is cut at what an episode can pay, the higher one counts.
    assert np.asarray(policy).argmax(-1).tolist() == [[1, 0], [1, 0]] and upper == H


@pytest.mark.parametrize(
    ("safety", "lower", "threshold", "expected"),
    [
        ("step_mix", [0.2, 0.6, 1.0], 0.8, (2, 1, 0.5)),
        ("step_mix", [0.2, 0.7, 1.0], 0.6, (1, 0, 0.2)),
        ("step_mix", [0.9, 0.2, 1.0], 0.8, (0, 0, 1.0)),
        ("step_mix", [0.1, 0.2, 0.3], 0.8, (2, 1, 0.0)),
        ("step_mix", [0.1, 0.9, 0.3], 0.5, (1, 0, 0.5)),
        ("eps_mix", [0.2, 0.6, 1.0], 0.8, (2, 0, 0.25)),
        ("eps_mix", [0.9, 0.6, 0.3], 0.8, (2, 0, 1.0)),
        ("eps_mix", [0.2, 0.9, 0.7], 0.8, (2, 0, 0.0)),
        ("none", [0.2, 0.6, 1.0], 0.8, (2, 0, 1.0)),
        ("baseline", [0.9, 0.9, 0.9], 0.8, (2, 0, 0.0)),
    ],
)
def test_mixtures_by_hand(safety, lower, threshold, expected):
    first, second, share = tabular_optimism._mixed(safety, jnp.asarray(lower), threshold)
    assert (int(first), int(second)) == expected[:2]
    np.testing.assert_allclose(share, expected[2], atol=1e-6)


def test_candidates_change_from_baseline_to_optimism_at_their_step():
    cautious, optimistic = np.zeros((H, S, A), np.float32), jnp.ones((H, S, A))
    steps = np.asarray(tabular_optimism._candidates(cautious, optimistic))[..., 0, 0]
    assert steps.tolist() == [[1, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize("safety", ["step_mix", "eps_mix"])
def test_a_mixture_has_the_lower_bound_that_was_asked_for(safety):
    # The baseline takes what was tried often, optimism what was hardly tried: bounds are 1.15, 0.98 and 0.78.
    starts, moves = np.array([60, 40]), np.array([[[40, 20, 0], [0, 2, 0]], [[0, 60, 0], [2, 1, 3]]])
    threshold = 1.0
    made = agent(safety=safety, baseline=(1.0, 0.0, 1.0, 0.0), threshold=threshold, bonus_scale=0.3)
    state = made.init(KEY)._replace(counts=counts(starts, moves))
    nothing = trajectory(mask=[[0.0], [0.0]])
    mixture = made.update(state, nothing, KEY)[0].params["policy"]
    assert 0 < mixture.share < 1
    np.testing.assert_allclose(mixture.lower, threshold, atol=1e-6)
    each = [
        looped(np.asarray(table), -1, scale=0.3, early_ends=True, moves=moves, starts=starts)
        for table in mixture.tables
    ]
    assert each[1] < threshold < each[0]
    np.testing.assert_allclose((1 - mixture.share) * each[0] + mixture.share * each[1], threshold, atol=1e-5)
    # In how many steps the second policy is the optimistic one: in the last alone, or in both.
    assert (np.asarray(mixture.tables[1, :, 0]).argmax(-1) == 1).sum() == (1 if safety == "step_mix" else H)


def trajectory(**changes):
    """One episode of two steps; ``changes`` of its fields."""
    fields = {
        "observation": [[0], [1]],
        "action": [[1], [0]],
        "rewards": {"env": [[0.2], [0.8]]},
        "terminated": [[False], [False]],
        "truncated": [[False], [True]],
        "next_observation": [[1], [1]],
        "mask": [[1.0], [1.0]],
        "extras": {"episode_start": [[True], [False]]},
    } | changes
    arrays = jax.tree.map(jnp.asarray, fields, is_leaf=lambda leaf: isinstance(leaf, list))
    return Transition(**arrays)


def test_counts_are_of_real_steps_and_know_an_end_from_a_time_limit():
    made = agent()
    state, _ = made.update(made.init(KEY), trajectory(), KEY)
    assert state.counts.starts.tolist() == [1, 0]
    assert state.counts.moves.tolist() == [[[0, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 0]]]
    np.testing.assert_allclose(state.counts.rewards, [[0, 0.2], [0.8, 0]])
    ended = trajectory(terminated=[[True], [False]], mask=[[1.0], [0.0]], rewards={"env": [[0.6], [9.0]]})
    state, metrics = made.update(state, ended, KEY)
    assert state.counts.starts.tolist() == [2, 0]
    assert state.counts.moves.tolist() == [[[0, 0, 0], [0, 1, 1]], [[0, 1, 0], [0, 0, 0]]]
    np.testing.assert_allclose(state.counts.rewards, [[0, 0.4], [0.8, 0]], rtol=1e-6)
    assert metrics["rewards_outside"] == 0
    outside = trajectory(rewards={"env": [[0.6], [9.0]]})
    assert made.update(state, outside, KEY)[1]["rewards_outside"] == 0.5


def test_a_reward_that_is_always_the_same_stays_so():
    made = tabular(ENVIRONMENT.spec, data=DATA)

    def step(state, _):
        return made.update(state, trajectory(rewards={"env": [[0.37], [0.8]]}), KEY)[0], None

    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=20_000))(made.init(KEY))
    assert state.counts.rewards[0, 1] == np.float32(0.37) and state.counts.moves[0, 1, 1] == 20_000


@pytest.mark.parametrize("greedy", [False, True])
def test_what_is_played_has_the_value_of_the_mixture(greedy):
    made = agent(safety="eps_mix", baseline=BASELINE, threshold=0.3)
    random = np.random.default_rng(0).dirichlet(np.ones(A), (2, H, S)).astype(np.float32)
    mixture = made.init(KEY).params["policy"]._replace(tables=jnp.asarray(random), share=jnp.float32(0.7))
    played = random if not greedy else np.eye(A, dtype=np.float32)[random.argmax(-1)]
    share = 1.0 if greedy else 0.7
    first, second = (MODEL.initial @ policy_evaluation(MODEL, each, horizon=H).values for each in played)
    count = 20_000

    @jax.jit
    def play(key):
        policy = acting_policy(made, {"policy": mixture}, greedy=greedy)
        return episodes(
            ENVIRONMENT, policy, key, length=H, batch=count, group_size=1, initial_carry=made.initial_carry(count)
        )

    found = play(KEY)
    returns = np.asarray(found.rewards["env"]).sum(0)
    expected = (1 - share) * first + share * second
    assert abs(returns.mean() - expected) < 4 * returns.std() / np.sqrt(count)
    assert abs(first - second) > 0.1
    # The probabilities that it says are those of its first actions.
    start, carry = found.observation[0], made.initial_carry(count)
    chances = made.action_probabilities({"policy": mixture}, carry, start, greedy=greedy)
    for state in range(S):
        here = np.asarray(found.observation[0]) == state
        drawn = np.asarray(found.action[0])[here].mean()
        np.testing.assert_allclose(drawn, np.asarray(chances)[here][0, 1], atol=4 * 0.5 / np.sqrt(here.sum()))
    np.testing.assert_allclose(chances.sum(-1), 1, rtol=1e-6)


def run_of(made, threshold):
    """``(seed) -> metrics`` of 400 episodes, one per iteration, with the exact value of each."""
    context = SimpleNamespace(
        environment=ENVIRONMENT, spec=ENVIRONMENT.spec, agent=made,
        sections={"agent": {"threshold": threshold, "baseline": BASELINE}},
    )  # fmt: skip
    watch = played_policy(context).watch

    def run(seed):
        state = initial_state(made, chain(), jax.random.key(seed))
        return run_chunk(ENVIRONMENT, made, chain(), state, jnp.int32(0), iterations=400, watch=watch)

    return run


@pytest.mark.parametrize("safety", ["none", "step_mix", "eps_mix"])
def test_bounds_hold_and_safe_mixtures_stay_above_the_threshold(safety):
    # The baseline's value is 1.21, and the best policy's 1.52.
    threshold = 1.1
    made = agent(
        safety=safety, baseline=BASELINE, threshold=threshold, reward_noise=False, early_ends=False, bonus_scale=1.0
    )
    state, metrics = jax.jit(jax.vmap(run_of(made, threshold)))(jnp.arange(30))
    # It may fail in 3 of 30 runs.
    assert (metrics["bounds_failed"] > 0).sum() <= 3
    assert (state.agent.counts.starts.sum(-1) == 400).all()
    if safety == "none":
        assert (metrics["below"] > 0).all() and (metrics["max/shortfall"] > 0.1).all()
    else:
        assert (metrics["below"] == 0).all() and (metrics["max/shortfall"] == 0).all()
        # Not by playing the baseline for ever.
        assert (metrics["agent/share"] > 0.05).all()


def test_a_seed_under_vmap_equals_its_single_run_and_nothing_compiles_twice():
    made = agent(safety="step_mix", baseline=BASELINE, threshold=1.1)
    run = run_of(made, 1.1)
    together, _ = jax.jit(jax.vmap(run))(jnp.arange(3))
    single = jax.jit(run)
    for seed in range(3):
        alone, _ = single(jnp.int32(seed))
        np.testing.assert_array_equal(alone.agent.counts.moves, together.agent.counts.moves[seed])
        np.testing.assert_allclose(alone.agent.params["policy"].tables, together.agent.params["policy"].tables[seed])
    assert single._cache_size() == 1
    act, update = jax.jit(made.act), made.update
    state, carry, observation = made.init(KEY), made.initial_carry(1), jnp.zeros(1, jnp.int32)
    for key in jax.random.split(KEY, 3):
        _, carry, _ = act(state.params, carry, observation, key)
        state, _ = update(state, trajectory(), key)
    assert act._cache_size() == update._cache_size() == 1


def test_spaces_may_start_elsewhere():
    spec = EnvironmentSpec(spaces.Discrete(S, start=3), spaces.Discrete(A, start=-1), max_episode_steps=H)
    made = tabular(spec, data=DATA)
    made = made._replace(init=jax.jit(made.init), update=jax.jit(made.update))
    moved = trajectory(observation=[[3], [4]], next_observation=[[4], [4]], action=[[0], [-1]])
    state, _ = made.update(made.init(KEY), moved, KEY)
    plain, _ = agent().update(agent().init(KEY), trajectory(), KEY)
    jax.tree.map(np.testing.assert_array_equal, state, plain)
    action, _, _ = made.act(state.params, made.initial_carry(1), jnp.asarray([3]), KEY)
    assert int(action[0]) in (-1, 0)


BOX = EnvironmentSpec(spaces.Box(0, 1, (1,), np.float32), spaces.Discrete(2), max_episode_steps=2)
ENDLESS = EnvironmentSpec(spaces.Discrete(2), spaces.Discrete(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"safety": "stepmix"}, "did you mean 'step_mix'"),
        ({"safety": "step_mix"}, "threshold=None: safety='step_mix' needs"),
        ({"safety": "eps_mix", "threshold": 2.5}, "threshold=2.5: 2 steps pay from 0 to 2"),
        ({"baseline": "best"}, "unknown baseline 'best'"),
        ({"baseline": (0.5, 0.5)}, r"baseline has shape \(2,\)"),
        ({"baseline": ((0.5, 0.5), (0.4, 0.2))}, "sum to 0.6, expected 1"),
        ({"baseline": (1.5, -0.5, 0.5, 0.5)}, "-0.5 is no probability"),
        ({"data": DataSpec("episodes", 3, 1)}, "expected 'episodes' of length 2"),
        ({"data": DataSpec("unroll", 2, 1)}, "data.kind='unroll'"),
        ({"spec": ENDLESS}, "no time limit"),
        ({"spec": BOX}, "observation space is Box"),
    ],
)
def test_what_it_cannot_serve_is_refused(arguments, message):
    given = {"spec": ENVIRONMENT.spec, "data": DATA} | arguments
    with pytest.raises((ValueError, UnsupportedSpaceError), match=message):
        tabular(given.pop("spec"), **given)
