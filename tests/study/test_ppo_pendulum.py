"""PPO swings Pendulum-v1 up and holds it: a return of -250 or better, two seeds."""

import pytest

pytestmark = pytest.mark.study


def test_the_pendulum_is_held_upright(final_value):
    assert final_value("ppo_pendulum", "return") >= -250
