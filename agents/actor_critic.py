"""A policy and its value heads: one network or two, called as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from agents.action_masks import action_mask_of, masked_logits
from agents.distributions import Distribution, distribution_for
from agents.networks.base import Head, Network, NetworkBuilder
from agents.popart import TargetStatistics, add_targets, change_of_units, no_targets
from envs.base import EnvironmentSpec, PyTree

# Where the parameters hold the statistics of PopArt, by head.
STATISTICS = "target_statistics"


class ActorCritic(NamedTuple):
    """A policy with value heads as pure functions; ``P`` is the number of parameters of its action distribution.

    Attributes:
      init: ``(key) -> params`` with the keys ``policy`` and ``critic`` (``{}`` without a separate critic), and with
        PopArt ``target_statistics``, an ``agents.popart.TargetStatistics`` by head.
      initial_carry: ``(batch) -> carry``, the recurrent state at the start of an episode.
      forward: ``(params, observation [T, B, ...], carry, episode_start [T, B] or None, normalised=False) -> (parameters
        [T, B, P], values [T, B] by head, carry)``. Values are in units of the reward or, where ``normalised``, as the
        heads predict them, which differs with PopArt alone.
      distribution: over actions.
      critics: names of the value heads.
      recurrent: whether policy or critic carries a state.
      observe: ``(params, observation [T, B, ...], mask [T, B]) -> params``, see ``agents.networks.base.Network``.
      rescale: ``(params, targets [T, B] by head, mask [T, B]) -> params``: with PopArt, the targets are added to the
        statistics, and the heads are rescaled so that every value stays what it was.
      normalise: ``(params, values [T, B] by head) -> values [T, B] by head``, from units of the reward to those in
        which the heads predict.
    """

    init: Callable[[jax.Array], PyTree]
    initial_carry: Callable[[int], PyTree]
    forward: Callable[..., tuple[jax.Array, dict[str, jax.Array], PyTree]]
    distribution: Distribution
    critics: tuple[str, ...]
    recurrent: bool
    observe: Callable[[PyTree, PyTree, jax.Array], PyTree]
    rescale: Callable[[PyTree, Mapping[str, jax.Array], jax.Array], PyTree]
    normalise: Callable[[PyTree, Mapping[str, jax.Array]], Mapping[str, jax.Array]]


def policy_network(
    spec: EnvironmentSpec,
    config: NetworkBuilder,
    *,
    continuous: str = "gaussian",
    initial_std: float | jax.Array = 1.0,
    critics: tuple[str, ...] = (),
) -> tuple[Network, Distribution]:
    """The policy network for ``spec`` and the action distribution that it parameterises.

    The network has the head ``policy`` and one value head for each name in ``critics``. ``continuous`` and
    ``initial_std`` describe the distribution over Box actions, see ``agents.distributions.distribution_for``.

    Raises:
      UnsupportedSpaceError: an action or observation space that is not supported.
    """
    distribution = distribution_for(spec.action_space, continuous=continuous, initial_std=initial_std)
    heads = {"policy": Head(distribution.num_parameters, scale=0.01, num_free=distribution.num_free)}
    heads |= {name: Head(1) for name in critics}
    return config(spec.observation_space, heads), distribution


def actor_critic(
    spec: EnvironmentSpec,
    policy_config: NetworkBuilder,
    critic_config: NetworkBuilder,
    *,
    critics: tuple[str, ...],
    shared: bool = False,
    continuous: str = "gaussian",
    initial_std: float | jax.Array = 1.0,
    popart: float | jax.Array | None = None,
) -> ActorCritic:
    """Builds a policy and one value head for each name in ``critics``.

    Where observations have an ``action_mask``, the policy gives actions that it rules out a probability of 0, see
    ``agents.action_masks``.

    Args:
      spec: the environment.
      policy_config, critic_config: what builds the two networks; the second is not used where ``shared``.
      critics: names of the value heads; none makes a policy alone.
      shared: value heads on the policy's network instead of a network of their own.
      continuous, initial_std: distribution for Box actions, see ``agents.distributions.distribution_for``.
      popart: step size of the running statistics by which value heads are normalised, see ``agents.popart``; ``None``
        for heads that predict in units of the reward.

    Raises:
      UnsupportedSpaceError: an action or observation space that is not supported.
      ValueError: an ``action_mask`` that does not fit the actions; PopArt without a value head, or on a network that
        cannot rescale one.
    """
    heads = critics if shared else ()
    policy, distribution = policy_network(
        spec, policy_config, continuous=continuous, initial_std=initial_std, critics=heads
    )
    critic = None
    if critics and not shared:
        critic = critic_config(spec.observation_space, {name: Head(1) for name in critics})
    allowed = action_mask_of(spec)
    owner, valued = ("critic", critic) if critic else ("policy", policy)
    rescale_head = valued.rescale
    if popart is not None:
        _require_rescalable(critics, valued, policy_config if shared else critic_config)

    def init_fn(key):
        policy_key, critic_key = jax.random.split(key)
        params = {"policy": policy.init(policy_key), "critic": critic.init(critic_key) if critic else {}}
        return params if popart is None else params | {STATISTICS: {name: no_targets() for name in critics}}

    def statistics_of(params) -> dict[str, TargetStatistics]:
        # They change by ``rescale`` alone: no gradient flows through them, so that an optimiser leaves them alone.
        return jax.lax.stop_gradient(params[STATISTICS])

    def initial_carry(batch):
        return {"policy": policy.initial_carry(batch), "critic": critic.initial_carry(batch) if critic else ()}

    def forward(params, observation, carry, episode_start, normalised=False):
        outputs, policy_carry = policy.apply(params["policy"], observation, carry["policy"], episode_start)
        critic_carry = carry["critic"]
        if critic is not None:
            value_outputs, critic_carry = critic.apply(params["critic"], observation, critic_carry, episode_start)
            outputs = outputs | value_outputs
        values = {name: outputs[name][..., 0] for name in critics}
        if popart is not None and not normalised:
            values = {name: one.restore(values[name]) for name, one in statistics_of(params).items()}
        parameters = outputs["policy"]
        if allowed is not None:
            parameters = masked_logits(parameters, allowed(observation))
        return parameters, values, {"policy": policy_carry, "critic": critic_carry}

    def observe(params, observation, mask):
        policy_params = policy.observe(params["policy"], observation, mask)
        critic_params = critic.observe(params["critic"], observation, mask) if critic else params["critic"]
        return params | {"policy": policy_params, "critic": critic_params}

    def rescale(params, targets, mask):
        if popart is None or rescale_head is None:
            return params
        old = params[STATISTICS]
        new = {name: add_targets(old[name], targets[name], mask, popart) for name in critics}
        heads = params[owner]
        for name in critics:
            heads = rescale_head(heads, name, *change_of_units(old[name], new[name]))
        return params | {owner: heads, STATISTICS: new}

    def normalise(params, values):
        if popart is None:
            return values
        return {name: one.normalise(values[name]) for name, one in statistics_of(params).items()}

    recurrent = policy.recurrent or (critic is not None and critic.recurrent)
    return ActorCritic(init_fn, initial_carry, forward, distribution, critics, recurrent, observe, rescale, normalise)


def _require_rescalable(critics: tuple[str, ...], network: Network, config: NetworkBuilder) -> None:
    if not critics:
        raise ValueError("popart=True normalises value heads, and no credit has a critic: expected popart=False")
    if network.rescale is None:
        raise ValueError(
            f"popart=True rescales value heads, and {config} builds networks without rescale: expected "
            "network.kind='sequence', or a kind whose Network has it"
        )


def action_probabilities(
    model: ActorCritic, params: PyTree, carry: PyTree, observation: PyTree, *, greedy: bool = False
) -> jax.Array:
    """Probabilities ``[B, A]`` of Discrete actions on observations ``[B, ...]``; where ``greedy``, 1 for the mode."""
    logits = model.forward(params, jax.tree.map(lambda x: x[None], observation), carry, None)[0][0]
    return (
        jax.nn.one_hot(model.distribution.mode(logits), logits.shape[-1], dtype=logits.dtype)
        if greedy
        else jax.nn.softmax(logits)
    )


def act(
    model: ActorCritic,
    params: PyTree,
    carry: PyTree,
    observation: PyTree,
    key: jax.Array,
    *,
    greedy: bool = False,
    action: PyTree = None,
) -> tuple[PyTree, PyTree, dict[str, PyTree]]:
    """One step of ``model`` on observations ``[B, ...]``; see ``agents.base.Agent`` for the arguments.

    Returns:
      The action ``[B, ...]``, the next carry, and extras: ``log_prob`` ``[B]`` of the action, the parameters of its
      ``distribution`` ``[B, P]`` and ``value`` ``[B]`` by head.
    """
    observation = jax.tree.map(lambda x: x[None], observation)
    parameters, values, carry = model.forward(params, observation, carry, None)
    parameters = parameters[0]
    if action is None:
        sample, mode = model.distribution.sample, model.distribution.mode
        action = mode(parameters) if greedy else sample(key, parameters)
    extras = {
        "log_prob": model.distribution.log_prob(parameters, action),
        "distribution": parameters,
        "value": {name: value[0] for name, value in values.items()},
    }
    return action, carry, extras
