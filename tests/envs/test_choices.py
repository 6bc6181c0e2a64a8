"""Unknown names: the message suggests the nearest known names, with the same wording in every layer."""

from pathlib import Path

import pytest

from envs.choices import nearest, require_known, unknown

ROOT = Path(__file__).resolve().parents[2]


def test_nearest_ignores_case_and_always_names_one():
    assert nearest("PPO", ["grpo", "ppo"]).startswith(", did you mean 'ppo'")
    assert nearest("xyz", ["grpo"]) == ", did you mean 'grpo'?"
    assert nearest(3, ["1", "3"]) == ", did you mean '3'?"
    assert nearest("xyz", []) == ""


def test_an_unknown_name_comes_with_the_nearest_and_with_all():
    assert unknown("noise", "brown", ["none", "brownian"]) == (
        "unknown noise 'brown', did you mean 'brownian'? (known: none, brownian)"
    )
    assert unknown("baseline", "sb3", [], "of 'x'") == "unknown baseline 'sb3' of 'x': none is known"


def test_what_is_known_passes():
    require_known("form", "policy", {"policy": 1, "residual": 2})
    with pytest.raises(ValueError, match=r"^unknown form 'polcy' of x, did you mean 'policy'\? \(known: policy, re"):
        require_known("form", "polcy", {"policy": 1, "residual": 2}, "of x")
    with pytest.raises(ValueError, match="unknown form None"):
        require_known("form", None, ("policy",))


def test_no_other_module_has_a_wording_of_its_own():
    sources = [path for name in ("agents", "envs", "experiments", "rewards") for path in (ROOT / name).rglob("*.py")]
    saying = [path for path in sources if "did you mean" in path.read_text() or "difflib" in path.read_text()]
    assert saying == [ROOT / "envs" / "choices.py"]
