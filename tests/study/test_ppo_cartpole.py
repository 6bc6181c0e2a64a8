"""PPO solves CartPole-v1 inside jit: gymnasium's own bound of 475 for a solved task, two seeds."""

import pytest

pytestmark = pytest.mark.study


def test_the_native_environment_is_solved(final_value):
    assert final_value("ppo_cartpole:native", "return") >= 475
