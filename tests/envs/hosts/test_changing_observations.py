"""Gymnasium environments whose observations stop being like their space."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.base import ObservationRangeError
from envs.hosts.gymnasium import GymnasiumHost


class Changing(gymnasium.Env):
    """Returns ``late`` in place of an observation from its third step on."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, late, space=None):
        self.late, self.steps = late, 0
        self.observation_space = space or self.observation_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return (self.late if self.steps > 2 else self.observation_space.sample()), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("late", "space", "message"),
    [
        (np.zeros(4, np.float32), None, r"observation has the shape \[4\], and that of its space is \[3\]"),
        (None, None, r"observation has the shape \[\], and that of its space is \[3\]"),
        (np.array(["a", "b", "c"]), None, r"observation has the type <U1, and its space float32"),
        (
            np.full(3, 0.5),
            spaces.Box(0, 9, (3,), np.uint8),
            r"observation has the type float64, and its space uint8",
        ),
        (
            {"map": np.zeros(2)},
            spaces.Dict({"map": spaces.Box(-1, 1, (2,)), "place": spaces.Discrete(3)}),
            r"observation is \['map'\], and its space has \['map', 'place'\]",
        ),
        (
            (0,),
            spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))),
            "observation is no tuple of 2 parts like its space",
        ),
    ],
)
def test_an_observation_that_changes_its_shape_or_type_is_named(late, space, message):
    gymnasium.register("Changing-v0", entry_point=Changing, kwargs={"late": late, "space": space})
    try:
        host = GymnasiumHost("Changing-v0", 2, make_kwargs={"disable_env_checker": True})
        host.reset(0)
        for _ in range(2):
            host.step(np.zeros(2, np.int64))
        with pytest.raises(ObservationRangeError, match=f"Changing-v0, environment 0, step 3: {message}"):
            host.step(np.zeros(2, np.int64))
    finally:
        gymnasium.registry.pop("Changing-v0")
