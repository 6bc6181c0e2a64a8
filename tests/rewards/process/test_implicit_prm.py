"""Implicit process rewards: the papers' identities by enumeration, the effect of training, and every option."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.estimators import group_outcome
from agents.networks.base import Head
from agents.networks.sequence import NetworkConfig, network
from agents.policy_gradient import policy_gradient
from agents.state import without_aliases
from envs.base import EnvironmentSpec, Transition
from envs.native.probes import ChainRecall
from envs.rollout import episodes
from experiments.evaluators.base import acting_policy
from rewards.process.implicit_prm import LOSSES, Rollouts, _take_groups, _take_kept_groups, implicit_prm

KEY = jax.random.key(0)
# These programs run for milliseconds; compiling them takes the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
BETA = 0.3
FEED_FORWARD, RECURRENT = NetworkConfig(hidden=(4,)), NetworkConfig(hidden=(), recurrent_size=3)

# --- a small random environment and all its trajectories -----------------------------------------------

NUM_STATES, NUM_ACTIONS, LENGTH, END = 3, 2, 3, 2
ENVIRONMENT = EnvironmentSpec(spaces.Box(0, 1, (NUM_STATES,), np.float32), spaces.Discrete(NUM_ACTIONS), LENGTH)
_RNG = np.random.default_rng(0)
BEHAVIOUR = _RNG.normal(size=(NUM_STATES, NUM_ACTIONS))
# Probabilities of the next state by state (0 or 1) and action; state 2 ends the episode.
CHANCE = _RNG.dirichlet(np.ones(NUM_STATES), (2, NUM_ACTIONS))


class Path(NamedTuple):
    """States and actions of a trajectory, and the product of its transition probabilities."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    chance: float


def all_paths():
    paths, open_paths = [], [Path((0,), (), 1.0)]
    while open_paths:
        path = open_paths.pop()
        for action in range(NUM_ACTIONS):
            longer = path._replace(actions=(*path.actions, action))
            if len(longer.actions) == LENGTH:
                paths.append(longer)
                continue
            for state, probability in enumerate(CHANCE[path.states[-1], action]):
                after = longer._replace(states=(*path.states, state), chance=path.chance * probability)
                (paths if state == END else open_paths).append(after)
    return [path._replace(states=path.states[: len(path.actions)]) for path in paths]


PATHS = all_paths()


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def to_trajectory(paths, logits=BEHAVIOUR, reward=None):
    """``paths`` as a trajectory ``[T, B]`` recorded by the policy of ``logits [states, actions]``."""
    length, batch = max(len(path.actions) for path in paths), len(paths)
    state, action = np.full((length, batch), END), np.zeros((length, batch), np.int32)
    mask = np.zeros((length, batch))
    for b, path in enumerate(paths):
        n = len(path.actions)
        state[:n, b], action[:n, b], mask[:n, b] = path.states, path.actions, 1
    ends = np.arange(length)[:, None] == mask.sum(0) - 1
    rewards = np.zeros((length, batch)) if reward is None else np.where(ends, reward, 0.0)
    observation = jnp.asarray(np.eye(NUM_STATES, dtype=np.float32)[state])
    log_prob = np.take_along_axis(log_softmax(logits)[state], action[..., None], -1)[..., 0]
    return Transition(
        observation=observation,
        action=jnp.asarray(action),
        rewards={"env": jnp.asarray(rewards)},
        terminated=jnp.asarray(ends),
        truncated=jnp.zeros_like(jnp.asarray(ends)),
        next_observation=observation,
        mask=jnp.asarray(mask),
        extras={"log_prob": jnp.asarray(log_prob), "distribution": jnp.asarray(logits[state])},
    )


def probabilities(paths, logits=BEHAVIOUR):
    """The probability of every path under the policy of ``logits``."""
    log_policy = log_softmax(logits)
    return np.array(
        [p.chance * np.exp(sum(log_policy[s, a] for s, a in zip(p.states, p.actions, strict=True))) for p in paths]
    )


def make(data=None, **arguments):
    data = data or DataSpec("episodes", LENGTH, 4, 2)
    return implicit_prm(ENVIRONMENT, data=data, **({"network_config": FEED_FORWARD, "beta": BETA} | arguments))


def initial(transform):
    return jit(transform.init)(KEY)


def drawn(transform, scale=0.7):
    """A state with random parameters, far from those a model starts with; nothing is compiled for it."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(transform.init, KEY)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def fill(tree):
        return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), tree)

    params, scoring, reference = (fill(tree) for tree in shapes[:3])
    return state._replace(params=params, scoring=scoring, reference=reference, accuracy=jnp.full((), 0.5, jnp.float32))


def disturbed(state, scale=0.7):
    """The state with a model that is far from its initial one."""
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noise = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return state._replace(params=jax.tree.unflatten(structure, [x + n for x, n in zip(leaves, noise, strict=True)]))


def in_float64(tree):
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64) if x.dtype == jnp.float32 else x, tree)


def exact_rewards(transform, state, paths, logits=BEHAVIOUR):
    """Step rewards of ``paths`` in float64, ``[T, B]``."""
    with jax.enable_x64(True):
        relabelled, _ = jit(transform.apply)(in_float64(state), to_trajectory(paths, logits))
        rewards = relabelled.rewards["implicit_prm"]
        assert rewards.dtype == jnp.float64
        return np.asarray(rewards)


# --- identities ----------------------------------------------------------------------------------------

LOG_RATIOS = {
    "policy": {"form": "policy"},
    "policy with memory": {"form": "policy", "network_config": RECURRENT},
    "residual": {"form": "residual"},
    "residual with memory": {"form": "residual", "network_config": RECURRENT},
}


@pytest.fixture(scope="module", params=LOG_RATIOS.values(), ids=LOG_RATIOS)
def scored_paths(request):
    """Step rewards of all trajectories under a disturbed model, and their probabilities."""
    transform = make(**request.param)
    return exact_rewards(transform, drawn(transform), PATHS), probabilities(PATHS)


def test_the_paths_are_all_possible_ones():
    np.testing.assert_allclose(probabilities(PATHS).sum(), 1.0, atol=1e-12)
    assert len({(p.states, p.actions) for p in PATHS}) == len(PATHS) and len({len(p.actions) for p in PATHS}) == LENGTH


def test_the_exponentiated_score_has_mean_one(scored_paths):
    rewards, probability = scored_paths
    assert np.abs(rewards).max() > 0.05
    np.testing.assert_allclose(probability @ np.exp(rewards.sum(0) / BETA), 1.0, atol=1e-10)
    # By Jensen's inequality, raw scores are negative on average.
    assert probability @ rewards.sum(0) < 0


def test_proposition_31_of_free_process_rewards_at_every_prefix(scored_paths):
    """``sum_{s <= t} r_s = beta log E[exp(r(tau) / beta) | prefix up to a_t]`` under the behaviour policy."""
    rewards, probability = scored_paths
    total = rewards.sum(0)
    checked = 0
    for t in range(LENGTH):
        prefixes = {}
        for b, path in enumerate(PATHS):
            if len(path.actions) > t:
                prefixes.setdefault((path.states[: t + 1], path.actions[: t + 1]), []).append(b)
        for members in prefixes.values():
            weight = probability[members] / probability[members].sum()
            expected = BETA * np.log(weight @ np.exp(total[members] / BETA))
            np.testing.assert_allclose(rewards[: t + 1, members].sum(0), expected, atol=1e-10)
            checked += len(members) > 1
    assert checked > 5


def test_with_a_frozen_reference_the_identity_holds_under_the_reference():
    transform = make(reference="frozen")
    state = drawn(transform)
    reference = np.asarray(model_outputs(state.reference, FEED_FORWARD), np.float64)
    # A frozen reference does not depend on the policy that recorded the rollouts.
    rewards = exact_rewards(transform, state, PATHS)
    np.testing.assert_array_equal(rewards, exact_rewards(transform, state, PATHS, 0 * BEHAVIOUR))
    score = np.exp(rewards.sum(0) / BETA)
    np.testing.assert_allclose(probabilities(PATHS, reference) @ score, 1.0, atol=1e-6)
    assert abs(probabilities(PATHS) @ score - 1.0) > 1e-2


def model_outputs(params, config, scale=0.01):
    """The outputs of a feed-forward model for every state, ``[states, actions]``."""
    net = network(ENVIRONMENT.observation_space, {"policy": Head(NUM_ACTIONS, scale=scale)}, config)
    return net.apply(params, jnp.eye(NUM_STATES)[None], (), None)[0]["policy"][0]


@pytest.mark.parametrize("form", ["policy", "residual", "centred"])
def test_step_rewards_are_their_formula_and_have_the_known_mean(form):
    transform = make(form=form)
    state = drawn(transform)
    g = np.asarray(model_outputs(state.params, FEED_FORWARD), np.float64)
    old = log_softmax(BEHAVIOUR)
    if form == "policy":
        table = BETA * (log_softmax(g) - old)
    elif form == "residual":
        table = BETA * (log_softmax(BEHAVIOUR + g) - old)
    else:
        table = BETA * (g - np.sum(np.exp(old) * g, -1, keepdims=True))
    rewards = exact_rewards(transform, state, PATHS)
    for b, path in enumerate(PATHS):
        expected = [table[s, a] for s, a in zip(path.states, path.actions, strict=True)]
        np.testing.assert_allclose(rewards[: len(expected), b], expected, atol=1e-6)
        assert not rewards[len(expected) :, b].any()
    # E_{a ~ pi_old}[r] is -beta KL(pi_old || pi_phi), and 0 for the centred form, up to rounding in float64.
    steps = [Path((s,), (a,), 1.0) for s, a in itertools.product(range(2), range(NUM_ACTIONS))]
    by_step = exact_rewards(transform, state, steps)[0].reshape(2, NUM_ACTIONS)
    mean = np.sum(np.exp(old[:2]) * by_step, -1)
    if form == "centred":
        np.testing.assert_allclose(mean, 0, atol=1e-12)
        assert np.abs(by_step).min() > 1e-3
    else:
        model = np.exp(old[:2]) * np.exp(by_step / BETA)
        np.testing.assert_allclose(model.sum(-1), 1, atol=1e-12)
        kl = np.sum(np.exp(old[:2]) * (old[:2] - np.log(model)), -1)
        np.testing.assert_allclose(mean, -BETA * kl, atol=1e-12)
        assert (mean < -1e-3).all()


# --- the start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["residual", "centred"])
@pytest.mark.parametrize("config", [FEED_FORWARD, RECURRENT], ids=["feed-forward", "recurrent"])
def test_the_rewards_of_a_residual_start_at_exactly_zero(form, config):
    transform = make(form=form, network_config=config, tolerance=0.0)
    relabelled, metrics = jit(transform.apply)(initial(transform), to_trajectory(PATHS))
    assert not relabelled.rewards["implicit_prm"].any() and metrics["reward_max"] == 0


@pytest.mark.parametrize(
    ("reference", "config"), [("rolling", FEED_FORWARD), ("rolling", RECURRENT), ("frozen", FEED_FORWARD)]
)
def test_the_rewards_of_a_model_that_starts_as_the_policy_start_at_exactly_zero(reference, config):
    probe, data = ChainRecall(length=3), DataSpec("episodes", 3, 8, 4)
    agent = policy_gradient(
        probe.spec, credit=Credit({"env": Entry("env", group_outcome())}), data=data, network_config=config
    )
    params = jax.tree.map(lambda x: x + 0.3, jit(agent.init)(KEY).params)
    transform = implicit_prm(probe.spec, data=data, network_config=config, reference=reference)
    state = jit(transform.init)(KEY, policy_params=params["policy"])
    policy = acting_policy(agent, params)

    @jit
    def score(key, state):
        trajectory = episodes(probe, policy, key, length=3, batch=8, group_size=4, initial_carry=agent.initial_carry(8))
        return transform.apply(state, trajectory)[0].rewards["implicit_prm"]

    assert not score(KEY, state).any()
    # The zeros are computed: another model has other rewards.
    assert np.abs(score(KEY, disturbed(state))).max() > 1e-3


def test_the_model_starts_with_the_policys_parameters():
    transform = make(reference="frozen", score="before")
    policy = jax.tree.map(lambda x: x + 1.0, initial(transform).params) | {"head_env": {"kernel": jnp.ones((4, 1))}}
    state = transform.init(KEY, policy_params=policy)
    for copy in (state.params, state.scoring, state.reference):
        assert set(copy) == {"dense_0", "head_policy"}
        for name in copy:
            jax.tree.map(np.testing.assert_array_equal, copy[name], policy[name])
    # A learner that donates the whole state makes the copies.
    learned = without_aliases((policy, *state[:3]))
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(learned)]
    assert len(set(buffers)) == len(buffers)
    # A residual is not a policy and does not start from the policy's parameters.
    residual = make(form="residual")
    assert not residual.init(KEY, policy_params=policy).params["head_policy"]["kernel"].any()


# --- training ------------------------------------------------------------------------------------------

DECISIVE, STEPS = 1, 4
PLANTED = EnvironmentSpec(spaces.Box(0, 1, (STEPS,), np.float32), spaces.Discrete(2), STEPS)
# All 16 action sequences, in groups of four with two positives in each.
_SEQUENCES = sorted(itertools.product(range(2), repeat=STEPS), key=lambda a: (sum(a) * 5 + a[0] * 3 + a[3]) % 16)
_POSITIVE = [a for a in _SEQUENCES if a[DECISIVE] == 1]
_NEGATIVE = [a for a in _SEQUENCES if a[DECISIVE] == 0]
SEQUENCES = np.array([x for i in range(0, 8, 2) for x in (*_POSITIVE[i : i + 2], *_NEGATIVE[i : i + 2])]).T


def planted_trajectory():
    """Rollouts of a uniform policy; the outcome is 1 where the second action is 1, and the observation is the time."""
    shape = SEQUENCES.shape
    ends = np.broadcast_to(np.arange(STEPS)[:, None] == STEPS - 1, shape)
    observation = np.broadcast_to(np.eye(STEPS, dtype=np.float32)[:, None], (*shape, STEPS))
    extras = {"log_prob": np.full(shape, -np.log(2)), "distribution": np.zeros((*shape, 2))}
    rewards = np.where(ends, SEQUENCES[DECISIVE], 0.0)
    trajectory = Transition(
        observation, SEQUENCES.astype(np.int32), {"env": rewards}, ends, np.zeros(shape, bool), observation,
        np.ones(shape), extras,
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, trajectory)


TRAINED = {
    "policy, preference": {"form": "policy", "loss": "preference"},
    "policy, cross-entropy, mean": {"form": "policy", "loss": "cross_entropy", "reduction": "mean"},
    "residual with memory, preference": {"form": "residual", "network_config": RECURRENT, "updates": 2},
    "centred, squared error": {"form": "centred", "loss": "squared_error"},
}


@pytest.mark.parametrize("arguments", TRAINED.values(), ids=TRAINED)
def test_outcome_labels_alone_put_the_reward_on_the_decisive_step(arguments):
    data = DataSpec("episodes", STEPS, 16, 4)
    arguments = {"network_config": NetworkConfig(hidden=()), "beta": 1.0, "learning_rate": 0.05} | arguments
    transform, trajectory = implicit_prm(PLANTED, data=data, **arguments), planted_trajectory()

    @jit
    def train(key):
        state = transform.init(key)
        state, metrics = jax.lax.scan(
            lambda s, k: transform.update(s, trajectory, k), state, jax.random.split(key, 100)
        )
        return metrics, transform.apply(state, trajectory)[0].rewards["implicit_prm"]

    metrics, rewards = train(KEY)
    rewards = np.asarray(rewards, np.float64)
    gap = [rewards[t][SEQUENCES[t] == 1].mean() - rewards[t][SEQUENCES[t] == 0].mean() for t in range(STEPS)]
    others = np.delete(np.abs(gap), DECISIVE)
    assert gap[DECISIVE] > 0.5 and others.max() < 0.1 * gap[DECISIVE]
    positive = SEQUENCES[DECISIVE] == 1
    assert rewards.sum(0)[positive].min() > 0 > rewards.sum(0)[~positive].max()
    assert metrics["loss"][-1] < metrics["loss"][0] and metrics["accuracy"][-1] == 1.0
    if arguments.get("loss") == "squared_error":
        # A centred score can equal the centred outcome, +-1/2, exactly.
        assert metrics["loss"][-1] < 1e-3
        np.testing.assert_allclose(rewards.sum(0), positive - 0.5, atol=0.05)


# Four rollouts in two groups: a mixed group, and a group without a negative rollout.
FOUR = [
    Path((0, 1), (0, 1), 1.0),
    Path((0,), (1,), 1.0),
    Path((0, 0, 1), (1, 1, 0), 1.0),
    Path((0, 1, 1), (0, 0, 0), 1.0),
]
OUTCOME = [2.0, 0.5, 1.5, 3.0]


@pytest.fixture(scope="module")
def four():
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == float else x, to_trajectory(FOUR, reward=OUTCOME))


@pytest.mark.parametrize(
    ("loss", "reduction"), [("preference", "sum"), ("cross_entropy", "mean"), ("squared_error", "sum")]
)
def test_the_loss_is_its_formula(four, loss, reduction):
    transform = make(loss=loss, reduction=reduction, outcome_threshold=1.0)
    state = drawn(transform)
    rewards = exact_rewards(transform, state, FOUR)
    score = rewards.sum(0) / (four.mask.sum(0) if reduction == "mean" else 1)
    label = np.array([1.0, 0.0, 1.0, 1.0])
    expected = {
        "preference": np.log1p(np.exp(-(score[0] - score[1]))),
        "cross_entropy": np.mean(np.log1p(np.exp(score)) - label * score),
        "squared_error": np.mean((score - (label - np.array([0.5, 0.5, 1, 1]))) ** 2),
    }[loss]
    after, metrics = jit(transform.update)(state, four, KEY)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    assert metrics["mixed_groups"] == 0.5 and metrics["accuracy"] == float(score[0] > score[1])
    # One optimiser step lowers the loss.
    assert jit(transform.update)(after, four, KEY)[1]["loss"] < metrics["loss"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_masked_group_has_no_effect(four, loss):
    transform = make(loss=loss, outcome_threshold=1.0)
    state, update = drawn(transform), jit(transform.update)
    masked = four._replace(mask=four.mask.at[:, 2:].set(0.0))
    dirty = masked._replace(rewards={"env": four.rewards["env"].at[:, 2:].set(7.0)})
    (first, metrics), (second, _) = update(state, masked, KEY), update(state, dirty, KEY)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    rewards = exact_rewards(transform, state, FOUR[:2])
    score, label = rewards.sum(0), np.array([1.0, 0.0])
    expected = {
        "preference": np.log1p(np.exp(-(score[0] - score[1]))),
        "cross_entropy": np.mean(np.log1p(np.exp(score)) - label * score),
        "squared_error": np.mean((score - (label - 0.5)) ** 2),
    }[loss]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


def test_one_preference_step_raises_positives_and_lowers_negatives(four):
    transform = make(form="residual", outcome_threshold=1.0, network_config=NetworkConfig(hidden=()))
    before = initial(transform)
    after, _ = jit(transform.update)(before, four, KEY)
    score = exact_rewards(transform, after, FOUR).sum(0)
    assert score[0] > 0 > score[1]


def test_without_a_pair_nothing_is_learned_or_measured(four):
    transform = make(outcome_threshold=100.0, calibrated=True)
    state = drawn(transform)._replace(accuracy=jnp.float32(0.8))
    after, metrics = jit(transform.update)(state, four, KEY)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert metrics["loss"] == 0 and metrics["mixed_groups"] == 0
    np.testing.assert_allclose(after.accuracy, 0.8)
    assert after.seen == 1


def test_without_updates_the_model_does_not_change(four):
    transform = make(updates=0, outcome_threshold=1.0)
    state = drawn(transform)
    after, _ = jit(transform.update)(state, four, KEY)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
    assert after.seen == 1


def test_update_relabels_nothing_and_apply_learns_nothing(four):
    transform = make(outcome_threshold=1.0)
    state = drawn(transform)
    relabelled, _ = transform.apply(state, four)
    np.testing.assert_array_equal(relabelled.rewards["env"], four.rewards["env"])
    assert set(relabelled.rewards) == {"env", "implicit_prm"} and set(four.rewards) == {"env"}
    # Applying it to its own result changes nothing.
    again, _ = transform.apply(state, relabelled)
    np.testing.assert_array_equal(again.rewards["implicit_prm"], relabelled.rewards["implicit_prm"])


# --- options -------------------------------------------------------------------------------------------


def score_with(transform, state, trajectory):
    return np.asarray(jit(transform.apply)(state, trajectory)[0].rewards["implicit_prm"])


def test_score_before_uses_the_model_before_its_update(four):
    before, after = make(score="before", outcome_threshold=1.0), make(score="after", outcome_threshold=1.0)
    state = drawn(before)
    plain = state._replace(scoring=())
    fresh, fresh_after = (jit(t.update)(s, four, KEY)[0] for t, s in ((before, state), (after, plain)))
    jax.tree.map(np.testing.assert_array_equal, fresh.params, fresh_after.params)
    np.testing.assert_array_equal(score_with(before, fresh, four), score_with(after, plain, four))
    assert np.abs(score_with(before, fresh, four) - score_with(after, fresh_after, four)).max() > 1e-5
    # Before the first update it uses the initial model.
    np.testing.assert_array_equal(score_with(before, initial(before), four), score_with(after, initial(after), four))


def test_scale_max_divides_by_the_largest_reward_of_the_batch(four):
    plain, scaled = make(), make(scale="max")
    state = drawn(plain)
    rewards = score_with(plain, state, four)
    result, metrics = scaled.apply(state, four)
    np.testing.assert_allclose(result.rewards["implicit_prm"], rewards / np.abs(rewards).max(), rtol=1e-5)
    assert np.abs(result.rewards["implicit_prm"]).max() == 1.0
    np.testing.assert_allclose(metrics["reward_max"], np.abs(rewards).max(), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["reward_mean"], rewards.sum() / four.mask.sum() / np.abs(rewards).max(), rtol=1e-4
    )
    # Zeros stay zeros.
    flat = make(scale="max", form="residual")
    assert not score_with(flat, initial(flat), four).any()


def test_scale_return_divides_by_the_largest_return_to_go(four):
    state = drawn(make())
    rewards = score_with(make(), state, four)
    to_go = np.cumsum(rewards[::-1], axis=0)[::-1]
    result, _ = make(scale="return").apply(state, four)
    np.testing.assert_allclose(result.rewards["implicit_prm"], rewards / np.abs(to_go).max(), rtol=1e-4)


def test_rewards_within_the_tolerance_are_set_to_zero(four):
    state = drawn(make(form="residual"), 1e-2)
    largest = np.abs(score_with(make(form="residual", tolerance=0.0), state, four)).max() / BETA
    assert 0 < largest < 1e-2
    for tolerance, zero in ((largest * 1.01, True), (largest * 0.99, False)):
        rewards = score_with(make(form="residual", tolerance=tolerance, scale="max"), state, four)
        assert rewards.any() != zero


def test_a_nan_is_not_set_to_zero(four):
    transform = make()
    broken = four._replace(extras=four.extras | {"log_prob": four.extras["log_prob"].at[0, 0].set(jnp.nan)})
    assert np.isnan(score_with(transform, drawn(transform), broken)).any()


@pytest.mark.parametrize(
    ("arguments", "accuracy", "weight"),
    [
        ({"calibrated": True}, 0.2, 0.0),
        ({"calibrated": True}, 0.75, 0.5),
        ({"calibrated": True}, 1.0, 1.0),
        # Returns 2, 0.5, 1.5, 3 with the threshold 1: three of four rollouts are positive.
        ({"fading": 2.0}, 0.9, 1 / 16),
        ({"fading": 1.0, "calibrated": True}, 0.75, 1 / 8),
    ],
)
def test_the_credit_weight(four, arguments, accuracy, weight):
    transform = make(channel="process", outcome_threshold=1.0, **arguments)
    given = four._replace(extras=four.extras | {"credit_weight": {"env": jnp.full((3, 4), 2.0)}})
    relabelled, metrics = transform.apply(drawn(transform)._replace(accuracy=jnp.float32(accuracy)), given)
    np.testing.assert_allclose(relabelled.extras["credit_weight"]["process"], np.full((3, 4), weight))
    np.testing.assert_array_equal(relabelled.extras["credit_weight"]["env"], np.full((3, 4), 2.0))
    np.testing.assert_allclose(metrics["credit_weight"], weight)
    assert set(relabelled.rewards) == {"env", "process"}


def test_the_credit_weight_is_of_the_entry_that_is_named(four):
    transform = make(channel="process", credit_entry="steps", calibrated=True, outcome_threshold=1.0)
    relabelled, _ = transform.apply(drawn(transform)._replace(accuracy=jnp.float32(0.75)), four)
    np.testing.assert_allclose(relabelled.extras["credit_weight"]["steps"], np.full((3, 4), 0.5))
    assert set(relabelled.extras["credit_weight"]) == {"steps"} and set(relabelled.rewards) == {"env", "process"}


def test_a_weight_that_is_always_one_is_not_written(four):
    relabelled, metrics = (lambda t: t.apply(drawn(t), four))(make())
    assert "credit_weight" not in relabelled.extras and metrics["credit_weight"] == 1.0


def test_without_fading_a_batch_of_successes_keeps_its_weight(four):
    transform = make(outcome_threshold=-1.0)
    assert transform.apply(drawn(transform), four)[1]["credit_weight"] == 1.0


def test_the_running_accuracy_is_of_fresh_rollouts_before_the_update(four):
    transform = make(calibrated=True, calibration_smoothing=0.75, outcome_threshold=1.0)
    state = drawn(transform)._replace(accuracy=jnp.float32(0.4))
    score = exact_rewards(transform, state, FOUR).sum(0)
    after, _ = jit(transform.update)(state, four, KEY)
    np.testing.assert_allclose(after.accuracy, 0.75 * 0.4 + 0.25 * (score[0] > score[1]), rtol=1e-5)


# --- replay --------------------------------------------------------------------------------------------


def random_rollouts(lead, batch):
    rng = np.random.default_rng(1)

    def leaf(*shape):
        return jnp.asarray(rng.normal(size=(*lead, LENGTH, batch, *shape)))

    return Rollouts(
        {"a": leaf(2), "b": leaf()}, leaf(), leaf(), leaf(), leaf(3), jnp.asarray(rng.normal(size=(*lead, batch)))
    )


def test_groups_are_taken_whole():
    rollouts, groups = random_rollouts((), 6), [2, 0, 2]
    taken = _take_groups(rollouts, jnp.array(groups), 2)
    for k, group in enumerate(groups):
        for n in range(2):
            column, expected = 2 * k + n, 2 * group + n
            jax.tree.map(
                lambda x, y, i=column, j=expected: np.testing.assert_array_equal(x[:, i], y[:, j]),
                taken._replace(outcome=()), rollouts._replace(outcome=()),
            )  # fmt: skip
            assert taken.outcome[column] == rollouts.outcome[expected]


def test_kept_groups_are_taken_whole_from_their_iteration():
    store, slots, groups = random_rollouts((4,), 6), [3, 0, 3], [1, 2, 0]
    taken = _take_kept_groups(store, jnp.array(slots), jnp.array(groups), 2)
    for k, (slot, group) in enumerate(zip(slots, groups, strict=True)):
        for n in range(2):
            column, expected = 2 * k + n, 2 * group + n
            jax.tree.map(
                lambda x, y, i=column, s=slot, j=expected: np.testing.assert_array_equal(x[:, i], y[s, :, j]),
                taken._replace(outcome=()), store._replace(outcome=()),
            )  # fmt: skip
            assert taken.outcome[column] == store.outcome[slot, expected]


def test_the_replay_keeps_the_latest_iterations(four):
    transform = make(replay=2, outcome_threshold=1.0)
    state, update = initial(transform), jit(transform.update)
    assert state.replay.action.shape == (2, LENGTH, 4) and state.replay.action.dtype == jnp.int32
    for iteration in range(3):
        state, _ = update(
            state, four._replace(extras=four.extras | {"log_prob": jnp.full((3, 4), -1.0 - iteration)}), KEY
        )
    # Iterations 0, 1, 2 are in slots 0, 1, 0.
    np.testing.assert_array_equal(state.replay.log_prob[:, 0, 0], [-3.0, -2.0])
    np.testing.assert_array_equal(state.replay.outcome, [[1, 0, 1, 1]] * 2)
    np.testing.assert_array_equal(state.replay.mask[1], four.mask)
    np.testing.assert_array_equal(state.replay.observation[0], four.observation)
    assert state.seen == 3 and update._cache_size() == 1


def test_the_replay_draws_from_what_it_holds(four):
    # Both groups of both iterations are equal, so that every draw gives the step without replay. A draw from an empty
    # slot would not: its rollouts have no steps and a label of 0.
    double = jax.tree.map(lambda x: jnp.concatenate([x[:, :2], x[:, :2]], axis=1), four)
    arguments = {"loss": "cross_entropy", "outcome_threshold": 1.0, "updates": 3}
    with_replay, without = make(replay=8, **arguments), make(**arguments)
    state = drawn(without)
    kept = drawn(with_replay)
    update_with, update_without = jit(with_replay.update), jit(without.update)
    for seed in range(2):
        kept, _ = update_with(kept, double, jax.random.key(seed))
        state, _ = update_without(state, double, jax.random.key(seed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept.params, state.params)


@pytest.mark.parametrize("replay", [0, 1])
def test_a_part_of_the_groups_is_drawn_whole(four, replay):
    # Each step draws one of two groups. The second has no pair, so that a step learns from the first or not at all.
    transform = make(groups_per_update=1, replay=replay, outcome_threshold=1.0)
    state, update = drawn(transform), jit(transform.update)
    losses = np.array([update(state, four, jax.random.key(seed))[1]["loss"] for seed in range(12)])
    score = exact_rewards(transform, state, FOUR).sum(0)
    expected = np.log1p(np.exp(-(score[0] - score[1])))
    first = losses > 0
    np.testing.assert_allclose(losses[first], expected, rtol=1e-4)
    assert 0 < first.sum() < 12


# --- action spaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "space"),
    [
        ("policy", spaces.Box(-1, 1, (2,), np.float32)),
        ("residual", spaces.Box(-1, 1, (2,), np.float32)),
        ("residual", spaces.MultiDiscrete(np.array([2, 3]))),
        ("policy", spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (1,), np.float32))),
    ],
    ids=["policy box", "residual box", "residual multi-discrete", "policy dict"],
)
def test_other_action_spaces_are_scored_and_replayed(form, space):
    spec, data = EnvironmentSpec(ENVIRONMENT.observation_space, space, LENGTH), DataSpec("episodes", LENGTH, 4, 2)
    transform = implicit_prm(spec, data=data, network_config=FEED_FORWARD, form=form, replay=2)
    agent = policy_gradient(
        spec, credit=Credit({"env": Entry("env", group_outcome())}), data=data, network_config=FEED_FORWARD
    )
    params = jit(agent.init)(KEY).params
    state = jit(transform.init)(KEY, policy_params=params["policy"])
    observation = jnp.broadcast_to(jnp.eye(3)[:, None], (LENGTH, 4, 3))
    keys = jax.random.split(KEY, LENGTH)
    act = jit(jax.vmap(lambda o, k: agent.act(params, agent.initial_carry(4), o, k)))
    action, _, extras = act(observation, keys)
    ends = jnp.zeros((LENGTH, 4), bool).at[-1].set(True)
    rewards = {"env": ends * jnp.array([1.0, 0.0, 1.0, 0.0])}
    trajectory = Transition(
        observation, action, rewards, ends, ~ends & False, observation, jnp.ones((LENGTH, 4)), extras
    )
    assert not score_with(transform, state, trajectory).any()
    after, metrics = jit(transform.update)(state, trajectory, KEY)
    assert jax.tree.structure(after.replay.action) == jax.tree.structure(action)
    score = score_with(transform, after, trajectory).sum(0)
    assert np.isfinite(score).all() and score.any() and np.isfinite(metrics["loss"])


# --- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"form": "dpo"},
            r"unknown form 'dpo' of implicit_prm, did you mean '\w+'\? \(known: policy, residual, centred\)",
        ),
        ({"reference": "moving"}, "unknown reference 'moving' of implicit_prm, did you mean"),
        ({"loss": "kto"}, "unknown loss 'kto' of implicit_prm, did you mean"),
        ({"reduction": "min"}, "unknown reduction 'min' of implicit_prm, did you mean"),
        ({"score": "during"}, "unknown score 'during' of implicit_prm, did you mean"),
        ({"scale": "std"}, "unknown scale 'std' of implicit_prm, did you mean"),
        ({"data": DataSpec("unroll", 3, 4)}, "data.kind='unroll' with group_size=1, expected 'episodes'"),
        ({"data": DataSpec("episodes", 3, 4, 1)}, "group_size=1, expected 'episodes' with group_size >= 2"),
        ({"form": "residual", "reference": "frozen"}, "form='residual' is written on the behaviour policy"),
        ({"form": "centred", "reference": "frozen"}, "form='centred' is written on the behaviour policy"),
        ({"updates": -1}, "updates=-1: expected at least 0"),
        ({"replay": -1}, "replay=-1: expected at least 0"),
        ({"groups_per_update": -1}, "groups_per_update=-1: expected at least 0"),
        ({"groups_per_update": 3}, "groups_per_update=3: expected at most the 2 fresh groups"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_the_centred_form_needs_discrete_actions():
    spec = EnvironmentSpec(ENVIRONMENT.observation_space, spaces.Box(-1, 1, (1,), np.float32))
    with pytest.raises(ValueError, match="form='centred' needs Discrete actions, got Box"):
        implicit_prm(spec, data=DataSpec("episodes", 3, 4, 2), form="centred")
