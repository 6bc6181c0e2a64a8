"""A network of your own: a factory whose keyword arguments are the keys of the section ``network``.

    python examples/my_network.py

or from the shell, in the root of the repository:

    sagax run ppo_cartpole:native --config.network.kind=examples.my_network:Fourier --config.network.width=128
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from agents.networks.base import Network
from agents.networks.encoders import feature_size, observation_features
from experiments.api import load, train


@dataclass(frozen=True)
class Fourier:
    """Learned Fourier features: ``outputs[head] = cos(x A + a) W_head + w_head``, for any observation space.

    ``agents.networks.base.NetworkBuilder`` says what a network has to be; this one has no memory, and hence no carry.
    """

    width: int = 64
    frequency: float = 1.0

    def __call__(self, observation_space, heads) -> Network:
        inputs = feature_size(observation_space)

        def init(key):
            matrix_key, phase_key, *head_keys = jax.random.split(key, 2 + len(heads))
            outputs = {
                name: {
                    "kernel": head.scale * jax.random.normal(head_key, (self.width, head.size)) / self.width**0.5,
                    "bias": jnp.zeros(head.size),
                }
                for head_key, (name, head) in zip(head_keys, heads.items(), strict=True)
            }
            return {
                "matrix": self.frequency * jax.random.normal(matrix_key, (inputs, self.width)),
                "phase": jax.random.uniform(phase_key, (self.width,), maxval=2 * jnp.pi),
                "heads": outputs,
            }

        def apply(params, observation, carry=(), episode_start=None):
            x = observation_features(observation_space, observation)
            x = jnp.cos(x @ params["matrix"] + params["phase"])
            return {name: x @ head["kernel"] + head["bias"] for name, head in params["heads"].items()}, carry

        return Network(init, apply, initial_carry=lambda batch: (), recurrent=False)


def main(folder: str = "runs/my_network", iterations: int = 20) -> float:
    """Trains PPO with it; returns the last mean return."""
    overrides = {
        "network.kind": "examples.my_network:Fourier",
        "network.width": 128,
        "iterations": iterations,
        "evaluate_every": iterations,
    }
    rows = train(load("ppo_cartpole:native", overrides), folder, seeds=1)
    return rows[-1]["return"]


if __name__ == "__main__":
    print(f"mean return {main():.0f}")
