"""The ranges of numbers: values beyond a declared range are refused, and every number of a factory has a range."""

import inspect
import math

import jax
import pytest
from ml_collections import ConfigDict

from agents.catalogue import FAMILIES
from agents.estimators import ESTIMATORS
from envs.ranges import Range
from experiments.assembly import registry
from experiments.assembly.ranges import RANGES, ranges_of, validate
from experiments.configs import _common
from experiments.errors import UserError
from experiments.evaluators.catalogue import EVALUATORS
from rewards.catalogue import REWARDS

# Section, the key that names its kind, and what it may name.
CATALOGUES = [
    ("agent", "family", FAMILIES),
    ("credit.NAME", "estimator", ESTIMATORS),
    ("rewards.NAME", "kind", REWARDS),
    ("evaluators.NAME", "kind", EVALUATORS),
]
KINDS = [(section, selector, name, kind) for section, selector, table in CATALOGUES for name, kind in table.items()]


def config_of(values):
    """A configuration from dotted keys."""
    config = ConfigDict()
    for key, value in values.items():
        *path, leaf = key.split(".")
        section = config
        for part in path:
            if part not in section:
                section[part] = ConfigDict()
            section = section[part]
        section[leaf] = value
    return config


def beyond(allowed):
    """Numbers on the wrong side of every end of a range, the open ends themselves included."""
    below = allowed.low if allowed.low_open else allowed.low - 0.5
    above = allowed.high if allowed.high_open else allowed.high + 0.5
    return [number for number in (below, above) if math.isfinite(number)]


DECLARED = [
    (f"{section}.{leaf}".removeprefix("."), {}, one) for section, all_ in RANGES.items() for leaf, one in all_.items()
]
DECLARED += [
    (f"{section}.{leaf}", {f"{section}.{selector}": name}, one)
    for section, selector, name, kind in KINDS
    for leaf, one in kind.ranges.items()
]


@pytest.mark.parametrize(("key", "named", "allowed"), DECLARED, ids=[f"{key}-{named}" for key, named, _ in DECLARED])
def test_a_number_out_of_its_range_is_one_line(key, named, allowed):
    for value in beyond(allowed):
        with pytest.raises(UserError) as refusal:
            validate(config_of(named | {key: value}))
        assert str(refusal.value) == f"configuration key '{key}' got {value}, expected {allowed}"
    inside = allowed.low + 0.25 if math.isfinite(allowed.low) else allowed.high - 0.25
    validate(config_of(named | {key: inside}))


# A few by hand, so that a range that is declared wrongly is seen.
@pytest.mark.parametrize(
    ("key", "named", "refused", "accepted"),
    [
        ("iterations", {}, [0], [1]),
        ("evaluators.NAME.count", {"evaluators.NAME.kind": "episodes"}, [0], [1]),
        ("evaluators.NAME.candidates", {"evaluators.NAME.kind": "exact"}, [0, -3], [1]),
        ("agent.learning_rate", {"agent.family": "policy_gradient"}, [-1e-9], [0, 1e-3]),
        ("agent.dual_clip", {"agent.family": "policy_gradient"}, [1.0], [1.1]),
        ("agent.max_gradient_norm", {"agent.family": "value_based"}, [0.0], [0.5]),
        ("agent.discount", {"agent.family": "value_based"}, [-0.5, 1.5], [0, 1]),
        ("agent.return_scale", {"agent.family": "value_based"}, [0.0, -1.0], [20.0]),
        ("agent.epsilon_end", {"agent.family": "value_based"}, [-0.01, 2.0], [0.05]),
        ("credit.NAME.gae_lambda", {"credit.NAME.estimator": "gae"}, [1.001, -1.0], [0.95]),
        ("rewards.NAME.limit", {"rewards.NAME.kind": "normalise"}, [0.0, -5.0], [10.0]),
        ("rewards.NAME.target_decay", {"rewards.NAME.kind": "byol_explore"}, [1.5, -3.0], [1.0]),
        ("rewards.NAME.scale_decay", {"rewards.NAME.kind": "byol_hindsight"}, [1.0], [0.0, 0.99]),
        ("rewards.NAME.threshold", {"rewards.NAME.kind": "language_feedback"}, [-0.1, 1.1], [0.5]),
        ("rewards.NAME.beta", {"rewards.NAME.kind": "implicit_prm"}, [-3.0], [0.0, 20.0]),
    ],
)
def test_ranges_by_hand(key, named, refused, accepted):
    for value in refused:
        with pytest.raises(UserError, match=key.replace(".", r"\.")):
            validate(config_of(named | {key: value}))
    for value in accepted:
        validate(config_of(named | {key: value}))


def test_the_ends_belong_to_a_range_unless_they_are_open():
    assert 0 in Range(0) and 0 not in Range(0, low_open=True) and 1e-300 in Range(0, low_open=True)
    assert 1 in Range(0, 1) and 1 not in Range(0, 1, high_open=True) and 0.999 in Range(0, 1, high_open=True)
    for allowed in (Range(0), Range(0, 1), Range(0, 1, low_open=True)):
        assert float("nan") not in allowed
    assert str(Range(0, 1, low_open=True)) == "above 0 and at most 1"
    assert str(Range(0, 1, low_open=True, high_open=True)) == "above 0 and below 1"


NORMALISE = {"rewards.NAME.kind": "normalise"}


@pytest.mark.parametrize("value", [True, None, "max", (-1, -2)])
def test_a_value_that_is_not_a_number_has_no_range(value):
    validate(config_of(NORMALISE | {"rewards.NAME.limit": value}))


def test_a_traced_number_passes():
    def traced(number):
        validate(config_of({"agent.family": "value_based", "agent.discount": number}))
        return number

    jax.eval_shape(traced, 5.0)


def test_a_range_belongs_to_the_kind_that_declares_it():
    # The same name is a share for language feedback, any number for a transform of somebody else's, and no range is
    # anybody's before the section names a kind.
    named = {"rewards.own.kind": "tests.experiments.assembly.parts:threshold", "rewards.own.threshold": 7.0}
    validate(config_of(named))
    validate(config_of({"rewards.own.threshold": 7.0}))
    ranges = ranges_of(config_of(named | {"agent.family": "value_based", "agent.channels.discount": 5.0}))
    assert ranges["agent.discount"] == Range(0, 1)
    assert not ranges.keys() & {"rewards.own.threshold", "agent.channels.discount", "environment.limit"}
    declared = {"rewards.own.kind": "tests.experiments.assembly.parts:THRESHOLD", "rewards.own.threshold": -1.0}
    with pytest.raises(UserError, match=r"'rewards\.own\.threshold' got -1\.0, expected at least 0"):
        validate(config_of(declared))


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


@pytest.mark.parametrize(("section", "selector", "name", "kind"), KINDS)
def test_every_real_number_of_a_factory_has_a_range_or_needs_none(section, selector, name, kind):
    parameters = inspect.signature(kind.factory).parameters
    real = {key for key, one in parameters.items() if str(one.annotation).split(" | ")[0] == "float"}
    assert not real - kind.ranges.keys() - FREE
    # No range is declared for a parameter that the factory does not take.
    assert kind.ranges.keys() <= parameters.keys()
    for key, others in kind.needs.items():
        assert {key, *others} <= parameters.keys()


def test_every_range_of_the_loop_is_of_a_key_that_there_is():
    known = set()
    for config in (
        _common.policy_gradient_config(),
        _common.value_based_config(),
        registry.load("eta_gridworld").config,
    ):
        known |= registry.keys(config).keys()
    for section, ranges in RANGES.items():
        assert {f"{section}.{leaf}".removeprefix(".") for leaf in ranges} <= known
