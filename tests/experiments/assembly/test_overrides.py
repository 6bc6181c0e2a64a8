"""Any key can be set: those of a kind that was chosen, of a section that was not there, of a dictionary."""

import pytest

from experiments.assembly import registry
from experiments.assembly.overrides import apply_overrides, keys, parse_overrides, possible_keys
from experiments.configs._common import policy_gradient_config, value_based_config
from experiments.errors import UserError
from tests.experiments import corridor

PARTS = "tests.experiments.assembly.parts"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    corridor.register(monkeypatch)


def ppo(**overrides):
    """A policy-gradient configuration with ``overrides``, whose dots are written as two underscores."""
    return changed(corridor.with_critic(), **overrides)


def dqn(**overrides):
    return changed(corridor.with_replay(), **overrides)


def pqn(**overrides):
    return changed(corridor.with_unrolls(), **overrides)


def changed(config, **overrides):
    config.lock()
    return apply_overrides(config, {key.replace("__", "."): value for key, value in overrides.items()})


def test_a_chosen_kind_brings_its_keys():
    config = dqn(agent__functional__level=".25", agent__functional__kind="cvar", agent__head="quantile")
    assert config.agent.functional.to_dict() == {"kind": "cvar", "level": 0.25}
    assert config.is_locked and config.agent.functional.is_locked


def test_a_section_that_was_not_there():
    config = ppo(
        rewards__curiosity__kind="rnd",
        rewards__curiosity__learning_rate="1e-3",
        rewards__curiosity__updates="2",
        credit__curiosity__estimator="gae",
        credit__curiosity__channel="curiosity",
        credit__curiosity__episodic="false",
    )
    assert config.rewards.curiosity.to_dict() == {"kind": "rnd", "learning_rate": 1e-3, "updates": 2}
    added = {"estimator": "gae", "channel": "curiosity", "episodic": False}
    assert config.credit.curiosity.to_dict() == added
    assert type(config.rewards.curiosity.updates) is int


def test_wrappers_of_a_gymnasium_environment():
    host = registry.load("ppo_cartpole:host").config
    stacked = changed(
        host, environment__wrappers__stack__kind="frame_stack", environment__wrappers__stack__stack_size="4"
    )
    assert stacked.environment.wrappers.stack.to_dict() == {"kind": "frame_stack", "stack_size": 4}
    assert "stack" not in changed(stacked, environment__wrappers__stack="none").environment.wrappers
    with pytest.raises(UserError, match=r"unknown wrapper 'frame_stak' .*did you mean 'frame_stack'"):
        changed(host, environment__wrappers__stack__kind="frame_stak")
    with pytest.raises(UserError, match=r"'environment\.wrappers\.stack' names no wrapper yet"):
        changed(host, environment__wrappers__stack__stack_size="4")
    native = registry.load("ppo_cartpole:native").config
    with pytest.raises(UserError, match=r"unknown configuration key 'environment\.wrappers\.stack\.kind'"):
        changed(native, environment__wrappers__stack__kind="frame_stack")


def test_another_kind_keeps_what_it_takes_and_drops_the_rest():
    first = ppo(rewards__curiosity__kind="rnd", rewards__curiosity__learning_rate="0.5", rewards__curiosity__limit="3")
    second = changed(first.copy_and_resolve_references(), rewards__curiosity__kind="icm")
    assert second.rewards.curiosity.to_dict() == {"kind": "icm", "learning_rate": 0.5}
    assert first.rewards.curiosity.kind == "rnd", "the given configuration stays as it is"
    # A value of another type is no value of the new kind's: ``scale`` is a choice of the one and a number of the other.
    prm = ppo(rewards__r__kind="implicit_prm", rewards__r__scale="max", rewards__r__beta="2")
    assert changed(prm, rewards__r__kind="icm").rewards.r.to_dict() == {"kind": "icm"}


def test_another_environment():
    config = changed(
        registry.load("oprl_sokoban:grpo").config.copy_and_resolve_references(),
        environment__kind="maze",
        environment__reward="trackers",
        environment__noise="pixel",
    )
    expected = {"kind": "maze", "reward": "trackers", "noise": "pixel", "time_limit": 20}
    assert config.environment.to_dict() == expected


def test_the_values_of_a_dictionary():
    config = changed(
        registry.load("ppo_cartpole").config.copy_and_resolve_references(),
        environment__make_kwargs__max_episode_steps="50",
        environment__make_kwargs__render_mode="none",
        environment__make_kwargs__title="'7'",
        environment__info_keys__success="success",
    )
    assert config.environment.make_kwargs.to_dict() == {"max_episode_steps": 50, "render_mode": None, "title": "7"}
    assert config.environment.info_keys.success == "success"
    again = changed(config, environment__make_kwargs__max_episode_steps="60")
    assert again.environment.make_kwargs.max_episode_steps == 60
    assert changed(config, environment__make_kwargs="{'a': 1}").environment.make_kwargs.to_dict() == {"a": 1}
    with_curiosity = dqn(rewards__c__kind="count_bonus", agent__channels__curiosity="1")
    assert with_curiosity.agent.channels.to_dict() == {"env": 1.0, "curiosity": 1.0}
    assert type(with_curiosity.agent.channels.curiosity) is float


def test_any_key_of_a_factory_that_takes_any():
    config = changed(
        registry.load("ppo_cartpole:native").config.copy_and_resolve_references(), environment__gravity="9.5"
    )
    assert config.environment.gravity == 9.5


def test_none_where_the_factory_says_so():
    config = ppo(agent__max_gradient_norm="none", agent__clip_high="none")
    assert config.agent.max_gradient_norm is None and config.agent.clip_high is None
    assert changed(config, agent__max_gradient_norm="2").agent.max_gradient_norm == 2.0
    with pytest.raises(UserError, match=r"'agent\.learning_rate' got 'none', expected a finite number, never none"):
        ppo(agent__learning_rate="none")


def test_none_takes_an_entry_or_an_optional_section_away():
    config = ppo(rewards__env__kind="scale", rewards__env__factor="2", warm_start="none")
    assert "warm_start" not in config
    assert not changed(config, rewards__env="none").rewards
    with pytest.raises(UserError, match="'agent' is a section"):
        ppo(agent="none")


def test_another_family_brings_its_keys_and_sections():
    config = ppo(agent__family="value_based", agent__n_step="3", data__kind="replay")
    assert "credit" not in config and "warm_start" not in config
    assert config.agent.n_step == 3 and "clip" not in config.agent and config.agent.learning_rate == 0.02
    back = dqn(agent__family="policy_gradient", credit__env__estimator="gae", data__kind="unroll")
    assert back.credit.env.estimator == "gae" and "head" not in back.agent


def test_a_part_from_outside_brings_its_keys():
    config = ppo(rewards__own__kind=f"{PARTS}:threshold", rewards__own__threshold="2")
    assert config.rewards.own.threshold == 2.0
    with pytest.raises(
        UserError, match=r"unknown configuration key 'rewards\.own\.treshold', did you mean 'rewards\.own\.thre"
    ):
        ppo(rewards__own__kind=f"{PARTS}:threshold", rewards__own__treshold="2")


@pytest.mark.parametrize(
    ("make", "overrides", "message"),
    [
        (
            dqn,
            {"agent__functional__kind": "cvar", "agent__functional__lvl": "1", "agent__head": "quantile"},
            r"'agent\.functional\.lvl', did you mean 'agent\.functional\.level'.*\(known to 'cvar': agent\.fun",
        ),
        (
            ppo,
            {"agent__functional__kind": "cvar"},
            r"'agent\.functional\.kind', did you .*known to 'policy_gradient': agent\.family",
        ),
        (
            ppo,
            {"rewards__x__factor": "1"},
            r"'rewards\.x' names no reward transform yet: set --config\.rewards\.x\.kind=",
        ),
        (ppo, {"rewards__x__kind": "scal"}, r"unknown reward transform 'scal' in rewards\.x, did you mean 'scale'"),
        (ppo, {"rewards__x__kind": "scale", "rewards__x__factor": "a"}, r"got 'a', expected a finite number$"),
        (ppo, {"rewards__x__kind": "scale", "rewards__x__spec": "1"}, r"unknown configuration key 'rewards\.x\.spec'"),
        (ppo, {"rewards__x__kind": 3}, r"'rewards\.x\.kind' got 3 \(int\), expected text"),
        (ppo, {"credit__x__kind": "gae"}, r"'credit\.x' names no estimator yet: set --config\.credit\.x\.estimator="),
        (
            ppo,
            {"environment__height": "3"},
            r"'environment\.height', did you mean .*known to 'corridor': environment\.kind, environ",
        ),
        (ppo, {"data__lenth": "3"}, r"unknown configuration key 'data\.lenth', did you mean 'data\.length'"),
        (ppo, {"nowhere__x": "3"}, r"unknown configuration key 'nowhere\.x'"),
    ],
)
def test_what_the_kind_does_not_take_is_refused_with_the_nearest_that_it_takes(make, overrides, message):
    with pytest.raises(UserError, match=message):
        make(**overrides)


SYNONYMS = [
    ("lr", ["agent.learning_rate"]),
    ("agent.lr", ["agent.learning_rate"]),
    ("gamma", ["credit.env.discount"]),
    ("lam", ["credit.env.gae_lambda"]),
    ("gae-lambda", ["credit.env.gae_lambda"]),
    ("num_envs", ["data.batch"]),
    ("batch_size", ["data.batch", "agent.minibatches"]),
    ("n_steps", ["data.length"]),
    ("total_timesteps", ["iterations"]),
    ("ent_coef", ["agent.entropy_weight"]),
    ("clip_range", ["agent.clip"]),
    ("hidden_sizes", ["network.hidden"]),
    ("env", ["environment.kind"]),
]


@pytest.mark.parametrize(("word", "meant"), SYNONYMS)
def test_the_words_of_other_libraries(word, meant):
    config = corridor.with_critic()
    with pytest.raises(UserError) as refusal:
        apply_overrides(config, {word: "1"})
    assert f", did you mean {' or '.join(map(repr, meant))}?" in str(refusal.value)
    option = "--" + word.rpartition(".")[2].replace("_", "-")
    with pytest.raises(UserError) as refusal:
        parse_overrides([f"{option}=1"], ["--seeds", "--first-seed"], config)
    shown = " or ".join(repr(f"--config.{key}") for key in meant)
    assert f"unknown argument {option!r}, did you mean {shown}?" in str(refusal.value)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("gamma", ["agent.discount"]),
        ("tau", ["agent.target_rate", "agent.temperature"]),
        ("buffer_size", ["agent.capacity"]),
    ],
)
def test_a_word_means_what_the_family_has(word, meant):
    with pytest.raises(UserError) as refusal:
        apply_overrides(corridor.with_replay(), {word: "1"})
    assert f", did you mean {' or '.join(map(repr, meant))}?" in str(refusal.value)


def test_an_option_that_is_a_key_and_a_seed():
    config = corridor.with_critic()
    for argument, shown in [
        ("--iterations=5", "'--config.iterations'"),
        ("--entropy-weight=5", "'--config.agent.entropy_weight'"),
        ("--seed=5", "'--seeds' or '--first-seed'"),
    ]:
        with pytest.raises(UserError, match=f"did you mean {shown}"):
            parse_overrides([argument], ["--seeds", "--first-seed"], config)


def test_possible_keys_are_those_that_can_be_set():
    known = possible_keys(corridor.with_critic())
    assert {"agent.clip_high", "environment.limit", "environment.time_limit", "credit.env.episodic"} <= set(known)
    assert not {"agent.credit", "agent.spec", "environment.stock", "data", "rewards.env.kind"} & set(known)
    assert keys(corridor.with_critic()).keys() <= set(known)


@pytest.mark.parametrize(
    ("make", "overrides", "message"),
    [
        (dqn, {"agent__return_scale": "2"}, "'agent.return_scale' has no effect: the environment has no stock"),
        (dqn, {"agent__use_stock": "false"}, "the environment has no stock"),
        (
            ppo,
            {"environment__kind": "sokoban", "environment__pixels_per_cell": "4"},
            "'environment.pixels_per_cell' has no effect: environment.observation=symbolic, and it is used with rgb",
        ),
        (dqn, {"agent__atoms": "11"}, "'agent.atoms' has no effect: agent.head=expected, and it is used with categor"),
        (
            dqn,
            {"agent__prioritised": "false", "agent__priority_exponent": "1"},
            "agent.prioritised=False, and it is used with True only",
        ),
        (pqn, {"agent__capacity": "64"}, "'agent.capacity' has no effect: data.kind=unroll, and it is used with repl"),
        (pqn, {"agent__target_rate": "0.1"}, "'agent.target_rate' has no effect: data.kind=unroll"),
        (dqn, {"agent__trace_cut": "true"}, "'agent.trace_cut' has no effect: agent.trace_decay=None, and without a"),
        (dqn, {"agent__log_policy_floor": "-2"}, "'agent.log_policy_floor' has no effect: agent.munchausen=0, and"),
        (ppo, {"warm_start__batch": "8"}, "'warm_start.batch' has no effect: warm_start.demonstrations=0"),
        (ppo, {"data__group_size": "4"}, "'data.group_size' has no effect: data.kind=unroll"),
        (
            ppo,
            {"agent__surrogate": "plain", "agent__clip": "0.3"},
            "agent.surrogate=plain, and it is used with clip only",
        ),
        (
            ppo,
            {"rewards__c__kind": "count_bonus", "rewards__c__bits": "4"},
            "'rewards.c.bits' has no effect: rewards.c.identify=exact, and it is used with hash or projection only",
        ),
        (
            ppo,
            {"rewards__c__kind": "byol_explore", "rewards__c__contrast": "4"},
            "rewards.c.hindsight=False, and it is used with True only",
        ),
        (
            lambda **overrides: changed(corridor.without_critic(), **overrides),
            {"agent__value_weight": "1"},
            "'agent.value_weight' has no effect: no entry of credit has an estimator with a critic",
        ),
        (
            lambda **overrides: changed(corridor.without_critic(), **overrides),
            {"agent__popart": "true"},
            "'agent.popart' has no effect: no entry of credit has an estimator with a critic",
        ),
        (
            ppo,
            {"agent__popart_step_size": "0.01"},
            "agent.popart=False, and it is used with True only",
        ),
        (
            lambda **overrides: changed(corridor.without_critic(), **overrides),
            {"rollout__start_states": "4"},
            "'rollout.start_states' has no effect: data.kind=episodes",
        ),
        (
            ppo,
            {"environment__kind": "corridor_host", "rollout__start_states": "4"},
            "'rollout.start_states' has no effect: a host environment",
        ),
    ],
)
def test_a_value_without_effect_is_refused_with_the_reason(make, overrides, message):
    with pytest.raises(UserError, match=message):
        make(**overrides)


def test_the_same_values_are_accepted_where_they_have_an_effect():
    assert dqn(agent__head="categorical", agent__atoms="11").agent.atoms == 11
    assert pqn(agent__trace_cut="true", agent__trace_decay="0.25").agent.trace_decay == 0.25
    assert dqn(agent__capacity="64", agent__optimiser="radam").agent.capacity == 64
    assert ppo(warm_start__demonstrations="4", warm_start__batch="8").warm_start.batch == 8
    assert ppo(rewards__c__kind="byol_hindsight", rewards__c__contrast="4").rewards.c.contrast == 4
    assert ppo(agent__value_weight="1").agent.value_weight == 1.0
    curious = changed(corridor.without_critic(), rewards__c__kind="rnd", agent__value_weight="1")
    assert curious.agent.value_weight == 1.0
    stocked = dqn(environment__stock__low="-1", environment__stock__high="1", agent__return_scale="2")
    assert stocked.environment.stock.to_dict() == {"low": -1, "high": 1}


@pytest.mark.parametrize("config", [policy_gradient_config(), value_based_config()])
def test_every_key_of_the_agent_is_one_that_its_factory_takes(config):
    sections = {"channels", "functional"}
    assert {f"agent.{name}" for name in set(config.agent.keys()) - sections} <= set(possible_keys(config))
