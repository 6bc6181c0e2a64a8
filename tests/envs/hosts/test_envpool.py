"""The envpool host. What needs envpool is skipped where it is not installed."""

import importlib

import gymnasium
import numpy as np
import pytest

from envs.base import UnsupportedSpaceError, VectorHost
from envs.hosts.envpool import EnvPoolHost, boxoban_host, boxoban_levels, symbolic_observation
from envs.snapshots import Snapshot


def test_symbolic_observation_by_hand():
    moving = np.array([[0, 3, 4], [4, 0, 3]])
    fixed = np.array([[1, 0, 0], [2, 2, 2]])
    planes = symbolic_observation(np.stack([moving, fixed], axis=-1).astype(np.uint8))
    assert planes.shape == (2, 3, 4) and planes.dtype == np.uint8
    wall, target, box, player = np.moveaxis(planes, -1, 0).tolist()
    assert wall == [[1, 0, 0], [0, 0, 0]]
    assert target == [[0, 0, 0], [1, 1, 1]]
    assert box == [[0, 0, 1], [1, 0, 0]]
    assert player == [[0, 1, 0], [0, 0, 1]]


def test_missing_envpool_names_the_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    for make in (lambda: EnvPoolHost("CartPole-v1", 2), lambda: boxoban_host(2), boxoban_levels):
        with pytest.raises(ImportError, match=r"No module named 'envpool'.*extra 'fast': pip install -e '\.\[fast\]'"):
            make()


class TestWithEnvpool:
    @pytest.fixture(autouse=True)
    def envpool(self):
        pytest.importorskip("envpool")

    def test_is_a_vector_host_with_the_spec_of_its_environment(self):
        host = EnvPoolHost("CartPole-v1", 3, make_kwargs={"max_episode_steps": 7})
        assert isinstance(host, VectorHost)
        assert host.spec.max_episode_steps == 7 and host.num_envs == 3
        assert host.spec.action_space == gymnasium.spaces.Discrete(2)
        host.reset(0)
        assert host.snapshot() is None
        host.close()

    def test_has_the_dynamics_of_gymnasium_and_spends_no_step_on_a_reset(self):
        host = EnvPoolHost("CartPole-v1", 4, make_kwargs={"max_episode_steps": 12})
        reference = gymnasium.make("CartPole-v1").unwrapped
        reference.reset()
        observation = host.reset(0)
        generator = np.random.default_rng(0)
        lengths, seen = np.zeros(4, int), {"terminated": 0, "truncated": 0}
        for _ in range(60):
            # Pushed to one side only, a pole falls in about 9 steps; pushed at random, it stands for 12.
            action = np.array([0, 1, *generator.integers(2, size=2)])
            step = host.step(action)
            lengths += 1
            np.testing.assert_array_equal(step.reward, np.ones(4, np.float32))
            for environment in range(4):
                reference.reset()
                reference.state = observation[environment].astype(np.float64)
                expected, _, fell, _, _ = reference.step(int(action[environment]))
                np.testing.assert_allclose(step.final_observation[environment], expected, rtol=1e-4, atol=1e-5)
                ended = step.terminated[environment] or step.truncated[environment]
                assert ended == (fell or lengths[environment] == 12)
                assert not (step.terminated[environment] and step.truncated[environment])
                seen["terminated"] += step.terminated[environment]
                seen["truncated"] += step.truncated[environment]
                if ended:
                    assert np.abs(step.observation[environment]).max() <= 0.05
                    lengths[environment] = 0
                else:
                    np.testing.assert_array_equal(step.observation[environment], step.final_observation[environment])
            observation = step.observation
        assert min(seen.values()) > 0

    def test_seeds(self):
        host = EnvPoolHost("CartPole-v1", 3)
        by_integer = host.reset(5)
        np.testing.assert_array_equal(host.reset([7, 6, 5]), by_integer[::-1])
        np.testing.assert_array_equal(host.reset(5), by_integer)
        # Seeds of 32 bits are folded, not refused.
        np.testing.assert_array_equal(host.reset(2**31 - 1 + 5), by_integer)

    def test_an_end_in_the_last_step_is_terminated_not_truncated(self):
        # Without its level file envpool plays one built-in level: four boxes below their targets.
        up, right, down = 0, 1, 2
        solution = [up, down, right] * 3 + [up]
        kwargs = {"make_kwargs": {"max_episode_steps": len(solution)}, "info_keys": {"solved": "success"}}
        for terminal_keys in ((), ("solved",)):
            host = EnvPoolHost("Sokoban-v0", 2, terminal_keys=terminal_keys, **kwargs)
            host.reset(0)
            steps = [host.step(np.array([move, down])) for move in solution]
            known = bool(terminal_keys)
            assert [step.terminated.tolist() for step in steps] == [[False, False]] * 9 + [[known, False]]
            assert [step.truncated.tolist() for step in steps] == [[False, False]] * 9 + [[not known, True]]
            assert steps[-1].info["success"].tolist() == [1, 0]
            assert steps[-1].reward[0] == pytest.approx(1 + 10 - 0.1)
            # Environment 0 ends with every box on its target; environment 1 has pushed none, and a fresh level has
            # none there.
            boxes_on_targets = [
                (symbolic_observation(grid["grid"])[..., 1:3].sum(-1) == 2).sum((1, 2)).tolist()
                for grid in (steps[-1].final_observation, steps[-1].observation)
            ]
            assert boxes_on_targets == [[4, 0], [0, 0]]

    def test_boxoban_levels_are_rooms(self):
        levels = boxoban_levels()
        assert levels.shape == (1000, 10, 10, 4) and levels.dtype == np.uint8
        wall, target, box, player = np.moveaxis(levels, -1, 0)
        assert (target.sum((1, 2)) == 4).all() and (box.sum((1, 2)) == 4).all() and (player.sum((1, 2)) == 1).all()
        assert not (wall & (target | box | player)).any() and not (box & player).any()
        assert wall[:, [0, -1]].all() and wall[:, :, [0, -1]].all()
        assert len({level.tobytes() for level in levels}) >= 999

    def test_boxoban_host_plays_these_levels_with_the_moves_of_sagax(self):
        levels = boxoban_levels()
        known = {level.tobytes() for level in levels}
        host = boxoban_host(8, max_episode_steps=5)
        observation = host.reset(0)
        assert host.spec.observation_space.contains(observation[0])
        assert all(room.tobytes() in known for room in observation)
        assert len({room.tobytes() for room in observation}) > 1
        for _ in range(5):
            step = host.step(np.zeros(8, int))
        assert step.truncated.all() and not step.terminated.any()
        assert all(room.tobytes() in known for room in step.observation)

        host = boxoban_host(1, level=3)
        (start,) = host.reset(0)
        np.testing.assert_array_equal(start, levels[3])
        wall, _, box, player = np.moveaxis(start, -1, 0)
        row, column = np.argwhere(player)[0]
        moved = 0
        for action, (down, right) in enumerate(((-1, 0), (1, 0), (0, -1), (0, 1))):
            host.reset(0)
            (following,) = host.step(np.array([action])).observation
            to = (row + down, column + right)
            if not wall[to] and not box[to]:
                assert tuple(np.argwhere(following[..., 3])[0]) == to
                moved += 1
        assert moved >= 2

    def test_bad_arguments_name_what_was_expected(self):
        with pytest.raises(ValueError, match=r"unknown envpool environment 'CartPol-v1'.*CartPole-v1"):
            EnvPoolHost("CartPol-v1", 2)
        with pytest.raises(ValueError, match=r"Sokoban-v0 has no 'solve' in info, did you mean 'solved'"):
            EnvPoolHost("Sokoban-v0", 2, info_keys={"solve": "success"})
        with pytest.raises(ValueError, match="num_envs=0"):
            EnvPoolHost("CartPole-v1", 0)
        with pytest.raises(ValueError, match="level=1000: expected 0 to 999; the nearest: 999"):
            boxoban_host(2, level=1000)
        with pytest.raises(UnsupportedSpaceError, match="observation space is Text"):
            EnvPoolHost("CartPole-v1", 2, observation_space=gymnasium.spaces.Text(3))
        host = EnvPoolHost("CartPole-v1", 2)
        with pytest.raises(RuntimeError, match="call reset first"):
            host.step(np.zeros(2, int))
        host.reset(0)
        with pytest.raises(ValueError, match=r"action has shape \(3,\), expected \(2,\)"):
            host.step(np.zeros(3, int))
        with pytest.raises(ValueError, match="cannot restore"):
            host.restore(Snapshot({}, {}))


def test_a_game_goes_on_after_a_life_that_ends_the_episode():
    """With ``episodic_life`` each of Breakout's five lives is an episode, and only the last one ends the game."""
    pytest.importorskip("envpool")
    settings = {"episodic_life": True, "img_height": 36, "img_width": 36, "stack_num": 1}
    host = EnvPoolHost("Breakout-v5", 2, make_kwargs=settings, info_keys={"lives": "lives"})
    host.reset(0)
    actions, lives = np.random.default_rng(0), []
    while len(lives) < 8:
        step = host.step(actions.integers(0, 4, 2))
        assert not step.truncated.any()
        lives += step.info["lives"][:1][step.terminated[:1]].tolist()
    host.close()
    assert lives == [4, 3, 2, 1, 0, 4, 3, 2]
