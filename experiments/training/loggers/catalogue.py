"""The loggers that ``--logger=NAME`` names: a module and a line each. TensorBoard events are always written."""

from __future__ import annotations

from experiments.training.loggers import mlflow, wandb
from experiments.training.loggers.base import Logger

LOGGERS: dict[str, Logger] = {
    "mlflow": mlflow.LOGGER,
    "wandb": wandb.LOGGER,
}
