"""All of PPO on CartPole, in the order in which it happens: rollout, advantages, clipped updates.

    python examples/ppo_in_one_page.py

It uses the environments, the rollout and the return estimator of sagax and nothing else of it: two networks as plain
arrays, the loss written out. ``sagax run ppo_cartpole:native`` is the same algorithm as a configuration.
Source: Schulman et al., 2017 (arXiv 1707.06347).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from agents.returns import generalised_advantage
from envs.rollout import start_unroll, unroll
from envs.suites.functional import make_functional

BATCH, LENGTH, EPOCHS, MINIBATCHES = 16, 128, 4, 4
LEARNING_RATE, DISCOUNT, GAE_LAMBDA, CLIP, ENTROPY_WEIGHT, VALUE_WEIGHT = 1e-3, 0.99, 0.95, 0.2, 0.01, 0.5

environment: Any = make_functional("CartPole-v1")
optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(LEARNING_RATE, eps=1e-5))


def dense_layers(key, sizes):
    """Kernel and bias of each layer; the last one starts near zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    gains = [jnp.sqrt(2.0)] * (len(sizes) - 2) + [0.01]
    orthogonal = jax.nn.initializers.orthogonal()
    return [
        (g * orthogonal(k, (n, m)), jnp.zeros(m)) for k, n, m, g in zip(keys, sizes, sizes[1:], gains, strict=False)
    ]


def forward(layers, x):
    """``[..., inputs] -> [..., outputs]``."""
    for kernel, bias in layers[:-1]:
        x = jnp.tanh(x @ kernel + bias)
    kernel, bias = layers[-1]
    return x @ kernel + bias


def log_prob_of(logits, action):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def policy_of(params):
    """The policy function that a rollout calls: ``(carry, observation [B, 4], key) -> (action [B], carry, extras)``."""

    def policy(carry, observation, key):
        logits = forward(params["policy"], observation)
        action = jax.random.categorical(key, logits)
        extras = {"log_prob": log_prob_of(logits, action), "value": forward(params["critic"], observation)[..., 0]}
        return action, carry, extras

    return policy


def loss(params, minibatch):
    """The clipped surrogate, the critic's squared error and the entropy, of ``[items]`` steps."""
    logits = forward(params["policy"], minibatch["observation"])
    ratio = jnp.exp(log_prob_of(logits, minibatch["action"]) - minibatch["log_prob"])
    advantage = minibatch["advantage"]
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), axis=-1)
    error = forward(params["critic"], minibatch["observation"])[..., 0] - minibatch["value_target"]
    return jnp.mean(-surrogate - ENTROPY_WEIGHT * entropy + VALUE_WEIGHT * 0.5 * jnp.square(error))


def update(state, key):
    """One iteration: ``LENGTH`` steps of ``BATCH`` environments, then ``EPOCHS`` passes over them."""
    params, optimiser_state, rollout = state
    rollout_key, update_key = jax.random.split(key)
    rollout, steps = unroll(environment, policy_of(params), rollout, rollout_key, length=LENGTH, initial_carry=())
    # A time limit is not a termination: the value of what followed counts unless the environment ended the episode.
    next_values = forward(params["critic"], steps.next_observation)[..., 0]
    advantage = generalised_advantage(
        steps.rewards["env"],
        steps.extras["value"],
        next_values,
        steps.terminated,
        steps.terminated | steps.truncated,
        DISCOUNT,
        GAE_LAMBDA,
    )
    data = {"observation": steps.observation, "action": steps.action, "log_prob": steps.extras["log_prob"]}
    data |= {"advantage": advantage, "value_target": advantage + steps.extras["value"]}
    data = jax.tree.map(lambda x: x.reshape(LENGTH * BATCH, *x.shape[2:]), data)

    def minibatch_step(carry, items):
        params, optimiser_state = carry
        gradient = jax.grad(loss)(params, jax.tree.map(lambda x: x[items], data))
        changes, optimiser_state = optimiser.update(gradient, optimiser_state)
        return (optax.apply_updates(params, changes), optimiser_state), None

    def epoch(carry, epoch_key):
        order = jax.random.permutation(epoch_key, LENGTH * BATCH).reshape(MINIBATCHES, -1)
        return jax.lax.scan(minibatch_step, carry, order)

    (params, optimiser_state), _ = jax.lax.scan(epoch, (params, optimiser_state), jax.random.split(update_key, EPOCHS))
    ended = (steps.terminated | steps.truncated).sum()
    return (params, optimiser_state, rollout), LENGTH * BATCH / jnp.maximum(ended, 1)


def train(iterations: int = 60, seed: int = 0):
    """Trains, and returns the mean episode length of each iteration, which on CartPole is the return."""
    policy_key, critic_key, start_key, key = jax.random.split(jax.random.key(seed), 4)
    params = {"policy": dense_layers(policy_key, (4, 64, 64, 2)), "critic": dense_layers(critic_key, (4, 64, 64, 1))}
    state = params, optimiser.init(params), start_unroll(environment, start_key, BATCH, ())
    _, lengths = jax.jit(lambda state, keys: jax.lax.scan(update, state, keys))(
        state, jax.random.split(key, iterations)
    )
    return lengths


if __name__ == "__main__":
    for index, length in enumerate(train()):
        if index % 10 == 9:
            print(f"{(index + 1) * LENGTH * BATCH:,} environment steps: mean episode length {length:.0f}")
