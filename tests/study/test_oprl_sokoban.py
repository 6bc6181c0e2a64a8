"""Methods learn 6x6 rooms from success alone: two seeds, 200 iterations, final success against an earlier prototype's.

The bounds are the final success that a separate, throw-away program reached with the same equations and the same number
of environment steps; the run card of ``experiments/configs/oprl_sokoban.py`` has the figures of ten seeds.
"""

import pytest

pytestmark = pytest.mark.study


@pytest.mark.parametrize(("method", "success"), [("ppo", 0.90), ("grpo", 0.81), ("rloo", 0.78)])
def test_a_method_learns_as_well_as_the_prototype(method, success, final_value):
    assert final_value(f"oprl_sokoban:{method}", "success", "--config.iterations=200") >= success
