"""Watching policies: in the terminal, as films, while a run is evaluated; and refusals."""

import sys

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.api import load, restore, train
from experiments.assembly.build import TEST_SEED
from experiments.assembly.cameras import Camera
from experiments.commands import watch
from experiments.errors import UserError
from experiments.evaluators.base import evaluator_key
from experiments.training.keys import evaluation_key
from experiments.training.restored import restored_member
from experiments.training.videos import captions, summary, write_video

GRID = {"environment.kind": "gridworld", "environment.layout": ("S.G",), "environment.time_limit": 6}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A gridworld whose evaluations are filmed."""
    folder = tmp_path_factory.mktemp("runs") / "grid"
    changes = {"iterations": 2, "data.batch": 4, "data.length": 8, "evaluators.episodes.video": 2}
    experiment = load("ppo_cartpole:native,smoke", GRID | changes)
    train(experiment, folder, seeds=2)
    return folder


def test_a_grid_is_shown_in_the_terminal_step_by_step(grid, capsys):
    assert watch.main([str(grid), "--seed=1", "--checkpoint=latest", "--episodes=2", "--sampled"]) == 0
    shown = capsys.readouterr().out
    found = restored_member(grid, "latest", 1)
    camera = Camera(found.source, found.agent, count=2, length=6, greedy=False, text=True)
    episodes = camera.film(found.params, evaluator_key(evaluation_key(1, TEST_SEED), 0))
    position = 0
    for number, episode in enumerate(episodes, 1):
        # Every episode starts at S, each frame follows from the one before, and the last one is the end.
        assert episode.frames[0] == "@.G" and len(episode.frames) == len(episode.rewards) + 1
        assert episode.terminated == (episode.frames[-1] == "S.@")
        cells = [frame.index("@") for frame in episode.frames]
        assert max(abs(np.diff(cells))) <= 1
        for frame, caption in zip(episode.frames, captions(episode), strict=True):
            position = shown.index(f"episode {number} of 2\n{caption}\n{frame}\n", position) + 1
        assert f"episode {number} of 2: {summary(episode)}" in shown
    assert f"seed 1, iteration {found.iteration}" in shown and "\x1b" not in shown


def test_the_camera_plays_what_the_policy_does(grid):
    found, policy = restored_member(grid), restore(grid)
    camera = Camera(found.source, found.agent, count=1, length=6, greedy=True, text=True)
    [episode] = camera.film(found.params, jax.random.key(3))
    environment = found.source.pure
    state, observation = environment.reset(jax.random.key(0))
    frames, carry = ["@.G"], None
    for _ in episode.rewards:
        action, carry = policy.act(observation, carry)
        state, time_step = environment.step(jax.random.key(0), state, action)
        observation = time_step.observation
        frames.append(environment.environment.draw_text(state.environment))
    assert episode.frames == frames


def test_every_evaluation_of_every_seed_is_filmed(grid):
    found = sorted(path.relative_to(grid / "videos").as_posix() for path in grid.rglob("*.gif"))
    assert found == ["seed_0/episodes_2.gif", "seed_1/episodes_2.gif"]
    with Image.open(grid / "videos" / found[0]) as film:
        assert film.size == (48, 16) and film.n_frames >= 2


def test_a_host_is_filmed_up_to_the_end_of_its_episode(tmp_path, capsys):
    folder = tmp_path / "host"
    train(load("ppo_cartpole:smoke"), folder, seeds=1)
    for name in ("film.gif", "film.mp4"):
        assert watch.main([str(folder), f"--video={tmp_path / 'deep' / name}", "--steps=5", "--fps=10"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "deep" / name)
    with Image.open(tmp_path / "deep" / "film.gif") as film:
        durations = [film.seek(index) or film.info["duration"] for index in range(film.n_frames)]
        # Frames that do not differ are one that lasts longer.
        assert film.size == (600, 400) and sum(durations) == 600 and film.n_frames > 1
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["film.gif", "film.mp4"]
    assert watch.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert "CartPole-v1 can be drawn as rgb_array" in error and "expected --video=FILE.gif" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed=7"], "has no seed 7; it has 0, 1"),
        (["--episodes=0"], "--episodes=0: expected at least 1"),
        (["--steps=0"], "--steps=0: expected at least 1"),
        (["--fps=0"], "--fps=0.0: expected above 0"),
        (["--video=film.avi"], "unknown suffix '.avi' of film.avi"),
        (["--checkpoint=newest"], "expected best, latest or an iteration"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, grid, capsys):
    assert watch.main([str(grid), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_what_cannot_be_drawn_is_refused_before_a_run(tmp_path):
    changes = {"environment.kind": "noisy_line", "environment.time_limit": 5, "evaluators.episodes.video": 1}
    with pytest.raises(UserError, match=r"episodes.video=1: environment TabularEnvironment cannot be drawn as images"):
        train(load("ppo_cartpole:native,smoke", changes), tmp_path / "run")
    changes = {"environment.environment_id": "DeepSea-bsuite", "evaluators.episodes.video": 1}
    with pytest.raises(UserError, match=r"as images \(gymnax: DeepSea-bsuite has no picture: expected MinAtar and cla"):
        train(load("ppo_minatar:smoke", changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"evaluators.episodes.video' got -1, expected at least 0"):
        train(load("ppo_cartpole:native,smoke", {"evaluators.episodes.video": -1}), tmp_path / "run")


def test_an_mp4_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[video\]'"):
        write_video(tmp_path / "film.mp4", [])
