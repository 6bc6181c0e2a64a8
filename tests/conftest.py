"""Settings of every test: JAX on the CPU, compiled programs kept between runs, reproducible property tests."""

import gc
import os
import sys
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings

# Before anything imports jax, and for the processes that tests start too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_CACHE = Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"
os.environ.setdefault("SAGAX_COMPILATION_CACHE", str(_CACHE))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ["SAGAX_COMPILATION_CACHE"])
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Most of a test is compiling, which is faster in one thread, and where XLA still has it, by the older code generator.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if metadata.version("jaxlib").startswith("0.10."):
    # An unknown flag ends the process.
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()

# Tracing makes many objects and few cycles: a twentieth of all time went to looking for those. ``forgotten_programs``
# collects them after each file.
gc.set_threshold(100_000, 50, 100)

settings.register_profile("sagax", deadline=None, derandomize=True)
settings.load_profile("sagax")

# The files that take longest, the longest first: a process that got one of them last would work alone at the end.
LONGEST = (
    "test_configs.py",
    "test_resume.py",
    "test_notebooks.py",
    "test_kills.py",
    "test_drivers.py",
    "test_benchmark.py",
    "test_devices.py",
    "test_value_based.py",
    "test_value_based_learning.py",
    "test_implicit_prm.py",
    "test_run_folders_of_others.py",
    "test_sweep.py",
)


# Tests of more than five seconds of one core, most of it compilation: whole programs whose parts have smaller tests.
# ``make test`` leaves them out; ``make slow`` and .ci/run run them. By file, the names of tests or of cases of one.
SLOW = {
    "test_notebooks.py": ("test_a_notebook_runs",),
    "test_kills.py": ("test_sigterm_saves_and_the_same_command_continues", "test_kills_change_nothing"),
    "test_devices.py": (
        "test_a_run_of_four_devices_goes_on_with_any_number_of_them",
        "test_the_environments_of_one_seed_are_shared_by_all_devices",
        "test_each_device_holds_its_own_members",
        "test_a_host_driver_stays_on_its_device",
        "test_the_mesh_has_room_for_all_members_and_leaves_no_device_out",
        "test_two_processes_train_what_one_trains",
    ),
    "test_configs.py": tuple(
        f"test_every_smoke_variant_runs_to_the_end[{name}]"
        for name in (
            "curiosity_maze",
            "curiosity_minigrid",
            "curiosity_montezuma",
            "eta_cliffwalking",
            "eta_gridworld",
            "eta_pong",
            "iqn_breakout",
            "lagrangian_navigation",
            "pqn_minatar",
        )
    ),
    "test_resume.py": (
        "test_a_prolonged_run_equals_the_uninterrupted_one[counts, distillation and hindsight, two seeds]",
        "test_a_prolonged_run_equals_the_uninterrupted_one[counts of the run, exact and projected, the inverse model]",
        "test_a_prolonged_run_equals_the_uninterrupted_one[pure environment as a host, recurrent]",
        "test_a_prolonged_run_equals_the_uninterrupted_one[Montezuma's Revenge]",
        "test_seeds_are_added_to_a_run_as_further_programs[host driver, finished]",
    ),
    "test_benchmark.py": (
        "test_tiny_minigrids_compare_with_ppo_in_the_same_rooms",
        "test_a_tiny_curiosity_is_timed_beside_ppo_and_beside_another",
        "test_a_tiny_case_prints_one_object[compile-targets3-details3]",
        "test_a_tiny_annotator_is_asked",
        "test_a_tiny_run_is_measured_on_this_device",
        "test_the_fused_loop_learns_what_the_driver_learns",
    ),
    "test_value_based_learning.py": ("test_the_stock_decides_between_safe_and_risky",),
    "test_drivers.py": (
        "test_the_host_driver_learns_without_jit",
        "test_a_member_of_a_program_is_the_single_run_of_its_seed",
    ),
    "test_loggers.py": ("test_a_run_in_both_loggers_and_its_continuation",),
    "test_visits.py": ("test_every_step_is_counted_once_on_a_cell_that_is_no_wall",),
    "test_search.py": ("test_the_command_trains_ranks_and_continues",),
    "test_sweep.py": ("test_a_point_equals_the_single_run_with_its_overrides",),
    "test_evaluate.py": (
        "test_a_sweep_is_evaluated_point_by_point",
        "test_the_latest_checkpoint_gives_the_last_row",
    ),
    "test_noisy_line.py": (
        "test_the_reward_of_byol_hindsight_tends_to_zero_and_its_critic_is_right",
        "test_the_error_of_byol_explore_tends_to_that_of_the_best_prediction",
    ),
    "test_ratings.py": ("test_every_message_of_a_run_is_rated",),
    "test_policy_gradient_learning.py": ("test_only_a_recurrent_policy_recalls_a_cue",),
    "test_value_based.py": ("test_a_member_of_a_vmap_equals_the_single_run",),
    "test_popart.py": ("test_values_of_rewards_times_1000_are_learned_as_well_with_popart_and_not_without",),
}


def pytest_collection_modifyitems(items):
    """Marks the slow tests, and sorts the items by how long their file takes; the order within a file stays."""
    for item in items:
        names = SLOW.get(item.path.name, ())
        if item.name in names or item.name.partition("[")[0] in names:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request):
    """Compiles without optimisation, in this process and its children: most programs of tests run for moments.

    Files that are marked ``optimised`` or ``study`` compute for longer than they compile: they compile as users do.
    """
    quick = not any(request.node.get_closest_marker(name) for name in ("optimised", "study"))
    # Read when jax is imported, which tests of commands and documents may never do.
    with mock.patch.dict(os.environ, JAX_DISABLE_MOST_OPTIMIZATIONS=str(quick)):
        if "jax" in sys.modules:
            sys.modules["jax"].config.update("jax_disable_most_optimizations", quick)
        yield


@pytest.fixture(scope="module", autouse=True)
def forgotten_programs():
    """Forgets compiled programs after each file: kept, those of all tests would take 3 GB."""
    yield
    # Tests of commands and documents may never have imported jax.
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
