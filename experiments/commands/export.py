"""``sagax export SOURCE... --format=rliable|marl-eval --out=FILE``: rows in the formats of other libraries' statistics.

A source is a run folder or a file of rows, such as ``results/NAME.jsonl``. Tasks are experiments, algorithms variants;
``--task-variants=hopper,halfcheetah`` says which words of variants are tasks.

``rliable``: an array per algorithm, ``[runs, tasks]`` of final values, or with ``--steps=P`` ``[runs, tasks, P]``, in a
``.npz`` or ``.json`` file; ``scores = dict(numpy.load(FILE))`` is what its functions take. ``FILE.about.json`` says in
which order the tasks and seeds are, and at which environment steps.

``marl-eval``: its raw data, ``environment -> task -> algorithm -> run -> step``, in a ``.json`` file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.commands.command_parser import CommandParser
from experiments.disk import require_writable, write_atomic, write_json_atomic
from experiments.errors import UserError, command
from experiments.rows import reading
from experiments.rows.exporting import (
    ABSOLUTES,
    curves_of,
    encoded,
    marl_eval_data,
    on_a_grid,
    read_sources,
    rliable_scores,
)

# The formats, with the files that they can be written to.
FORMATS = {"rliable": (".npz", ".json"), "marl-eval": (".json",)}


def parser() -> CommandParser:
    made = CommandParser(prog="sagax export", description="Write rows in the format of another library's statistics.")
    made.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE", help="a run folder, or a file such as results/NAME.jsonl"
    )
    made.add_argument("--format", choices=list(FORMATS), required=True, help="whose format")
    made.add_argument("--out", type=Path, required=True, help="the file to write: .npz or .json")
    made.add_argument("--metrics", default="return", help="the metric; of marl-eval several, with commas (return)")
    made.add_argument("--variants", help="variants to export: a,b or, where they have commas, a,warm;b,warm")
    made.add_argument("--task-variants", default="", help="words of variants that name a task, separated by commas")
    made.add_argument("--sweep-points", action="store_true", help="also export the points of sweeps")
    made.add_argument("--steps", type=int, help="interpolate every run at so many environment steps")
    made.add_argument("--environment", default="sagax", help="marl-eval: the name above all tasks (default: sagax)")
    made.add_argument("--absolute", choices=ABSOLUTES, default="final", help="marl-eval: the absolute metrics (final)")
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Exports some rows.

    Raises:
      UserError: for anything the user can repair.
    """
    options = parser().parse_args(argv)
    suffixes = FORMATS[options.format]
    if options.out.suffix not in suffixes:
        raise UserError(f"--out={options.out}: expected a file {' or '.join(f'*{suffix}' for suffix in suffixes)}")
    metrics = list(dict.fromkeys(metric.strip() for metric in options.metrics.split(",") if metric.strip()))
    if not metrics or (options.format == "rliable" and len(metrics) > 1):
        number = "one metric" if options.format == "rliable" else "one metric or more"
        raise UserError(f"--metrics={options.metrics}: expected {number}")
    rows = read_sources(options.sources, options.sweep_points)
    if options.variants:
        chosen = reading.select_variants(options.variants, reading.variants_of(rows))
        rows = [row for row in rows if row.get("variant", "") in chosen]
    tokens = [token.strip() for token in options.task_variants.split(",") if token.strip()]
    curves = {metric: curves_of(rows, metric, tokens) for metric in metrics}
    if options.steps is not None:
        curves = {metric: on_a_grid(found, options.steps) for metric, found in curves.items()}
    first = curves[metrics[0]]
    require_writable(options.out)
    if options.format == "marl-eval":
        write_json_atomic(options.out, marl_eval_data(curves, options.environment, options.absolute))
    else:
        write_atomic(options.out, encoded(rliable_scores(first, options.steps is not None), options.out.suffix))
        about = {
            "metric": metrics[0],
            "tasks": list(first),
            "seeds": {
                task: {algorithm: list(by_seed) for algorithm, by_seed in by_algorithm.items()}
                for task, by_algorithm in first.items()
            },
        }
        if options.steps is not None:
            grids = {task: next(iter(next(iter(found.values())).values()))[0] for task, found in first.items()}
            about["env_steps"] = {task: [int(count) for count in grid] for task, grid in grids.items()}
        write_json_atomic(options.out.with_name(f"{options.out.name}.about.json"), about)
    algorithms = next(iter(first.values()))
    runs = len(next(iter(algorithms.values())))
    print(f"{options.out}: {len(algorithms)} algorithms, {len(first)} tasks, {runs} runs of each")
    return 0
