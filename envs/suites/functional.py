"""gymnasium's functional JAX environments as pure environments, so that CartPole runs inside jit.

Some functional environments of gymnasium 1.4 differ from the registered environment of the same name. The
environments made here behave as the registered ones. The differences:

* CartPole: ``CartPoleParams.polemass_length`` is ``masspole + length`` (0.6), but ``CartPole-v1`` uses
  ``masspole * length`` (0.05). With ``sutton_barto_reward`` the functional reward depends on the state before the
  step, so that the fall is never punished; that of ``CartPole-v1`` depends on the state after it. In both, the
  default reward is 1 for every step, the last one included.
* Pendulum: the functional observation space has no bounds.
* CliffWalking: action and position are arrays of one element, the state changes its shapes in the first step, and
  ``observation``, ``terminal`` and ``reward`` take no random key.
* Blackjack: the observation is ``int32 [3]`` (sum, the dealer's card, usable ace) instead of a tuple, here too; the
  state changes its types in the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.experimental.functional import FuncEnv

from envs.base import Action, Environment, EnvironmentSpec, EnvState, Observation, TimeStep
from envs.choices import require_known
from envs.suites.adapter import Game, Step, Suite
from envs.wrappers import TimeLimit

# Key streams inside a reset and inside a step.
_TRANSITION, _OBSERVATION, _REWARD, _TERMINAL = range(4)


@dataclass(frozen=True, eq=False)
class Functional:
    """A ``FuncEnv`` as an ``Environment``. It has no time limit: wrap it in ``TimeLimit``.

    It is equal only to itself, because gymnasium's environments and spaces cannot be compared.

    Attributes:
      func_env: has ``initial``, ``transition``, ``observation``, ``reward`` and ``terminal``, written in JAX. The first
        step may change the types of the state, which is converted back to those of ``initial``, but not its shapes.
      params: passed to every function; ``None`` for ``func_env.default_params``.
      observation_space, action_space: used instead of the spaces of ``func_env`` where given.

    Raises:
      TypeError: ``func_env`` is not a ``FuncEnv``.
      UnsupportedSpaceError: a space has a part that is not an array of fixed shape.
    """

    func_env: FuncEnv
    params: Any = None
    observation_space: gymnasium.Space | None = None
    action_space: gymnasium.Space | None = None

    def __post_init__(self):
        if not isinstance(self.func_env, FuncEnv):
            raise TypeError(f"func_env={self.func_env!r}: expected a gymnasium FuncEnv; make_functional makes one")
        # Made here, so that spaces that are not supported are refused at once.
        self._suite  # noqa: B018

    @cached_property
    def _suite(self) -> Suite:
        func_env, params = self.func_env, self._params

        def observe(state, key):
            return func_env.observation(state, jax.random.fold_in(key, _OBSERVATION), params)

        def start(key):
            state = func_env.initial(jax.random.fold_in(key, _TRANSITION), params)
            return state, observe(state, key)

        def step(key, state, action):
            following = func_env.transition(state, action, jax.random.fold_in(key, _TRANSITION), params)
            # What follows sees the types that the next step will see.
            following = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), following, state)
            reward = func_env.reward(state, action, following, jax.random.fold_in(key, _REWARD), params)
            terminated = func_env.terminal(following, jax.random.fold_in(key, _TERMINAL), params)
            return Step(following, observe(following, key), reward, terminated, False)

        observations = self.observation_space or func_env.observation_space
        actions = self.action_space or func_env.action_space
        return Suite(Game(type(func_env).__name__, start, step, observations, actions))

    @property
    def spec(self) -> EnvironmentSpec:
        """The spaces; there are no costs, objectives or info."""
        return self._suite.spec

    @property
    def _params(self) -> Any:
        return self.func_env.default_params if self.params is None else self.params

    def reset(self, key: jax.Array) -> tuple[EnvState, Observation]:
        """Draws a start state."""
        return self._suite.reset(key)

    def step(self, key: jax.Array, state: EnvState, action: Action) -> tuple[EnvState, TimeStep]:
        """One transition; never resets and never truncates."""
        return self._suite.step(key, state, action)

    def draw_image(self, state: EnvState) -> np.ndarray:
        """What the ``FuncEnv`` itself draws.

        Raises:
          NotImplementedError: it draws nothing.
        """
        screen = self.func_env.render_init(params=self._params)
        return np.asarray(self.func_env.render_image(state, screen, self._params)[1])


# A factory imports its gymnasium module when it is called: one of them allocates an array, which starts JAX's backend.


def _cart_pole(**parameters) -> Functional:
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv
    from gymnasium.envs.phys2d.cartpole import CartPoleFunctional, CartPoleParams

    class CartPole(CartPoleFunctional):
        def reward(self, state, action, next_state, rng, params=CartPoleParams):
            return super().reward(next_state, action, next_state, rng, params)

    given = CartPoleParams(**parameters)
    derived = {"total_mass": given.masspole + given.masscart, "polemass_length": given.masspole * given.length}
    params = replace(given, **(derived | parameters))
    return Functional(CartPole(), params, observation_space=CartPoleEnv().observation_space)


def _pendulum(**parameters) -> Functional:
    from gymnasium.envs.classic_control.pendulum import PendulumEnv
    from gymnasium.envs.phys2d.pendulum import PendulumFunctional, PendulumParams

    return Functional(
        PendulumFunctional(), PendulumParams(**parameters), observation_space=PendulumEnv().observation_space
    )


def _blackjack(**parameters) -> Functional:
    from gymnasium.envs.tabular.blackjack import BlackjackFunctional, BlackJackParams

    return Functional(BlackjackFunctional(), BlackJackParams(**parameters))


def _cliff_walking(**parameters) -> Functional:
    from gymnasium.envs.tabular.cliffwalking import CliffWalkingFunctional

    class CliffWalking(CliffWalkingFunctional):
        def initial(self, rng, params=None):
            state = super().initial(rng)
            return state._replace(last_action=jnp.asarray(state.last_action), fallen=jnp.zeros(1, bool))

        def transition(self, state, action, key, params=None):
            return super().transition(state, jnp.reshape(action, 1), key)

        def observation(self, state, rng, params=None):
            return super().observation(state)[0]

        def terminal(self, state, rng, params=None):
            return super().terminal(state)

        def reward(self, state, action, next_state, rng, params=None):
            return super().reward(state, action, next_state)

    if parameters:
        raise TypeError(f"CliffWalking-v1 takes no parameters, got {sorted(parameters)}")
    spaces = gymnasium.spaces
    return Functional(CliffWalking(), observation_space=spaces.Discrete(48), action_space=spaces.Discrete(4))


_FACTORIES: dict[str, Callable[..., Functional]] = {
    "Blackjack-v1": _blackjack,
    "CartPole-v1": _cart_pole,
    "CliffWalking-v1": _cliff_walking,
    "Pendulum-v1": _pendulum,
}


@lru_cache
def _made(name: str, parameters: tuple[tuple[str, Any], ...]) -> Functional:
    # Cached, because an environment is equal only to itself: with a new object, jitted functions would compile again.
    return _FACTORIES[name](**dict(parameters))


def make_functional(name: str, *, max_episode_steps: int | None = None, **parameters: Any) -> Environment:
    """A pure environment that behaves as gymnasium's registered environment ``name``, time limit included.

    Args:
      name: ``CartPole-v1`` (500 steps), ``Pendulum-v1`` (200), ``Blackjack-v1`` or ``CliffWalking-v1`` (no limit).
      max_episode_steps: replaces gymnasium's time limit where given.
      **parameters: fields of gymnasium's ``CartPoleParams``, ``PendulumParams`` or ``BlackJackParams``. For CartPole
        ``total_mass`` and ``polemass_length`` are computed from ``masscart``, ``masspole`` and ``length``.

    Raises:
      ValueError: the name is unknown, or the time limit is below 1.
      TypeError: the environment does not have a parameter.
    """
    require_known("functional environment", name, _FACTORIES)
    environment = _made(name, tuple(sorted(parameters.items())))
    limit = gymnasium.spec(name).max_episode_steps if max_episode_steps is None else max_episode_steps
    return environment if limit is None else TimeLimit(environment, limit)
