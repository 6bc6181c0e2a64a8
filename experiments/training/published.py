"""A run as a folder in the form of Hugging Face, and back: weights, configuration, rows and a model card.

``model.safetensors`` holds the parameters of the agent of every seed, ``seed_N/PATH`` for the path of each array;
``config.json``, ``environment.json`` and ``metrics.jsonl`` are those of the run folder; ``README.md`` is the card.
Nothing in such a folder can execute anything, and all of it is checked against what the configuration builds.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from ml_collections import ConfigDict

from envs.base import PyTree
from envs.keys import seed_key
from experiments.assembly import registry
from experiments.assembly.build import EnvironmentSource, build_parts
from experiments.assembly.members import Member
from experiments.disk import parse_json, require_writable, write_json_atomic
from experiments.errors import UserError, cannot_write, in_one_line
from experiments.rows import reading, run_folders
from experiments.rows.summary import summarise_members
from experiments.training.checkpoint import Restored
from experiments.training.learn import RunState
from experiments.training.train import prolongable

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "README.md"
# What the metadata of the weights say of themselves.
FORMAT = "sagax agent parameters, 1"
HUB_EXTRA = "it comes with the extra 'hub': pip install -e '.[hub]'"
# How a card shows a number.
DIGITS = 4


class Parameters(NamedTuple):
    """In place of an agent's state: what its policy needs of it."""

    params: PyTree


def is_published(folder: Path) -> bool:
    """Whether a folder holds weights in place of checkpoints."""
    return (folder / WEIGHTS_FILE).is_file()


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f"safetensors is missing ({error}); {HUB_EXTRA}") from error
    return safetensors


def flat(params: PyTree) -> dict[str, Any]:
    """The arrays of ``params`` by their paths.

    >>> sorted(flat({"layers": [{"bias": 0}], "scale": 1}))
    ['layers/0/bias', 'scale']
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def require_destination(folder: Path) -> None:
    """Checks, before the work, that a folder can be made; one that is there must be empty.

    Raises:
      UserError: if it cannot, or holds something; or for want of a package.
    """
    _safetensors()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: expected a new folder, or an empty one")
    require_writable(folder / WEIGHTS_FILE)


def publish(
    folder: Path,
    destination: Path,
    params: Mapping[int, PyTree],
    iterations: Mapping[int, int],
    config: ConfigDict,
) -> list[Path]:
    """Writes a run to a folder, which is there as a whole or not at all.

    Args:
      folder: of the run.
      destination: see ``require_destination``.
      params: of the agent, by seed.
      iterations: after which they were saved, by seed.
      config: of the run.

    Returns:
      The files.

    Raises:
      UserError: if the run has no rows, or a file cannot be written.
    """
    require_destination(destination)
    rows = reading.read_rows(folder / run_folders.METRICS_FILE)
    if not rows:
        raise UserError(f"{folder} has no rows: expected a run that was evaluated")
    tensors = {
        f"seed_{seed}/{name}": np.array(jax.device_get(leaf), order="C")
        for seed, tree in params.items()
        for name, leaf in flat(tree).items()
    }
    metadata = {"format": FORMAT, "fingerprint": _fingerprint(config), "iterations": json.dumps(dict(iterations))}
    partial = destination.with_name(f".{destination.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _safetensors().numpy.save_file(tensors, partial / WEIGHTS_FILE, metadata)
        write_json_atomic(partial / run_folders.CONFIG_FILE, run_folders.read_description(folder))
        for name in (run_folders.ENVIRONMENT_FILE, run_folders.METRICS_FILE):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, partial / name)
        card = model_card(rows, config, iterations, destination.name)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        if destination.exists():
            destination.rmdir()
        partial.replace(destination)
    except OSError as error:
        raise cannot_write(destination, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(destination.iterdir())


def _fingerprint(config: ConfigDict) -> str:
    return registry.fingerprint(config, prolongable(config))


def model_card(rows: Sequence[reading.Row], config: ConfigDict, iterations: Mapping[int, int], name: str) -> str:
    """The card in Markdown, with Hugging Face's front matter: tags, and as results the evaluations after each seed's
    iteration, interquartile means over the seeds."""
    experiment, variant = rows[0].get("experiment", name), rows[0].get("variant", "")
    chosen = [row for row in rows if row.get("iteration") == iterations.get(row["seed"])]
    numbers = [
        metric
        for metric in (config.evaluation.metric, *reading.metrics_of(chosen))
        if all(isinstance(row.get(metric), int | float) for row in chosen)
        and not metric.startswith(("train/", *reading.LEARNING_METRICS))
    ]
    kept = [{key: row[key] for key in ("seed", *dict.fromkeys(numbers))} for row in chosen]
    summary = summarise_members([row | {"variant": "", "iteration": 0} for row in kept])[""] if kept else {}
    environment = registry.to_json_dict(config)["environment"]
    world = str(environment.get("environment_id") or environment.get("name") or environment["kind"])
    metrics = [{"type": metric, "value": entry["iqm"], "name": metric} for metric, entry in summary.items()]
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    result = {"task": task, "dataset": {"name": world, "type": str(environment["kind"])}, "metrics": metrics}
    front = {
        "library_name": "sagax",
        "pipeline_tag": "reinforcement-learning",
        "tags": ["reinforcement-learning", "sagax", "jax", str(config.agent.family), str(experiment)],
        "model-index": [{"name": name, "results": [result]}],
    }
    title = f"{experiment}:{variant}" if variant else str(experiment)
    lines = [f"| {metric} | {_shown(entry)} |" for metric, entry in summary.items()]
    what = ", ".join(f"seed {seed} after iteration {iteration}" for seed, iteration in iterations.items())
    return "\n".join(
        (
            "---",
            yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            f"\n# {title}\n",
            f"Agents of a run of sagax: {what}. `{WEIGHTS_FILE}` holds their parameters, "
            f"`{run_folders.CONFIG_FILE}` the configuration, `{run_folders.METRICS_FILE}` the rows of the whole run.\n",
            "| metric | interquartile mean over the seeds, 95 % interval |\n|---|---|",
            *lines,
            "\nThe evaluation chose the checkpoint, which flatters it; `sagax evaluate` uses other episodes.\n",
            "```bash",
            "sagax evaluate FOLDER    # with this folder as FOLDER",
            "sagax watch FOLDER",
            "```\n",
            "```python",
            "from experiments.api import restore",
            'action, carry = restore("FOLDER").act(observation)',
            "```",
            *_run_card(str(experiment)),
            "",
        )
    )


def _shown(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['iqm']:.{DIGITS}g}"
    return f"{entry['iqm']:.{DIGITS}g} [{entry['low']:.{DIGITS}g}, {entry['high']:.{DIGITS}g}]"


def _run_card(experiment: str) -> list[str]:
    """That of an experiment of this repository; nothing for others."""
    if experiment not in registry.names():
        return []
    return ["\n## The experiment\n", registry.run_card(registry.load(experiment).module)]


def read_weights(folder: Path, config: ConfigDict) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The arrays of a published folder by name, and by seed the iteration that they are of.

    Raises:
      UserError: if they cannot be read, are not of sagax, or of another configuration.
    """
    safetensors, path = _safetensors(), folder / WEIGHTS_FILE
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {in_one_line(error)}") from error
    try:
        iterations = parse_json(metadata.get("iterations", ""))
    except ValueError:
        iterations = None
    counts = isinstance(iterations, dict) and all(type(each) is int and each >= 0 for each in iterations.values())
    if metadata.get("format") != FORMAT or not counts:
        raise UserError(f"{path} holds no agents of sagax: expected a folder of `sagax publish`")
    if metadata.get("fingerprint") != _fingerprint(config):
        raise UserError(f"{path} is of another configuration than {folder / run_folders.CONFIG_FILE}")
    return tensors, iterations


def published_programs(
    folder: Path, config: ConfigDict, source: EnvironmentSource, members: Sequence[Member], checkpoint: str
) -> Iterator[tuple[list[Member], Restored]]:
    """As ``restored.restored_programs``, of a published folder: on a pure environment the members that follow each
    other with one iteration, else each member. The states hold the agents' parameters, and nothing to train on with.

    Raises:
      UserError: for another checkpoint than the one that was published, or weights that are not those of ``config``.
    """
    tensors, iterations = read_weights(folder, config)
    path = folder / WEIGHTS_FILE
    lacking = [member.seed for member in members if str(member.seed) not in iterations]
    if lacking:
        raise UserError(f"{path} has no iteration of seed {lacking[0]}")
    held = {str(iteration) for iteration in iterations.values()}
    if checkpoint not in ("best", "latest") and held != {checkpoint}:
        raise UserError(f"--checkpoint={checkpoint}: {folder} holds iteration {', '.join(sorted(held))} alone")
    foreign = sorted(name for name in tensors if name.split("/")[0] not in {f"seed_{m.seed}" for m in members})
    if foreign:
        raise UserError(f"{path} holds {foreign[0][:80]!r}, which is of no seed of {run_folders.CONFIG_FILE}")
    states = []
    for member in members:
        agent = build_parts(config, source.spec, member.values).agent
        template = jax.eval_shape(lambda key, agent=agent: agent.init(key).params, seed_key(0))
        own = {name: leaf for name, leaf in tensors.items() if name.startswith(f"seed_{member.seed}/")}
        params = _checked(own, template, f"seed_{member.seed}/", path)
        states.append(RunState(Parameters(params), (), (), seed_key(member.seed), jnp.int32(0)))
    paired = list(zip(members, states, strict=True))
    if source.pure is None:
        for member, state in paired:
            yield [member], Restored(iterations[str(member.seed)], state, None, False, {})
        return
    for iteration, group in itertools.groupby(paired, lambda pair: iterations[str(pair[0].seed)]):
        own_members, own_states = zip(*group, strict=True)
        state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own_states)
        yield list(own_members), Restored(iteration, state, None, False, {})


def _checked(tensors: Mapping[str, np.ndarray], template: PyTree, prefix: str, path: Path) -> PyTree:
    """The arrays in the structure of ``template``, which they must have exactly.

    Raises:
      UserError: with the first that is missing, too many, or of another shape or type.
    """
    wanted = {prefix + name: leaf for name, leaf in flat(template).items()}
    for name in sorted(wanted.keys() - tensors.keys()):
        raise UserError(f"{path} lacks the array {name!r}")
    for name in sorted(tensors.keys() - wanted.keys()):
        raise UserError(f"{path} holds {name[:80]!r}, which the agent of its configuration has not")
    for name, leaf in wanted.items():
        found = tensors[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise UserError(
                f"{path}: the array {name!r} is {found.dtype}{list(found.shape)}, expected {leaf.dtype}"
                f"{list(leaf.shape)}"
            )
    leaves = [jnp.asarray(tensors[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def require_login(repository: str) -> Any:
    """The client of Hugging Face's hub for ``USER/NAME``; nothing is sent.

    Raises:
      UserError: for no such name, a missing package, or without a login.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(f"huggingface_hub is missing ({error}); {HUB_EXTRA}") from error
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError(f"--upload={repository}: expected USER/NAME")
    if huggingface_hub.get_token() is None:
        raise UserError(
            f"--upload={repository}: there is no login of Hugging Face: expected `hf auth login` before, or the "
            "variable HF_TOKEN"
        )
    return huggingface_hub.HfApi()


def upload(client: Any, folder: Path, repository: str) -> str:
    """Uploads a published folder; returns its address.

    Raises:
      UserError: if the hub refuses, or cannot be reached.
    """
    try:
        client.create_repo(repository, exist_ok=True)
        return str(client.upload_folder(repo_id=repository, folder_path=folder))
    # The client's own errors, and those of whatever carries its requests; what they say may quote a header.
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", "")
        what = f"{type(error).__name__} {status}".rstrip()
        raise UserError(f"--upload={repository}: the hub did not take it ({what}); the folder is {folder}") from error
