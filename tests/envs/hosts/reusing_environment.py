"""An environment that returns the same array in every step; importing this module registers it with gymnasium."""

import gymnasium
import numpy as np
from gymnasium import spaces


class Reusing(gymnasium.Env):
    """Counts its steps in one array and returns that array in every step, bare or in a dictionary."""

    action_space = spaces.Discrete(2)

    def __init__(self, nested=False):
        self.buffer = np.zeros(1, np.float32)
        self.nested, self.steps = nested, 0
        box = spaces.Box(0, 100, (1,), np.float32)
        self.observation_space = spaces.Dict({"x": box}) if nested else box
        self.shown = {"x": self.buffer} if nested else self.buffer

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.buffer[:] = 0
        return self.shown, {}

    def step(self, action):
        self.steps += 1
        self.buffer[:] = self.steps + 10 * action
        return self.shown, 1.0, False, self.steps == 3, {}


gymnasium.register("sagax_test/Reusing-v0", Reusing, disable_env_checker=True)
