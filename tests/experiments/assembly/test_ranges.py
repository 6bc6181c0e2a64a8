"""The ranges of numbers: every one declared is refused beyond its ends, and no number of a factory was forgotten."""

import inspect

import jax
import pytest
from ml_collections import ConfigDict

from agents.estimators import ESTIMATORS
from agents.policy_gradient import policy_gradient
from agents.value_based import value_based
from experiments.assembly import registry
from experiments.assembly.build import REWARDS
from experiments.assembly.ranges import RANGES, Range, range_of, validate
from experiments.configs import _common
from experiments.errors import UserError

# Section, what its numbers must be, and per last part of the key values on the wrong side of every end it has.
REFUSED = [
    ("", "at least 1", {"iterations": [0], "evaluate_every": [0], "seeds": [-1]}),
    ("rollout", "at least 1", {"start_states": [0]}),
    ("warm_start", "at least 0", {"demonstrations": [-1], "learning_rate": [-1e-3]}),
    ("evaluators.NAME", "at least 1", {"count": [0], "cut": [0], "candidates": [0, -3]}),
    ("agent", "at least 0", {"learning_rate": [-1e-9], "weight_decay": [-1.0], "critic_learning_rate": [-1.0]}),
    ("agent", "at least 0", {"clip": [-0.1], "clip_high": [-0.1], "value_clip": [-0.1], "value_weight": [-0.5]}),
    ("agent", "at least 0", {"huber": [-1.0], "learning_starts": [-5], "priority_exponent": [-1.0]}),
    ("agent", "at least 0", {"epsilon_steps": [-5.0]}),
    ("agent", "above 0", {"adam_epsilon": [0.0, -1.0], "max_gradient_norm": [0.0], "return_scale": [0.0, -1.0]}),
    ("agent", "above 1", {"dual_clip": [1.0]}),
    ("agent", "from 0 to 1", {"discount": [1.5, -0.5], "target_rate": [5.0, -1.0], "importance_exponent": [-0.1, 2]}),
    ("agent", "from 0 to 1", {"epsilon_start": [-1.0, 1.01], "epsilon_end": [2.0, -0.01]}),
    ("credit.NAME", "from 0 to 1", {"discount": [1.7, -0.1], "gae_lambda": [1.001, -1.0]}),
    ("rewards.NAME", "at least 0", {"learning_rate": [-1.0], "critic_learning_rate": [-1.0], "weight_decay": [-1.0]}),
    ("rewards.NAME", "at least 0", {"beta": [-3.0], "fading": [-1.0], "tolerance": [-1e-5], "small": [-1]}),
    ("rewards.NAME", "at least 0", {"reconstruction_weight": [-10.0]}),
    ("rewards.NAME", "above 0", {"adam_epsilon": [0.0], "max_gradient_norm": [0.0], "limit": [0.0, -5.0]}),
    ("rewards.NAME", "above 0", {"minimum_std": [0.0]}),
    ("rewards.NAME", "from 0 to 1", {"discount": [1.1], "target_decay": [1.5, -3.0], "threshold": [-0.1, 1.1]}),
    ("rewards.NAME", "from 0 to 1", {"forward_share": [1.2, -0.2]}),
    ("rewards.NAME", "from 0 to below 1", {"scale_decay": [1.0, -0.1], "calibration_smoothing": [1.0, -0.1]}),
]
CASES = [
    (f"{section}.{leaf}".removeprefix("."), value, expected)
    for section, expected, leaves in REFUSED
    for leaf, values in leaves.items()
    for value in values
]


def config_of(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return ConfigDict(value)


@pytest.mark.parametrize(("key", "value", "expected"), CASES)
def test_a_number_out_of_its_range_is_one_line(key, value, expected):
    with pytest.raises(UserError) as refusal:
        validate(config_of(key, value))
    assert str(refusal.value) == f"configuration key '{key}' got {value}, expected {expected}"


def test_every_declared_range_is_among_the_cases():
    declared = {(section.replace("*", "NAME"), leaf) for section, leaves in RANGES.items() for leaf in leaves}
    assert declared == {(key.rpartition(".")[0], key.rpartition(".")[2]) for key, _, _ in CASES}


def test_the_ends_belong_to_a_range_unless_they_are_open():
    assert 0 in Range(0) and 0 not in Range(0, low_open=True) and 1e-300 in Range(0, low_open=True)
    assert 1 in Range(0, 1) and 1 not in Range(0, 1, high_open=True) and 0.999 in Range(0, 1, high_open=True)
    for allowed in (Range(0), Range(0, 1), Range(0, 1, low_open=True)):
        assert float("nan") not in allowed
    assert str(Range(0, 1, low_open=True)) == "above 0 and at most 1"
    assert str(Range(0, 1, low_open=True, high_open=True)) == "above 0 and below 1"


@pytest.mark.parametrize("value", [True, None, "max", (-1, -2)])
def test_what_is_no_number_has_no_range(value):
    validate(config_of("rewards.NAME.limit", value))


def test_a_traced_number_passes():
    def traced(number):
        validate(config_of("agent.discount", number))
        return number

    jax.eval_shape(traced, 5.0)


def test_a_range_is_of_its_section_alone():
    assert range_of("credit.env.discount") == range_of("agent.discount") == Range(0, 1)
    # A channel's weight, and a channel that has the name of a number.
    assert range_of("credit.env.weight") is range_of("agent.channels.discount") is range_of("environment.limit") is None


def test_the_lowest_value_of_c51_is_below_the_highest():
    config = ConfigDict({"agent": {"value_low": 10.0, "value_high": 10.0}})
    with pytest.raises(UserError, match=r"'agent\.value_low' got 10\.0, expected below agent\.value_high, which is"):
        validate(config)
    config.agent.value_high = 11.0
    validate(config)


# Any value of these means something: they weigh, shift or set an outcome, and a sign may be wanted. What lies between
# two of them their factory checks.
FREE = {"weight", "entropy_weight", "factor", "scale", "cutoff", "outcome_threshold", "low", "high"}
FREE |= {"value_low", "value_high"}
FACTORIES = {
    "agent": [policy_gradient, value_based],
    "credit.*": list(ESTIMATORS.values()),
    "rewards.*": list(REWARDS.values()),
}


@pytest.mark.parametrize("section", FACTORIES)
def test_every_real_number_of_a_factory_has_a_range_or_needs_none(section):
    parameters = {}
    for factory in FACTORIES[section]:
        parameters |= inspect.signature(factory).parameters
    real = {name for name, one in parameters.items() if str(one.annotation).split(" | ")[0] == "float"}
    assert real, "annotations are read as text"
    assert not real - RANGES[section].keys() - FREE
    # What is declared is taken by some factory: no name was misspelt. The optimiser's are declared together.
    optimiser = {"learning_rate", "critic_learning_rate", "adam_epsilon", "max_gradient_norm", "weight_decay"}
    assert not RANGES[section].keys() - parameters.keys() - optimiser


def test_every_range_of_the_loop_is_of_a_key_that_there_is():
    known = set()
    for config in (
        _common.policy_gradient_config(),
        _common.value_based_config(),
        registry.load("eta_gridworld").config,
    ):
        known |= registry.keys(config).keys()
    for section in ("", "rollout", "warm_start"):
        assert {f"{section}.{leaf}".removeprefix(".") for leaf in RANGES[section]} <= known
