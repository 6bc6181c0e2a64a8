"""MLflow: an experiment per sagax experiment and a run per seed, with its variant as a tag, over environment steps.

``MLFLOW_TRACKING_URI`` says where rows go: a server (``http://HOST:5000``) or a file (``sqlite:///PATH``); without it
MLflow's own default, ``mlflow.db`` in the working directory. ``MLFLOW_EXPERIMENT_NAME`` names another experiment. The
run of a continued seed is found by its tag ``sagax.key``. MLflow says itself which rows it has, so that none is missing
after a kill, and a store that was lost is filled again.

Source: https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html (log_batch, search_runs).
"""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Any

from experiments.errors import UserError, in_one_line, printable
from experiments.rows.reading import Row
from experiments.training.loggers.base import Logger, LoggerRun, Seed, fitting, installed, leaves, metrics

# What MLflow takes at most: of a name and a value in characters, and of a batch in entries.
LONGEST_NAME, LONGEST_VALUE, METRICS, PARAMETERS = 250, 6000, 1000, 100
NAME = re.compile(r"[^\w\-. /:]")
KEY = "sagax.key"
# A server that does not answer is given up after seconds, and not after minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def _client() -> Any:
    tracking = installed("mlflow", "mlflow.tracking", "mlflow")
    # It tells at length that it makes the tables of a new file.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    return tracking.MlflowClient()


def require() -> None:
    """Checks that MLflow is installed and that the place of ``MLFLOW_TRACKING_URI`` answers.

    Raises:
      UserError: if it is not.
    """
    installed("mlflow", "mlflow.tracking", "mlflow")
    try:
        _client().search_experiments(max_results=1)
    except Exception as error:
        place = os.environ.get("MLFLOW_TRACKING_URI") or "mlflow.db in the working directory"
        why = in_one_line(error, 300)
        raise UserError(
            f"--logger=mlflow cannot use {printable(place)}: {why}: expected MLFLOW_TRACKING_URI to be a server that "
            "answers, or a file such as sqlite:///mlflow.db"
        ) from error


def begin(seed: Seed) -> LoggerRun:
    """Begins or continues the run of a seed."""
    entities = installed("mlflow", "mlflow.entities", "mlflow")
    client = _client()
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or seed.experiment
    experiment = client.get_experiment_by_name(name)
    number = client.create_experiment(name) if experiment is None else experiment.experiment_id
    found = client.search_runs([number], f"tags.`{KEY}` = '{seed.key}'", max_results=1)
    run = found[0].info.run_id if found else _new_run(client, entities, number, seed)
    client.update_run(run, status="RUNNING")
    logged = [each.value for each in client.get_metric_history(run, "iteration")] if found else []

    def log(row: Row) -> None:
        now = int(time.time() * 1000)
        # The iteration comes last: where it is there, all of the row is.
        values = metrics(row) | {"iteration": row["iteration"]}
        made = [entities.Metric(_named(key), value, now, row["env_steps"]) for key, value in values.items()]
        for start in range(0, len(made), METRICS):
            client.log_batch(run, metrics=made[start : start + METRICS])

    return LoggerRun(log, lambda: client.set_terminated(run), int(max(logged, default=0)))


def _new_run(client: Any, entities: Any, number: str, seed: Seed) -> str:
    tags = {"experiment": seed.experiment, "variant": seed.variant, "seed": str(seed.seed), "group": seed.group}
    made = client.create_run(number, run_name=fitting(seed.name, LONGEST_NAME), tags=tags | {KEY: seed.key})
    values = [
        entities.Param(fitting(_named(key), LONGEST_NAME), fitting(str(value), LONGEST_VALUE))
        for key, value in leaves(seed.config).items()
    ]
    for start in range(0, len(values), PARAMETERS):
        client.log_batch(made.info.run_id, params=values[start : start + PARAMETERS])
    return made.info.run_id


def _named(key: str) -> str:
    return NAME.sub("_", key)


LOGGER = Logger(require, begin)
