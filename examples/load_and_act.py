"""Train for a moment, load the policy and let it play one episode in gymnasium.

    python examples/load_and_act.py [FOLDER]

``FOLDER`` is a run folder of ``ppo_cartpole``; without one a short run is trained first, into ``runs/load_and_act``.
"""

import sys
from pathlib import Path

import gymnasium

from experiments.api import load, restore, train


def main(folder: str | Path | None = None, iterations: int = 60) -> float:
    """Plays one episode; returns its return."""
    if folder is None:
        folder = "runs/load_and_act"
        train(load("ppo_cartpole:native", {"iterations": iterations}), folder, seeds=1)
    policy = restore(folder)
    environment = gymnasium.make("CartPole-v1")
    observation, _ = environment.reset(seed=0)
    # The carry is the policy's memory; None starts an episode.
    total, carry, ended = 0.0, None, False
    while not ended:
        action, carry = policy.act(observation, carry)
        observation, reward, terminated, truncated, _ = environment.step(int(action))
        total, ended = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    print(f"return {main(*sys.argv[1:2]):.0f}")
