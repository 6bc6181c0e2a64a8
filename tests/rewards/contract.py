"""Shared by the tests of reward transforms: random trajectories, and the checks that every transform must pass."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import Transition

KEY = jax.random.key(0)
# These programs run for milliseconds; compiling them takes the time.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_trajectory(spec, seed, length, batch, ends=0.2):
    """A random trajectory ``[T, B]`` of ``spec``; a share ``ends`` of the steps terminate or truncate an episode."""
    rng = np.random.default_rng(seed)

    def draw(space):
        space.seed(int(rng.integers(2**31)))
        flat = [space.sample() for _ in range(length * batch)]
        stacked = jax.tree.map(lambda *x: np.stack(x), *flat)
        return jax.tree.map(lambda x: jnp.asarray(x.reshape(length, batch, *x.shape[1:])), stacked)

    ended = rng.random((length, batch)) < ends
    terminated = ended & (rng.random((length, batch)) < 0.5)
    start = np.concatenate([rng.random((1, batch)) < ends, ended[:-1]])
    return Transition(
        observation=draw(spec.observation_space),
        action=draw(spec.action_space),
        rewards={"env": jnp.zeros((length, batch))},
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(ended & ~terminated),
        next_observation=draw(spec.observation_space),
        mask=jnp.ones((length, batch)),
        extras={"episode_start": jnp.asarray(start)},
    )


def arrays(tree):
    """Every leaf as numpy; typed keys as their data."""

    def plain(leaf):
        return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return [np.asarray(plain(leaf)) for leaf in jax.tree.leaves(tree)]


def assert_same(found, expected):
    for one, other in zip(arrays(found), arrays(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def undone(transform, old, new):
    """The state that a learner keeps where it undoes the update from ``old`` to ``new``."""
    rest, _ = transform.remembered.split(old)
    return transform.remembered.join(rest, transform.remembered.split(new)[1])


def started(transform, learned=("params", "predictor", "target")):
    """A state like the one from ``init`` with networks that are drawn here, so that nothing is compiled for it."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(transform.init, KEY)

    def blank(leaf):
        key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return KEY if key else jnp.zeros(leaf.shape, leaf.dtype)

    def draw(leaf):
        scale = 0.5 / np.sqrt(leaf.shape[0]) if leaf.ndim > 1 else 0.1
        return jnp.asarray(2 * scale * rng.normal(size=leaf.shape), leaf.dtype)

    state = jax.tree.map(blank, shapes)
    drawn = {name: jax.tree.map(draw, getattr(shapes, name)) for name in learned if hasattr(shapes, name)}
    if hasattr(state, "scoring"):
        drawn["scoring"] = jax.tree.map(jnp.copy, drawn["params"] if "params" in drawn else drawn["predictor"])
    return state._replace(**drawn)


def obeys_the_contract(transform, trajectories):
    """Checks that ``transform`` compiles once, keeps the structure and types of its state, writes finite rewards
    without side effects, and learns something.

    Returns the first state, the last one and its rewards."""
    traces = {"update": 0, "apply": 0}

    def counted(name, function):
        def call(*arguments):
            traces[name] += 1
            return function(*arguments)

        return jit(call)

    update, apply = counted("update", transform.update), counted("apply", transform.apply)
    shapes = jax.eval_shape(transform.init, KEY)
    first = state = started(transform) if hasattr(shapes, "scoring") else transform.init(KEY)
    for index, trajectory in enumerate(trajectories):
        before = arrays(state)
        new_state, metrics = update(state, trajectory, jax.random.fold_in(KEY, index))
        for one, other in zip(before, arrays(state), strict=True):
            np.testing.assert_array_equal(one, other)
        relabelled, more = apply(new_state, trajectory)
        again, _ = apply(new_state, trajectory)
        assert_same(again, relabelled)
        others = relabelled._replace(rewards={"env": relabelled.rewards["env"]})
        assert_same(others, trajectory)
        rewards = np.asarray(relabelled.rewards["curiosity"])
        assert rewards.shape == trajectory.mask.shape and rewards.dtype == np.float32
        assert all(np.isfinite(x).all() for x in [*arrays((new_state, metrics, more)), rewards])
        assert (rewards[np.asarray(trajectory.mask) == 0] == 0).all()
        assert jax.tree.structure(new_state) == jax.tree.structure(state)
        assert all(
            (x.dtype, x.shape, getattr(x, "weak_type", False)) == (y.dtype, y.shape, y.weak_type)
            for x, y in zip(jax.tree.leaves(new_state), jax.tree.leaves(shapes), strict=True)
        )
        state = new_state
    assert traces == {"update": 1, "apply": 1}
    assert any((x != y).any() for x, y in zip(arrays(first), arrays(state), strict=True))
    return first, state, rewards
