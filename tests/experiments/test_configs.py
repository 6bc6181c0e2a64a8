"""Every experiment and variant builds; every smoke variant runs; every method on Sokoban learns a step."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents.losses import value_loss
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.checks import checked_environment
from experiments.commands.list import main as list_main
from experiments.commands.run import main
from experiments.configs import _common, dqn_cartpole, oprl_sokoban, ppo_mujoco
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.training import learn
from experiments.training.sweeps import ranking

NAMES = registry.names()
VARIANTS = [f"{name}:{token}" for name in NAMES for token in ("", *registry.module_of(name).VARIANTS)]

# The package that an environment needs in addition to the core, by the extra that installs it.
NEEDED = {
    "qrdqn_lunarlander": ("Box2D", "box2d"),
    "eta_pong": ("ale_py", "atari"),
    "curiosity_minigrid": ("minigrid", "minigrid"),
    "curiosity_montezuma": ("ale_py", "atari"),
    "oni_minigrid": ("minigrid", "minigrid"),
}


@pytest.fixture(autouse=True)
def packages_of_environments(request):
    """Skips if a package of an extra is not installed."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name", "")
    package, extra = NEEDED.get((name or "").partition(":")[0], (None, None))
    if package:
        pytest.importorskip(package, reason=f"the extra {extra} is not installed")


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_builds(name):
    loaded = registry.load(name)
    source = checked_environment(loaded.config)
    parts = build_parts(loaded.config, source.spec)
    assert parts.agent.data.length == loaded.config.data.length
    rooms = loaded.config.warm_start.demonstrations if "warm_start" in loaded.config else 0
    assert (parts.warm_start is not None) == (rooms > 0)
    # A run writes it to the disk and reads it back.
    values = json.loads(json.dumps(registry.to_json_dict(loaded.config)))
    assert registry.fingerprint(registry.from_json_dict(values)) == registry.fingerprint(loaded.config)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_changes_the_configuration_or_is_the_default(name):
    experiment, _, token = name.partition(":")
    described = registry.module_of(experiment).VARIANTS.get(token, "")
    default = token in ("", "scratch") or described.endswith("(the default)")
    different = registry.difference(registry.load(experiment).config, registry.load(name).config)
    assert bool(different) != default


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_has_a_run_card(name):
    module = registry.module_of(name)
    assert module.__doc__ and len(module.__doc__.split()) >= 8
    assert len(module.REPRODUCES.split()) >= 3
    assert "smoke" in module.VARIANTS
    assert all(description.strip() for description in module.VARIANTS.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_values_of_every_sweep_fit_the_configuration(name):
    loaded = registry.load(f"{name}:smoke")
    grid = loaded.module.get_sweep()
    assert grid and grid.keys() <= registry.keys(loaded.config).keys()
    for key, values in grid.items():
        assert len(values) == len(set(values)) > 1
        for value in values:
            config = registry.apply_overrides(loaded.config, {key: value})
            assert registry.keys(config)[key] == value
            checked_environment(config)


def test_the_list_names_every_experiment(capsys):
    assert list_main(["--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert [experiment["name"] for experiment in listed] == NAMES
    for experiment in listed:
        assert experiment["variants"] == registry.module_of(experiment["name"]).VARIANTS


# Craftax compiles for a minute.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.study] if name == "ppo_craftax" else []) for name in NAMES]
)
def test_every_smoke_variant_runs_to_the_end(name, tmp_path, capsys):
    assert main([f"{name}:smoke", f"--runs={tmp_path}", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    config = registry.load(f"{name}:smoke").config
    assert answer["finished"] and [one["iteration"] for one in answer["seeds"]] == [config.iterations]
    rows = reading.read_runs(tmp_path, name)
    assert [row["iteration"] for row in rows] == [2, 4]
    for row in rows:
        assert np.isfinite(row[config.evaluation.metric])
        assert row["train/rejected_updates"] == 0
    most = config.iterations * config.data.length * config.data.batch
    assert 0 < rows[-1]["env_steps"] <= most


METHOD_OVERRIDES = {"network.hidden": (8,), "data.batch": 16, "data.length": 5, "environment.time_limit": 5}


@pytest.fixture(scope="module")
def source():
    return build_environment(registry.load("oprl_sokoban").config)


def random_like(shape, name, generator):
    """Random numbers for one array of a trajectory."""
    if "observation" in name:
        return generator.integers(0, 2, shape.shape).astype(shape.dtype)
    if "log_prob" in name:
        return np.full(shape.shape, -np.log(4.0), shape.dtype)
    if "mask" in name:
        return np.ones(shape.shape, shape.dtype)
    if shape.dtype == jnp.bool_:
        return np.zeros(shape.shape, shape.dtype)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return generator.integers(0, 4, shape.shape).astype(shape.dtype)
    return generator.normal(size=shape.shape).astype(shape.dtype)


@pytest.mark.parametrize("method", oprl_sokoban.METHODS)
def test_every_method_learns_from_mixed_outcomes(method, source):
    config = registry.load(f"oprl_sokoban:{method},smoke").config
    config = registry.apply_overrides(config, METHOD_OVERRIDES)
    agent, reward, _ = build_parts(config, source.spec)
    state = jax.jit(lambda key: learn.initial_state(agent, reward, key))(jax.random.key(0))
    _, shapes = jax.eval_shape(lambda state: learn.collect(source.pure, agent, state, jnp.int32(0)), state)
    generator = np.random.default_rng(zlib.crc32(method.encode()))
    trajectory = jax.tree_util.tree_map_with_path(
        lambda path, shape: random_like(shape, jax.tree_util.keystr(path), generator), shapes
    )
    # The last step pays 1 to every other rollout, so that no group is without a pair.
    rewards = np.zeros((5, 16), np.float32)
    rewards[-1, ::2] = 1.0
    terminated = np.zeros((5, 16), bool)
    terminated[-1] = True
    trajectory = trajectory._replace(rewards={"env": rewards}, terminated=terminated)

    step = jax.jit(lambda state, trajectory, iteration: learn.learn(agent, reward, state, trajectory, iteration))
    learned, metrics = step(state, trajectory, jnp.int32(0))
    learned, again = step(learned, trajectory, jnp.int32(1))
    assert int(learned.rejected) == 0 and int(metrics["sum/rejected"]) == 0
    for name, value in [*metrics.items(), *again.items()]:
        assert np.isfinite(value), name
    changed = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), state.agent.params, learned.agent.params)
    assert any(jax.tree.leaves(changed["policy"]))
    assert float(metrics["agent/advantage_std"]) > 0
    if "implicit_prm" in config.rewards:
        # A model that has learned from one batch tells steps apart, whichever update the rewards are of.
        assert float(again["reward/implicit_prm/reward_max"]) > 0
    assert any(jax.tree.leaves(changed["critic"])) == (method in ("ppo", "ppo_residual"))


def best_point(experiment, variant, metric, rank="auc", *, points):
    """The keys and values of the best of a committed sweep's ``points`` points, two seeds each."""
    rows = reading.read_rows(run_folders.committed_file(f"{experiment}_tuning"))
    swept = [row for row in rows if row["variant"].startswith(f"{variant}+sweep+")]
    best = ranking(swept, metric, rank)[0]
    assert best["seeds"] == 2 and len(reading.variants_of(swept)) == points
    return best["variant"].split("+sweep+")[1]


@pytest.mark.parametrize("method", oprl_sokoban.METHODS)
def test_the_tuned_values_are_the_best_of_the_committed_sweep(method):
    learning_rate, entropy_weight = oprl_sokoban.TUNED[method]
    expected = f"agent.entropy_weight={entropy_weight}+agent.learning_rate={learning_rate}"
    assert best_point("oprl_sokoban", method, "success", points=8) == expected


@pytest.mark.parametrize("method", oprl_sokoban.TUNED_ON_RGB)
def test_the_learning_rate_on_rgb_is_the_best_of_the_committed_sweep(method):
    found = best_point("oprl_sokoban", f"{method},visual", "success", points=3)
    assert found.endswith(f"agent.learning_rate={oprl_sokoban.TUNED_ON_RGB[method]}")


@pytest.mark.parametrize("method", dqn_cartpole.TUNED)
def test_the_values_on_cartpole_are_the_best_of_the_committed_sweep(method):
    learning_rate, n_step = dqn_cartpole.TUNED[method]
    expected = f"agent.learning_rate={learning_rate}+agent.n_step={n_step}"
    assert best_point("dqn_cartpole", method, "return", points=4) == expected


@pytest.mark.parametrize("baseline", ["sb3_dqn", "sb3_qrdqn"])
def test_a_tuned_baseline_on_cartpole_has_the_best_values_of_as_many_points(baseline):
    settings = dqn_cartpole.BASELINES[f"{baseline},tuned"]
    expected = f"learning_rate={settings['learning_rate']}+n_steps={settings['n_steps']}"
    assert best_point("dqn_cartpole", baseline, "return", points=4) == expected


def test_the_zoos_settings_of_half_cheetah_are_those_of_its_file():
    config = registry.load("ppo_mujoco:half_cheetah,tuned").config
    assert (config.data.length, config.data.batch, config.agent.minibatches) == (512, 1, 512 // 64)
    assert (config.network.hidden, config.network.activation) == ((256, 256), "relu")
    found = {
        key: config.agent[key]
        for key in ("learning_rate", "epochs", "clip", "entropy_weight", "max_gradient_norm", "schedule", "value_clip")
    }
    assert found == {
        "learning_rate": 2.0633e-05,
        "epochs": 20,
        "clip": 0.1,
        "entropy_weight": 0.000401762,
        "max_gradient_norm": 0.8,
        "schedule": "constant",
        "value_clip": None,
    }
    assert (config.credit.env.discount, config.credit.env.gae_lambda, config.rewards.env.discount) == (0.98, 0.92, 0.98)
    assert config.network.normalise_observations and np.log(config.agent.initial_std) == -2.0
    # stable-baselines3's loss is vf_coef times the squared error.
    values, targets = jnp.array([0.5, 2.0]), jnp.array([1.5, -1.0])
    np.testing.assert_allclose(
        config.agent.value_weight * value_loss(values, targets), 0.58096 * (values - targets) ** 2
    )


@pytest.mark.parametrize(("task", "minibatches", "hidden"), [("hopper", 16, (256, 256)), ("walker2d", 16, (64, 64))])
def test_the_zoos_settings_of_a_task_are_those_of_its_baseline(task, minibatches, hidden):
    config = registry.load(f"ppo_mujoco:{task},tuned").config
    theirs = ppo_mujoco.BASELINES[f"sb3_ppo,{task},tuned"]
    assert config.environment.environment_id == ppo_mujoco.TASKS[task]
    assert (config.agent.minibatches, config.network.hidden) == (minibatches, hidden)
    assert config.agent.learning_rate == theirs["learning_rate"] and config.credit.env.discount == theirs["gamma"]
    assert config.agent.initial_std == np.exp(theirs.get("log_std_init", 0.0))


def test_a_task_without_tuned_settings_is_refused():
    with pytest.raises(UserError, match="ant and tuned exclude each other: expected one of half_cheetah, hopper, walk"):
        registry.load("ppo_mujoco:ant,tuned")


@pytest.mark.parametrize("method", ["hindsight", "explore", "rnd", "icm"])
def test_curiosities_learn_as_often_as_the_committed_sweep_says(method):
    found = best_point("curiosity_maze", method, "trackers", "final", points=3)
    assert found.endswith(f"rewards.curiosity.updates={_common.CURIOSITIES[method][1]['updates']}")
