"""Every example runs and has the effect that it describes."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def example(name):
    return runpy.run_path(str(EXAMPLES / name))


def test_every_example_is_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f'example("{path.name}")' in text, path.name


def test_ppo_in_one_page_learns():
    lengths = example("ppo_in_one_page.py")["train"](iterations=20)
    assert lengths[-5:].mean() > 2 * lengths[:2].mean()


def test_a_loaded_policy_plays_an_episode():
    assert 5 <= example("load_and_act.py")["main"](iterations=2) <= 500


def test_an_own_environment_is_trained():
    assert 0 <= example("my_environment.py")["main"](iterations=2) <= 1


def test_an_own_reward_is_trained():
    assert example("my_reward.py")["main"](iterations=2) >= 5


def test_an_own_network_is_trained():
    assert example("my_network.py")["main"](iterations=2) >= 5
