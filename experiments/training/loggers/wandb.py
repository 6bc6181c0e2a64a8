"""Weights & Biases: a run per seed, grouped by ``experiment:variant``, over environment steps.

Its own variables say where rows go: ``WANDB_PROJECT`` (default: sagax), ``WANDB_ENTITY``, ``WANDB_BASE_URL``, and
``WANDB_MODE=offline`` for a folder that ``wandb sync`` uploads later, ``wandb`` in the run folder unless ``WANDB_DIR``
names another place. A continued run has the same identifier, and so becomes one run of Weights & Biases. It does not
say which rows it has: those of the last moment before a kill may be missing there, and none is there twice.

Source: https://docs.wandb.ai/ref/python/init (resume, group) and https://docs.wandb.ai/ref/python/log (step).
"""

from __future__ import annotations

import os

from experiments.errors import UserError, in_one_line
from experiments.rows.reading import Row
from experiments.training.loggers.base import Logger, LoggerRun, Seed, fitting, installed, metrics

PROJECT = "sagax"
# What Weights & Biases takes at most, in characters.
LONGEST_NAME, LONGEST_TAG = 128, 64
# Rows that it cannot upload within this time at the end of a run stay on the disk.
UPLOAD_SECONDS = 60.0
# It keeps rows in memory for so long, which a kill of the process loses; its default of 15 seconds is many rows.
FLUSH, FLUSH_SECONDS = "x_transaction_log_flush_interval", 0.1
LOGIN = "expected WANDB_API_KEY or `wandb login`, or WANDB_MODE=offline to write a folder that `wandb sync` uploads"


def require() -> None:
    """Checks that Weights & Biases is installed and either offline or logged in at a server that answers.

    Raises:
      UserError: if it is not.
    """
    wandb = installed("wandb", "wandb", "wandb")
    try:
        mode = wandb.setup().settings.mode
        if mode in ("offline", "dryrun", "disabled"):
            return
        known = wandb.login(prompt=False, verify=True)
    # Settings are checked by pydantic, keys by the library, servers by both.
    except Exception as error:
        raise UserError(f"--logger=wandb: {in_one_line(error, 300)}: {LOGIN}") from error
    if not known:
        raise UserError(f"--logger=wandb is not logged in: {LOGIN}")


def begin(seed: Seed) -> LoggerRun:
    """Begins or continues the run of a seed. Its server drops rows that it has; offline it cannot tell which it has."""
    wandb = installed("wandb", "wandb", "wandb")
    settings = {"silent": True, "console": "off", "finish_timeout": UPLOAD_SECONDS}
    if FLUSH in wandb.Settings.model_fields:
        settings[FLUSH] = FLUSH_SECONDS
    # It takes our package agents for that of OpenAI, and advertises a tool for it.
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
    run = wandb.init(
        id=seed.key,
        resume="allow",
        # The seeds of one program are trained side by side.
        reinit="create_new",
        project=os.environ.get("WANDB_PROJECT") or PROJECT,
        group=fitting(seed.group, LONGEST_NAME),
        name=fitting(seed.name, LONGEST_NAME),
        tags=[fitting(tag, LONGEST_TAG) for tag in (seed.experiment, seed.variant, f"seed={seed.seed}") if tag],
        config=seed.config | {"experiment": seed.experiment, "variant": seed.variant, "seed": seed.seed},
        dir=os.environ.get("WANDB_DIR") or seed.folder,
        settings=wandb.Settings(**settings),
    )

    def log(row: Row) -> None:
        progress = {"env_steps": row["env_steps"], "iteration": row["iteration"]}
        # Committed, or it would be held back until the next row.
        run.log(metrics(row) | progress, step=row["env_steps"], commit=True)

    return LoggerRun(log, run.finish)


LOGGER = Logger(require, begin)
