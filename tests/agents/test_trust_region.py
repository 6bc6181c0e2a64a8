"""The trust region: its step against brute force, its Fisher products, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.base import DataSpec
from agents.credit import Credit, Entry
from agents.distributions import categorical, gaussian, tanh_gaussian
from agents.estimators import gae, group_outcome, plain_return
from agents.networks.sequence import NetworkConfig
from agents.planning.linear_programming import Limit, constrained_optimum
from agents.trust_region import Region, Surrogates, conjugate_gradient, constrained_step, improved, trust_region
from envs.native.random_model import random_model, random_model_environment
from envs.rollout import episodes

numbers = st.floats(-3, 3, allow_subnormal=False, width=32)
STEP = jax.jit(constrained_step)


def solved(g, b, c, delta, product):
    """``x`` of the closed form, and whether it recovers."""
    inverse = np.linalg.inv(product)
    step = STEP(*map(jnp.float32, (g @ inverse @ g, g @ inverse @ b, b @ inverse @ b, c, delta)))
    return float(step.along_g) * inverse @ g + float(step.along_b) * inverse @ b, bool(step.recovers)


def brute_force(g, b, c, delta, product):
    """The best objective on a fine grid of the ellipse and of the limit's line inside of it; None where infeasible."""
    root = np.linalg.inv(np.linalg.cholesky(product)).T
    angles = np.linspace(0, 2 * np.pi, 4_001)
    circle = np.sqrt(2 * delta) * root @ np.stack([np.cos(angles), np.sin(angles)])
    along = np.array([-b[1], b[0]])
    nearest = -c * b / max(b @ b, 1e-12)
    line = nearest[:, None] + along[:, None] * np.linspace(-50, 50, 20_001) / max(np.linalg.norm(b), 1e-6)
    points = np.concatenate([circle, line, np.zeros((2, 1))], axis=1)
    inside = np.einsum("in,ij,jn->n", points, product, points) / 2 <= delta * (1 + 1e-6)
    feasible = inside & (c + b @ points <= 1e-5)
    return (g @ points[:, feasible]).max() if feasible.any() else None


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(numbers, numbers),
    st.tuples(numbers, numbers),
    st.floats(-2, 2, width=32),
    st.floats(0.015625, 1, width=32),
    st.floats(-0.75, 0.75, width=32),
)
def test_the_step_is_the_best_of_the_trust_region_that_meets_the_limit(g, b, c, delta, skew):
    g, b = np.array(g, np.float64), np.array(b, np.float64)
    product = np.array([[1.0, skew], [skew, 1.5]])
    if np.linalg.norm(g) < 0.05 or np.linalg.norm(b) < 0.05:
        return
    inverse = np.linalg.inv(product)
    reach = 2 * delta - c**2 / (b @ inverse @ b)
    if abs(reach) < 0.02:
        return  # Where the limit just touches the region, 32 bits decide.
    x, recovers = solved(g, b, c, delta, product)
    # In 32 bits the terms of the step nearly cancel where g and b are nearly parallel: at most half of these tolerances
    # in 1,500 random problems.
    assert x @ product @ x / 2 <= delta * 1.002 + 1e-5
    best = brute_force(g, b, c, delta, product)
    if c > 0 and reach < 0:
        assert recovers and best is None
        # As far against the cost as the region reaches.
        assert b @ x == pytest.approx(-np.sqrt(2 * delta * (b @ inverse @ b)), rel=1e-3)
        return
    assert not recovers
    assert c + b @ x <= 2e-3 * (1 + abs(c))
    assert g @ x >= best - 1e-3 * (1 + abs(best))


def test_by_hand():
    """``H`` is the identity, ``g = (1, 0)`` and ``delta = 1/2``: a circle of radius 1."""
    g = np.array([1.0, 0.0])
    circle = np.eye(2)
    np.testing.assert_allclose(solved(g, np.array([0.0, 1.0]), -1.5, 0.5, circle)[0], [1, 0], atol=1e-5)
    # x + c <= 0 with c = -1/2: the line cuts the circle, and the reward is the cost.
    np.testing.assert_allclose(solved(g, np.array([1.0, 0.0]), -0.5, 0.5, circle)[0], [0.5, 0], atol=1e-3)
    # y + 1/2 <= 0: down to the line, and along it to the circle.
    np.testing.assert_allclose(solved(g, np.array([0.0, 1.0]), 0.5, 0.5, circle)[0], [np.sqrt(0.75), -0.5], atol=1e-4)
    # Out of reach: straight down.
    x, recovers = solved(g, np.array([0.0, 1.0]), 1.5, 0.5, circle)
    assert recovers
    np.testing.assert_allclose(x, [0, -1], atol=1e-5)


def quadratic(g, b, wall=0.0):
    """Surrogates whose step is known: linear ones, and a divergence ``x'x / 2 + wall (x'x)^2``."""

    def measure(policy):
        x = policy["x"]
        return Surrogates(x @ jnp.asarray(g), x @ jnp.asarray(b), x @ x / 2 + wall * (x @ x) ** 2)

    return measure


def test_a_step_on_a_quadratic_is_the_closed_form():
    start, region = {"x": jnp.zeros(2)}, Region(divergence=0.5, damping=1e-3)
    # A damped step stays a little inside of the region.
    for excess, expected in ((None, [1, 0]), (0.5, [np.sqrt(0.75), -0.5]), (-1.5, [1, 0]), (1.5, [0, -1])):
        found, metrics = improved(start, quadratic([1.0, 0.0], [0.0, 1.0]), excess, region)
        np.testing.assert_allclose(found["x"], expected, atol=3e-3)
        assert float(metrics["step_size"]) == 1 and float(metrics["recovers"]) == (excess == 1.5)
        assert float(metrics["surrogate"]) == pytest.approx(expected[0], abs=3e-3)
        assert ("cost_surrogate" in metrics) == (excess is not None)


def test_a_step_is_shortened_until_the_divergence_fits_or_not_taken():
    start = {"x": jnp.zeros(2)}
    found, metrics = improved(start, quadratic([1.0, 0.0], [0.0, 1.0], wall=1.0), None, Region(0.5, 1e-3))
    size = float(metrics["step_size"])
    assert size == pytest.approx(0.8 ** round(np.log(size) / np.log(0.8)), rel=1e-5)
    assert 0 < size < 1 and float(metrics["divergence"]) <= 0.5
    # One step longer would not have fitted.
    longer = np.asarray(found["x"]) / 0.8
    assert longer @ longer / 2 + (longer @ longer) ** 2 > 0.5
    found, metrics = improved(start, quadratic([1.0, 0.0], [0.0, 1.0], wall=1e9), None, Region(0.5, 1e-3, backtracks=3))
    assert float(metrics["step_size"]) == 0 and not np.asarray(found["x"]).any()


def test_conjugate_gradients_solve_a_system():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 8))
    matrix = jnp.asarray(root @ root.T + np.eye(8), jnp.float32)
    target = jnp.asarray(rng.normal(size=8), jnp.float32)
    found = conjugate_gradient(lambda x: matrix @ x, target, 20)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, target), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("distribution", "size"),
    [(categorical(4), 4), (gaussian(2), 4), (tanh_gaussian(np.array([-1.0, 0.0]), np.array([1.0, 3.0])), 4)],
)
def test_a_divergence_is_the_expected_difference_of_log_probabilities(distribution, size):
    one, other = jax.random.normal(jax.random.key(0), (2, size)) * 0.5
    actions = distribution.sample(jax.random.key(1), jnp.broadcast_to(one, (200_000, size)))
    change = distribution.log_prob(one, actions) - distribution.log_prob(other, actions)
    error = float(jnp.std(change)) / np.sqrt(200_000)
    assert float(distribution.divergence(one, other)) == pytest.approx(float(jnp.mean(change)), abs=5 * error + 1e-4)
    assert float(distribution.divergence(one, one)) == pytest.approx(0.0, abs=1e-6)


ENVIRONMENT = random_model_environment(states=4, actions=3, successors=2, time_limit=16)
DATA = DataSpec(kind="episodes", length=16, batch=32)
GROUPED = Credit({"env": Entry("env", group_outcome())})
TABLE = NetworkConfig(hidden=(), activation="tanh")


def agent_of(**arguments):
    entries = {"env": Entry("env", gae(1.0, 0.95)), "cost": Entry("cost/1", gae(1.0, 0.95), 0.0)}
    arguments = {"credit": Credit(entries), "data": DATA, "network_config": TABLE, "epochs": 2} | arguments
    return trust_region(ENVIRONMENT.spec, **arguments)


def rolled(agent, params, key, violation=None):
    def policy(carry, observation, key):
        return agent.act(params, carry, observation, key)

    trajectory = episodes(
        ENVIRONMENT,
        policy,
        key,
        length=16,
        batch=32,
        group_size=1,
        initial_carry=agent.initial_carry(32),
    )
    if violation is None:
        return trajectory
    return trajectory._replace(
        extras=trajectory.extras | {"violation": {"cost": jnp.full(trajectory.mask.shape, violation)}}
    )


@pytest.fixture(scope="module")
def compiled():
    """An agent with a constraint, and one update of it, compiled once."""
    agent = agent_of(constraint="cost", divergence=0.01)

    @jax.jit
    def update(state, violation, key):
        trajectory = rolled(agent, state.params, jax.random.fold_in(key, 0), violation)
        return agent.update(state, trajectory, jax.random.fold_in(key, 1))

    return agent, update


def test_an_update_stays_in_the_region_and_follows_the_limit(compiled):
    agent, update = compiled
    state = agent.init(jax.random.key(0))
    for violation, sign in ((-5.0, 0), (5.0, -1), (0.0, -1)):
        new, metrics = update(state, violation, jax.random.key(1))
        assert 0 < float(metrics["step_size"]) <= 1
        assert 1e-4 < float(metrics["divergence"]) <= 0.01 * 1.001
        assert float(metrics["recovers"]) == (violation > 0)
        if sign:
            assert float(metrics["cost_surrogate"]) < 1e-5
        if violation <= 0:
            assert float(metrics["surrogate"]) > 0
        assert any(
            (old != one).any() for old, one in zip(*map(jax.tree.leaves, (state.params, new.params)), strict=True)
        )
    assert float(metrics["cost_multiplier"]) > 0


def test_the_optimum_under_the_limit_is_reached_from_above(compiled):
    """The cost falls below its limit first; then the reward rises until the limit binds, to the linear program's."""
    agent, update = compiled
    model, limit = random_model(states=4, actions=3, successors=2), 0.28
    # An episode takes 10 steps on average, but for those that the time limit ends.
    best = constrained_optimum(model, {"cost": Limit(1, 10 * limit)}).totals[0] / 10

    @jax.jit
    def per_step(state, key):
        trajectory = rolled(agent, state.params, key)
        sums = (jnp.sum(trajectory.rewards[name] * trajectory.mask) for name in ("env", "cost/1"))
        return jnp.stack([*sums]) / jnp.sum(trajectory.mask)

    state, found = agent.init(jax.random.key(0)), []
    for iteration in range(120):
        key = jax.random.fold_in(jax.random.key(2), iteration)
        found.append(np.asarray(per_step(state, key)))
        state, _ = update(state, found[-1][1] - limit, key)
    rewards, costs = np.transpose(found)
    assert np.mean(costs[:3]) > limit + 0.05
    assert np.mean(costs[-30:]) < limit + 0.01
    assert np.mean(rewards[:3]) < 0.75 * best and np.mean(rewards[-30:]) > 0.93 * best


@pytest.mark.parametrize(
    ("credit", "network"),
    [
        (Credit({"env": Entry("env", plain_return())}, "batch"), TABLE),
        (Credit({"env": Entry("env", gae(1.0, 0.95))}, "minibatch"), NetworkConfig(hidden=(4,), recurrent_size=3)),
    ],
    ids=["without a critic", "recurrent"],
)
def test_without_a_constraint_it_is_trpo(credit, network):
    agent = agent_of(credit=credit, network_config=network)

    @jax.jit
    def update(state, key):
        trajectory = rolled(agent, state.params, jax.random.fold_in(key, 0))
        return agent.update(state, trajectory, jax.random.fold_in(key, 1))

    state = agent.init(jax.random.key(0))
    new, metrics = update(state, jax.random.key(1))
    assert 0 < float(metrics["step_size"]) <= 1 and 1e-4 < float(metrics["divergence"]) <= 0.01 * 1.001
    assert float(metrics["surrogate"]) > 0 and "cost_surrogate" not in metrics
    assert np.isfinite([float(metrics["loss"]), float(metrics["gradient_norm"])]).all()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_bad_arguments_name_what_was_expected():
    for arguments, message in (
        ({"constraint": "costs"}, r"costs.*did you mean 'cost'"),
        ({"directions": 0}, "directions=0"),
        ({"credit": Credit({"env": Entry("env", plain_return())}, "entries")}, "whiten='entries'"),
        ({"data": DataSpec(kind="replay", length=4, batch=1)}, "data.kind='replay'"),
        ({"minibatches": 7}, "minibatches=7 does not divide 512"),
        ({"minibatches": 0}, "minibatches=0"),
        ({"credit": GROUPED, "data": DataSpec(kind="unroll", length=4, batch=4)}, "needs whole episodes"),
        ({"credit": Credit({"policy": Entry("env", gae())})}, "the head 'policy' is taken"),
    ):
        with pytest.raises(ValueError, match=message):
            agent_of(**arguments)
    agent = agent_of(constraint="cost")
    state = agent.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"violation 'cost'.*at_most"):
        jax.eval_shape(lambda: agent.update(state, rolled(agent, state.params, jax.random.key(0)), jax.random.key(1)))
