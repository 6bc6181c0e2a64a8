"""XLA's own reductions are right in every compilation; those of its library are not (see ``envs.compiler``).

Memory that was given back is overwritten at once (``MALLOC_PERTURB_``, of glibc), so that reading it shows.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.compiler import FLAG

pytestmark = pytest.mark.study

ROOT = Path(__file__).resolve().parents[2]
# An agent for which action 0 is best everywhere acts greedily in an evaluation of stocks. Prints how many of 20
# compilations let it act otherwise.
COUNT_WRONG = """
import gc, jax, jax.numpy as jnp
from types import SimpleNamespace
from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.assembly.evaluators import build_evaluators
from experiments.configs._common import stock_evaluator
from experiments.evaluators.base import PureEpisodes

def acts_otherwise():
    config = registry.load("eta_gridworld:smoke").config.copy_and_resolve_references()
    wanted = config.evaluators.exact.objectives.to_dict()
    with config.unlocked():
        config.evaluators = {"objectives": stock_evaluator(wanted, candidates=181, count=4)}
    source = build_environment(config)
    agent = build_parts(config, source.spec).agent
    state = jax.jit(agent.init)(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, state.params)
    bias = params["online"]["head_advantage"]["bias"]
    params["online"]["head_advantage"]["bias"] = bias.at[config.agent.quantiles:].set(-100.0)
    run = SimpleNamespace(agent=state._replace(params=params))
    episodes = PureEpisodes(source.pure, agent)
    evaluator = build_evaluators(config, source, agent, episodes)["objectives"]
    metrics = jax.jit(lambda key: evaluator.evaluate(run, key))(jax.random.key(0))
    return any(float(metrics[f"mean/target_{target}"]) != 0 for target in range(-5, 6))

wrong = 0
for _ in range(20):
    wrong += acts_otherwise()
    jax.clear_caches()
    gc.collect()
print(wrong)
"""


def wrong_compilations(flags: str) -> int:
    environment = os.environ | {"XLA_FLAGS": flags, "MALLOC_PERTURB_": "85"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    words = [sys.executable, "-c", COUNT_WRONG]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_no_compilation_is_wrong_with_the_setting_and_some_are_without():
    assert wrong_compilations("") == 0
    # Once this fails, XLA's library is right, and ``envs.compiler`` can go.
    assert wrong_compilations(f"{FLAG}=+reduce") > 0
