"""The claims of eta_gridworld's run card, checked with the committed rows and the exact planner."""

import jax.numpy as jnp
import numpy as np
import pytest

from agents.functionals import FUNCTIONALS, initial_stock
from agents.planning.distributional import value_iteration
from agents.planning.return_distributions import StockGrid, lattice
from envs.native.tabular import gridworld
from experiments.assembly import registry
from experiments.configs.eta_gridworld import PROBLEMS, objectives
from experiments.errors import UserError
from experiments.rows import reading, run_folders
from experiments.rows.statistics import interquartile_mean

HORIZON = 16


@pytest.fixture(scope="module")
def finals():
    """``{variant: {metric: [values of the last evaluation by seed]}}`` of the committed rows."""
    rows = reading.read_rows(run_folders.committed_file("eta_gridworld"))
    found: dict = {}
    for variant in {row["variant"] for row in rows}:
        own = [row for row in rows if row["variant"] == variant]
        last = max(row["env_steps"] for row in own)
        at_end = [row for row in own if row["env_steps"] == last]
        found[variant] = {name: [row[name] for row in at_end] for name in at_end[0] if name.startswith("objective/")}
    return found


def planned(problem, objectives):
    """The planner's value of each objective on the problem's model, and the model."""
    _, layout, slip, _ = PROBLEMS[problem]
    model = gridworld(layout, slip=slip)
    best = {}
    for name, section in objectives.items():
        arguments = dict(section)
        objective = FUNCTIONALS[arguments.pop("kind")](**arguments)
        plan = value_iteration(model, objective, lattice(-16, 16), StockGrid(-40, 40), horizon=HORIZON)
        best[name], _ = initial_stock(objective, plan.stocks, jnp.asarray(model.initial, float) @ plan.values)
    return best, model


def spread(model):
    """The largest possible return less the smallest."""
    possible = model.probability > 0
    bounds = []
    for sign in (1, -1):
        values = np.zeros(model.num_states)
        for _ in range(HORIZON):
            later = sign * model.reward + np.where(model.terminated, 0.0, values[model.next_state])
            values = np.where(possible, later, -np.inf).max(axis=(1, 2))
        bounds.append(values[model.initial > 0].max())
    return sum(bounds)


def test_targets_are_hit_and_shares_come_near_the_planner(finals):
    best, model = planned("target", objectives("target"))
    gaps = {name: best[name] - interquartile_mean(finals["target"][f"objective/{name}"]) for name in best}
    assert spread(model) == 14 and not any(gaps.values()), gaps
    best, model = planned("cvar", objectives("cvar"))
    gaps = {name: best[name] - interquartile_mean(finals["cvar"][f"objective/{name}"]) for name in best}
    assert spread(model) == 23 and all(abs(gap) < 0.015 * spread(model) for gap in gaps.values()), gaps
    assert len(finals["target"]["objective/target_0"]) == len(finals["cvar"]["objective/tau_10"]) == 10


def test_two_seeds_miss_the_optimistic_optimum_and_the_others_come_near(finals):
    best, model = planned("optimistic_cvar", objectives("optimistic_cvar"))
    assert spread(model) == 23
    # Of the other eight, four are 0.605 behind at a share of a tenth; the optimum lies between two stocks of the agent.
    for level, most in (("tau_10", 0.61), ("tau_25", 0.03), ("tau_50", 0.24)):
        behind = best[level] - np.sort(finals["optimistic_cvar"][f"objective/{level}"])[::-1]
        assert behind[7] < most and behind[8] > 1.2, (level, behind)
    assert abs(best["tau_100"] - interquartile_mean(finals["optimistic_cvar"]["objective/tau_100"])) < 0.1


@pytest.mark.parametrize("problem", ["cvar", "optimistic_cvar", "mean_cvar", "homeostasis"])
def test_no_seed_is_better_than_the_planner(finals, problem):
    """Policies are evaluated exactly, so that none is above the optimum by chance; only rounding is left."""
    best, _ = planned(problem, objectives(problem))
    for name, value in best.items():
        assert max(finals[problem][f"objective/{name}"]) < value + 1e-3, name


@pytest.mark.parametrize("problem", ["mean_cvar", "homeostasis"])
def test_the_other_problems_come_near_the_planner(finals, problem):
    best, model = planned(problem, objectives(problem))
    gaps = {name: best[name] - interquartile_mean(finals[problem][f"objective/{name}"]) for name in best}
    assert spread(model) == (14 if problem == "homeostasis" else 23)
    assert all(abs(gap) < 0.005 * spread(model) for gap in gaps.values()), gaps


def test_without_the_stock_objectives_that_need_no_memory_are_as_good(finals):
    for target in ("target_-3", "target_3"):
        assert not any(finals[f"target,stockless,{target}"][f"objective/{target}"])
    for level, most in (("tau_50", 0.03), ("tau_100", 1e-3)):
        name = f"objective/{level}"
        without, stocked = finals[f"cvar,stockless,{level}"][name], finals["cvar"][name]
        assert abs(interquartile_mean(without) - interquartile_mean(stocked)) < most, level


def test_without_the_stock_the_tail_is_worse(finals):
    for level in ("tau_10", "tau_25"):
        name = f"objective/{level}"
        without, stocked = finals[f"cvar,stockless,{level}"][name], finals["cvar"][name]
        assert interquartile_mean(without) < interquartile_mean(stocked) - 0.5, level


def test_one_objective_alone_must_be_one_of_the_problem():
    assert registry.load("eta_gridworld:tau_10").config.agent.functional.kind == "cvar"
    with pytest.raises(UserError, match="target has no objective tau_10"):
        registry.load("eta_gridworld:target,tau_10")
