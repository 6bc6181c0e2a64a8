"""A learn step of each family of methods keeps its types when 64-bit numbers are enabled; nothing is compiled."""

import jax
import pytest

from experiments.assembly import registry
from experiments.assembly.build import build_environment
from experiments.training.scan_driver import ScanDriver
from tests.experiments import corridor

METHODS = (
    *("oprl_sokoban:control_variate,smoke", "oprl_sokoban:prime,smoke", "curiosity_maze:hindsight,smoke"),
    *("curiosity_maze:icm,smoke", "curiosity_maze:episodic,smoke", "dqn_cartpole:c51,prioritised,smoke"),
    *("eta_gridworld:smoke", "ppo_pendulum:tanh,native,smoke"),
)


@pytest.mark.parametrize("name", METHODS)
def test_a_learn_step_keeps_its_types(name):
    config = registry.load(name).config
    with jax.enable_x64(True):
        # A scan over iterations refuses a state that changes its types.
        ScanDriver(config, build_environment(config), corridor.members()).trace()
