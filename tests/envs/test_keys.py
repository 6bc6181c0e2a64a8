"""Keys are of one generator, whatever JAX's default is."""

import ast
from pathlib import Path

import jax
import pytest

from envs.keys import seed_key

ROOT = Path(__file__).resolve().parents[2]


def test_a_key_is_of_the_same_generator_whatever_the_default():
    expected = jax.random.uniform(seed_key(3), (4,)).tolist()
    with jax.default_prng_impl("rbg"):
        assert jax.random.uniform(seed_key(3), (4,)).tolist() == expected


@pytest.mark.parametrize("package", ["envs", "agents", "rewards", "experiments"])
def test_no_other_place_makes_keys_of_seeds(package):
    # Other libraries' code is handed keys as it takes them.
    exempt = {"envs/keys.py", "experiments/benchmarks/baseline_speed.py"}
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("jax.random.key", "jax.random.PRNGKey"):
                found.append(path.relative_to(ROOT).as_posix())
    assert set(found) <= exempt
