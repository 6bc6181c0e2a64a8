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
# An agent for which action 0 is best everywhere acts greedily. Prints how many of 20 compilations let it act otherwise.
COUNT_WRONG = """
import gc, jax
from tests.experiments.evaluators.test_stock_objectives import metrics_of_zero_returns, smoke_of_episodes

wrong = 0
for _ in range(20):
    _, metrics = metrics_of_zero_returns(*smoke_of_episodes())
    wrong += any(float(metrics[f"mean/target_{target}"]) != 0 for target in range(-5, 6))
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
