"""The Atari host: observations, snapshots and refusals. Skipped where the extra is not installed."""

import numpy as np
import pytest

from envs.hosts.atari import atari_host


def test_numbers_out_of_range_are_refused_without_the_extra():
    for arguments, message in [
        ({"frames": 0}, "frames=0: expected at least 1"),
        ({"sticky": 1.0}, "sticky=1.0: expected a probability"),
    ]:
        with pytest.raises(ValueError, match=message):
            atari_host("Pong", 1, **arguments)


@pytest.fixture(scope="module")
def make():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    return lambda **arguments: atari_host("Pong", 2, time_limit=40, **arguments)


def test_frames_are_stacked_and_the_time_limit_truncates(make):
    host = make(frames=3, size=42)
    observation = host.reset(0)
    assert observation.shape == (2, 42, 42, 3) and observation.dtype == np.uint8
    assert host.spec.max_episode_steps == 40
    for _ in range(40):
        before, time_step = observation, host.step(np.array([2, 3]))
        observation = time_step.observation
        # The newest frame is the last channel; the others moved up.
        np.testing.assert_array_equal(time_step.final_observation[..., :-1], before[..., 1:])
    assert time_step.truncated.all() and not time_step.terminated.any()
    host.close()


# With a higher ``sticky`` the action before the snapshot matters more often.
@pytest.mark.parametrize("sticky", [0.25, 0.9])
def test_a_host_continues_from_its_snapshot(make, sticky):
    host, other = make(sticky=sticky), make(sticky=sticky)
    host.reset(3)
    actions = np.random.default_rng(0).integers(6, size=(60, 2))
    for action in actions[:20]:
        host.step(action)
    seen = other.restore(host.snapshot())
    for action in actions[20:]:
        left, right = host.step(action), other.step(action)
        for name in ("observation", "final_observation", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    assert seen.shape == (2, 84, 84, 4)
    host.close()
    other.close()


def test_an_unknown_game_is_refused(make):
    with pytest.raises(ValueError, match="did you mean 'ALE/Pong-v5'"):
        atari_host("Pongg", 1)
