"""Constraints from a configuration: their own sections are built, and what does not fit is refused in one line."""

import pytest

from experiments.assembly import registry
from experiments.assembly.build import build_environment, build_parts
from experiments.errors import UserError


def build(name="lagrangian_cmdp:pid,costs_2", **changes):
    config = registry.load(name).config.copy_and_resolve_references().unlock()
    for key, value in changes.items():
        *path, leaf = key.split("__")
        section = config
        for part in path:
            section = section[part]
        if value is None:
            del section[leaf]
        else:
            section[leaf] = value
    return build_parts(config, build_environment(config).spec)


def test_constraints_and_multipliers_are_built_from_their_sections():
    parts = build()
    assert parts.agent.data.kind == "unroll"
    assert build("lagrangian_cmdp:rcpo,costs_2").agent.data.batch == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rewards__lagrangian__multiplier__kind": "pidd"},
            r"unknown multiplier rule 'pidd' in rewards.lagrangian.mult",
        ),
        ({"rewards__lagrangian__multiplier__kind": None}, r"'rewards.lagrangian.multiplier' lacks 'kind'"),
        ({"rewards__lagrangian__multiplier__gain": 1.0}, r"'rewards.lagrangian.multiplier'.*gain"),
        ({"rewards__lagrangian__constraints__1__limit": None}, r"'rewards.lagrangian.constraints.1' lacks 'limit'"),
        (
            {"rewards__lagrangian__constraints__1__channel": "cost/3"},
            r"unknown reward channel 'cost/3' in rewards.lagr",
        ),
        ({"rewards__lagrangian__objective": "envv"}, r"weighs the entry 'envv', .* expected credit.envv"),
        ({"credit__2": None}, r"rewards.lagrangian weighs the entry '2', .* expected credit.2"),
        ({"rewards__lagrangian__constraints__1__sense": "atmost"}, r"unknown sense 'atmost' of constraint '1'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)
