"""The setting of XLA that keeps reductions from a library that computes some of them wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs import compiler
from envs.compiler import FLAG, without_library_reductions


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.2", None, f"{FLAG}=-reduce"),
        ("0.12.0.1", "--xla_dump_to=x", f"--xla_dump_to=x {FLAG}=-reduce"),
        ("0.12.1.dev20261101", "", f"{FLAG}=-reduce"),
        ("0.10.2", f"{FLAG}=dot", f"{FLAG}=dot"),
        ("0.9.2", "--xla_dump_to=x", "--xla_dump_to=x"),
        ("0.13.0", None, None),
        ("1.10.0", None, None),
    ],
)
def test_the_flag_is_added_once_where_jaxlib_knows_it(version, before, after, monkeypatch):
    monkeypatch.setattr(compiler.metadata, "version", lambda package: {"jaxlib": version}[package])
    environment = {} if before is None else {"XLA_FLAGS": before}
    without_library_reductions(environment)
    without_library_reductions(environment)
    assert environment == ({} if after is None else {"XLA_FLAGS": after})


def test_reductions_of_this_process_are_compiled_by_xla():
    table = jnp.asarray(np.arange(160.0), jnp.float32)

    @jax.jit
    def reduced(x):
        return jnp.sum((x * table).reshape(44, 5, 32) ** 2, axis=-1)

    program = reduced.lower(jnp.ones((44, 160))).compile()
    assert "ynn" not in program.as_text()
    expected = np.sum((np.arange(160.0) ** 2).reshape(5, 32), axis=-1)
    np.testing.assert_allclose(program(jnp.ones((44, 160))), np.broadcast_to(expected, (44, 5)), rtol=1e-5)
