"""Trust-region policy gradients: TRPO, and CPO where the rewards come with a constraint.

One update of the policy is the solution ``x`` of

    maximise    g'x   subject to   c + b'x <= 0   and   x'Hx / 2 <= delta,

with the gradient ``g`` of the objective's surrogate, the gradient ``b`` of the constraint's, the violation ``c`` of the
limit at present, and ``H``, the second derivative of ``KL(old || new)``, of which only products ``Hv`` are computed. It
is then shortened until what was linearised holds in fact. Without a constraint this is TRPO (Schulman et al., 2015,
arXiv 1502.05477, appendix C), with one it is CPO (Achiam et al., 2017, arXiv 1705.10528, section 6 and appendix B).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from agents.actor_critic import act, action_probabilities, actor_critic
from agents.base import Agent, DataSpec
from agents.channels import violations
from agents.credit import Assigned, Credit
from agents.losses import step_weights, value_loss
from agents.minibatches import minibatch_epochs, require_minibatches
from agents.networks.base import NetworkBuilder
from agents.networks.sequence import NetworkConfig
from agents.optimisers import chained, gradient_norm
from agents.policy_gradient import assign_credit, credit_metrics, require_credit
from agents.statistics import masked_mean, whiten
from envs.base import EnvironmentSpec, PyTree, Trajectory
from envs.choices import require_known

# Below this, a product of gradients is no direction: the constraint is met whatever the step is.
_SMALLEST = 1e-8


class TrustRegionState(NamedTuple):
    """``params`` has the keys ``policy`` and ``critic``; ``optimiser`` is the critic's, ``()`` without one."""

    params: dict[str, PyTree]
    optimiser: PyTree


class Step(NamedTuple):
    """What ``constrained_step`` found: ``x = along_g H^-1 g + along_b H^-1 b``.

    Attributes:
      along_g, along_b: ``[]`` each.
      recovers: ``bool []``, whether no step within the trust region meets the limit, so that the step lowers the cost
        alone.
    """

    along_g: jax.Array
    along_b: jax.Array
    recovers: jax.Array


def constrained_step(q: jax.Array, r: jax.Array, s: jax.Array, c: jax.Array, delta: float | jax.Array) -> Step:
    """The maximiser of ``g'x`` under ``c + b'x <= 0`` and ``x'Hx / 2 <= delta``, from the products of ``g`` and ``b``.

        x = H^-1 (g - nu b) / lambda,     lambda, nu >= 0 the multipliers of the two constraints

    By cases (Achiam et al., 2017, theorem 2 and appendix B):

    * the limit cannot be missed within the region, or the unconstrained step meets it: ``nu = 0``,
      ``lambda = sqrt(q / (2 delta))``;
    * the limit binds: ``lambda`` is the better of two candidates, one for each sign of ``lambda c + r``, and
      ``nu = max((lambda c + r) / s, 0)``;
    * no step meets the limit: ``x = -sqrt(2 delta / s) H^-1 b`` (recovery).

    Args:
      q, r, s: ``g'H^-1 g``, ``g'H^-1 b`` and ``b'H^-1 b``.
      c: the violation at ``x = 0``: above 0 where the limit is missed.
      delta: size of the trust region, in nats.
    """
    safe_s = jnp.maximum(s, _SMALLEST)
    reach = 2 * delta - jnp.square(c) / safe_s
    has_direction = s > _SMALLEST
    recovers = has_direction & (c > 0) & (reach <= 0)
    # Within the region the limit holds everywhere: it is met now, and the boundary is out of reach.
    ignored = ~has_direction | ((c <= 0) & (reach <= 0))
    unconstrained = jnp.sqrt(jnp.maximum(q, _SMALLEST) / (2 * delta))
    # Where g and b are parallel, lambda is 0 and its step 0 / 0: a small lambda gives the limit's own step.
    least = 1e-3 * unconstrained

    # The dual, minimised over each of the two pieces on which nu is a different function of lambda.
    left = jnp.maximum(q - jnp.square(r) / safe_s, 0.0)
    binding = jnp.sqrt(left / jnp.maximum(reach, _SMALLEST))
    boundary = -r / jnp.where(c < 0, jnp.minimum(c, -_SMALLEST), jnp.maximum(c, _SMALLEST))
    # lambda c + r > 0: to the left of the boundary where c < 0, to its right where c > 0.
    inside = jnp.where(c < 0, jnp.minimum(binding, boundary), jnp.maximum(binding, boundary))
    outside = jnp.where(c < 0, jnp.maximum(unconstrained, boundary), jnp.minimum(unconstrained, boundary))
    inside, outside = jnp.maximum(inside, least), jnp.maximum(outside, least)

    def dual(multiplier):
        nu = jnp.maximum((multiplier * c + r) / safe_s, 0.0)
        return (q - 2 * r * nu + s * jnp.square(nu)) / (2 * multiplier) + multiplier * delta - nu * c

    chosen = jnp.where(dual(inside) < dual(outside), inside, outside)
    multiplier = jnp.where(ignored, unconstrained, chosen)
    nu = jnp.where(ignored, 0.0, jnp.maximum((multiplier * c + r) / safe_s, 0.0))
    return Step(
        jnp.where(recovers, 0.0, 1 / multiplier),
        jnp.where(recovers, -jnp.sqrt(2 * delta / safe_s), -nu / multiplier),
        recovers,
    )


def conjugate_gradient(product: Callable[[jax.Array], jax.Array], target: jax.Array, iterations: int) -> jax.Array:
    """``x`` with ``product(x) = target`` for a symmetric positive definite product, to ``iterations`` directions."""
    return jax.scipy.sparse.linalg.cg(product, target, tol=1e-10, maxiter=iterations)[0]


class Region(NamedTuple):
    """The settings of ``improved``; see ``trust_region``."""

    divergence: float | jax.Array = 0.01
    damping: float | jax.Array = 0.1
    directions: int = 15
    backtracks: int = 15
    shrink: float | jax.Array = 0.8


class Surrogates(NamedTuple):
    """Of a policy on data of another, ``[]`` each: ``mean(rho A)``, ``mean(rho A_c)`` and the mean divergence."""

    objective: jax.Array
    cost: jax.Array
    divergence: jax.Array


def improved(
    policy: PyTree,
    measure: Callable[[PyTree], Surrogates],
    excess: jax.Array | None,
    region: Region,
) -> tuple[PyTree, dict[str, jax.Array]]:
    """One step of the trust region, shortened until what was linearised holds.

    Args:
      policy: parameters, at which the divergence is 0.
      measure: of other parameters.
      excess: ``c``, how far the limit is missed, per step; ``None`` without a constraint.
      region: the settings.

    Returns:
      The parameters, and the metrics ``divergence``, ``step_size``, ``recovers``, ``surrogate``,
      ``policy_gradient_norm`` and, with a constraint, ``cost_surrogate`` and ``cost_multiplier``.
    """
    vector, unravel = ravel_pytree(policy)

    def measured(vector):
        return measure(unravel(vector))

    def product(direction):
        gradient = jax.grad(lambda vector: measured(vector).divergence)
        return jax.jvp(gradient, (vector,), (direction,))[1] + region.damping * direction

    before, pull = jax.vjp(measured, vector)
    one, zero = jnp.ones(()), jnp.zeros(())
    [g] = pull(Surrogates(one, zero, zero))
    along_g = conjugate_gradient(product, g, region.directions)
    r, s, along_b, limit = zero, zero, jnp.zeros_like(g), zero
    if excess is not None:
        [b] = pull(Surrogates(zero, one, zero))
        along_b, limit = conjugate_gradient(product, b, region.directions), excess
        r, s = g @ along_b, b @ along_b
    step = constrained_step(g @ along_g, r, s, limit, region.divergence)
    move = step.along_g * along_g + step.along_b * along_b

    def holds(size):
        after = measured(vector + size * move)
        better = step.recovers | (after.objective >= before.objective)
        met = after.cost - before.cost <= jnp.maximum(-limit, 0.0)
        return (after.divergence <= region.divergence) & better & (met if excess is not None else True)

    def shorter(carry):
        count, size, _ = carry
        return count + 1, size * region.shrink, holds(size * region.shrink)

    first = jnp.zeros((), jnp.int32), one, holds(one)
    _, size, found = jax.lax.while_loop(lambda carry: ~carry[2] & (carry[0] < region.backtracks), shorter, first)
    size = jnp.where(found, size, 0.0)
    new = vector + size * move
    after = measured(new)
    metrics = {
        "divergence": after.divergence,
        "step_size": size,
        "recovers": step.recovers.astype(jnp.float32),
        "surrogate": after.objective - before.objective,
        "policy_gradient_norm": jnp.linalg.norm(g),
    }
    if excess is not None:
        metrics["cost_surrogate"] = after.cost - before.cost
        nu = -step.along_b / jnp.maximum(step.along_g, _SMALLEST)
        metrics["cost_multiplier"] = jnp.where(step.recovers, 0.0, nu)
    return unravel(new), metrics


def trust_region(
    spec: EnvironmentSpec,
    *,
    credit: Credit,
    data: DataSpec,
    network_config: NetworkBuilder = NetworkConfig(),  # noqa: B008  (frozen)
    critic_config: NetworkBuilder | None = None,
    continuous: str = "gaussian",
    initial_std: float | jax.Array = 1.0,
    constraint: str | None = None,
    divergence: float | jax.Array = 0.01,
    damping: float | jax.Array = 0.1,
    directions: int = 15,
    backtracks: int = 15,
    shrink: float | jax.Array = 0.8,
    epochs: int = 10,
    minibatches: int = 1,
    learning_rate: float | optax.Schedule = 1e-3,
    adam_epsilon: float = 1e-5,
    max_gradient_norm: float | None = None,
    flatten: bool = True,
) -> Agent:
    """Builds a trust-region agent: TRPO, or CPO with a ``constraint``.

        g = d/dtheta mean(rho A),   b = d/dtheta mean(rho A_c),   c = violation per step,   rho = pi(a) / pi_old(a)

    ``A`` is the mixed advantage of ``credit``, whitened where that says so, and ``A_c`` the advantage of the entry
    ``constraint`` alone, in units of its channel. The violation comes from the reward transform ``lagrangian``, in
    ``extras["violation"]``; its multipliers should be ``fixed`` at 0, because this agent finds its own. ``x`` of
    ``constrained_step`` is shortened by ``shrink`` up to ``backtracks`` times, until the divergence is at most
    ``divergence``, the objective's surrogate has not fallen (unless the step recovers) and the cost's has not risen by
    more than the limit leaves; if it never is, the policy stays as it was. The critic learns afterwards, with Adam.

    Use it where a limit should hold at every update rather than at the end: there is no multiplier that has to be
    learned. An update costs ``directions`` products with ``H`` on the whole batch.

    Metrics: ``divergence``, ``step_size`` (the share of ``x`` that was taken, 0 for none), ``recovers``, ``surrogate``,
    and with a constraint ``cost_surrogate`` and ``cost_multiplier``, ``nu`` of the step in units of the whitened
    objective per unit of cost.

    Args:
      spec: the environment.
      credit: channels to advantage; entries whose estimator needs a critic get a value head.
      data: unrolls, or episodes in groups.
      network_config, critic_config: what builds policy and critic; the critic's defaults to the policy's.
      continuous, initial_std: distribution for Box actions, see ``agents.distributions.distribution_for``.
      constraint: the entry of ``credit`` whose total has a limit; ``None`` for TRPO.
      divergence: ``delta``, the largest mean of ``KL(old || new)``, in nats.
      damping: is added to the diagonal of ``H``.
      directions: of conjugate gradients.
      backtracks, shrink: see above.
      epochs, minibatches, learning_rate, adam_epsilon, max_gradient_norm, flatten: of the critic, as in
        ``agents.policy_gradient``.

    Raises:
      ValueError: a ``constraint`` that is no entry of ``credit``; whitened entries, after which a cost has no units;
        counts below 1; data that cannot be cut into ``minibatches``; at trace time, a trajectory without the violation
        of ``constraint``.
      UnsupportedSpaceError: an action or observation space that is not supported.
    """
    _validate(
        credit,
        data,
        constraint,
        {"directions": directions, "backtracks": backtracks, "epochs": epochs, "minibatches": minibatches},
    )
    model = actor_critic(
        spec,
        network_config,
        critic_config or network_config,
        critics=credit.critics,
        continuous=continuous,
        initial_std=initial_std,
    )
    require_minibatches(minibatches, data.batch if model.recurrent else data.batch * data.length)
    clipping = [] if max_gradient_norm is None else [optax.clip_by_global_norm(max_gradient_norm)]
    optimiser = chained(*clipping, optax.adam(learning_rate, eps=adam_epsilon), flatten=flatten)
    region = Region(divergence, damping, directions, backtracks, shrink)

    def init_fn(key):
        params = model.init(key)
        return TrustRegionState(params, optimiser.init(params["critic"]) if model.critics else ())

    def policy_step(params, trajectory: Trajectory, assigned: Assigned):
        carry, start = model.initial_carry(1), None
        if model.recurrent:
            carry, start = jax.tree.map(lambda x: x[0], trajectory.extras["carry"]), trajectory.extras["episode_start"]
        weight = step_weights(trajectory.mask, "steps")
        advantage = assigned.advantage
        if credit.whiten == "minibatch":
            advantage = whiten(advantage, trajectory.mask)
        cost = jnp.zeros_like(advantage) if constraint is None else assigned.parts[constraint]

        def outputs(policy):
            return model.forward(params | {"policy": policy}, trajectory.observation, carry, start)[0]

        old = outputs(params["policy"])

        def measure(policy):
            new = outputs(policy)
            change = model.distribution.log_prob(new, trajectory.action) - trajectory.extras["log_prob"]
            ratio = weight * jnp.exp(jnp.where(trajectory.mask > 0, change, 0.0))
            divergence = jnp.sum(weight * model.distribution.divergence(old, new))
            return Surrogates(jnp.sum(ratio * advantage), jnp.sum(ratio * cost), divergence)

        excess = None if constraint is None else violations(trajectory, constraint)
        policy, metrics = improved(params["policy"], measure, excess, region)
        metrics["entropy"] = masked_mean(model.distribution.entropy(outputs(policy)), trajectory.mask)
        return params | {"policy": policy}, metrics

    def critic_step(state, part, carry):
        critic, optimiser_state, params = state
        carry = carry if model.recurrent else model.initial_carry(1)

        def loss_fn(critic):
            _, values, _ = model.forward(
                params | {"critic": critic}, part["observation"], carry, part.get("episode_start"), normalised=True
            )
            losses = {
                name: masked_mean(value_loss(value, part["target"][name]), part["mask"])
                for name, value in values.items()
            }
            return sum(losses.values(), jnp.zeros(())), losses

        (loss, losses), gradient = jax.value_and_grad(loss_fn, has_aux=True)(critic)
        updates, optimiser_state = optimiser.update(gradient, optimiser_state, critic)
        metrics = {f"value_loss/{name}": each for name, each in losses.items()}
        metrics |= {"loss": loss, "gradient_norm": gradient_norm(gradient, flatten=flatten)}
        return (optax.apply_updates(critic, updates), optimiser_state, params), metrics

    def update_fn(state, trajectory: Trajectory, key):
        assigned = assign_credit(credit, model, state.params, trajectory, data, spec.max_episode_steps)
        params, metrics = policy_step(state.params, trajectory, assigned)
        optimiser_state = state.optimiser
        if model.critics:
            batch = {"observation": trajectory.observation, "mask": trajectory.mask, "target": assigned.value_targets}
            start_carry: PyTree = ()
            if model.recurrent:
                batch["episode_start"] = trajectory.extras["episode_start"]
                start_carry = jax.tree.map(lambda x: x[0], trajectory.extras["carry"])
            (critic, optimiser_state, _), own = minibatch_epochs(
                critic_step,
                (params["critic"], optimiser_state, params),
                batch,
                start_carry,
                key,
                epochs=epochs,
                minibatches=minibatches,
                whole_columns=model.recurrent,
            )
            params = params | {"critic": critic}
            metrics |= own
        else:
            metrics |= {"loss": -metrics["surrogate"], "gradient_norm": metrics["policy_gradient_norm"]}
        params = model.observe(params, trajectory.observation, trajectory.mask)
        metrics |= credit_metrics(assigned, trajectory.extras["value"], trajectory.mask)
        return TrustRegionState(params, optimiser_state), metrics

    discrete = isinstance(spec.action_space, gymnasium.spaces.Discrete)
    probabilities = partial(action_probabilities, model) if discrete else None
    return Agent(init_fn, model.initial_carry, partial(act, model), update_fn, data, probabilities)


def _validate(credit: Credit, data: DataSpec, constraint: str | None, counts: dict[str, int]) -> None:
    require_credit(credit, data, "trust_region")
    if constraint is not None:
        require_known("credit entry", constraint, credit.entries, "in constraint")
    if credit.whiten == "entries":
        raise ValueError("trust_region: whiten='entries' takes the units from a cost: expected 'batch' or 'none'")
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count}: expected at least 1")
