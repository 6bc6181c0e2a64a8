"""Shared by the learning studies: training with the command and summaries with the statistics of sagax."""

import pytest

from experiments.commands import run
from experiments.rows import reading, summary


@pytest.fixture
def final_value(tmp_path):
    """``(experiment, metric, *overrides) -> number``: the interquartile mean over two seeds of the last evaluation."""

    def train(experiment, metric, *overrides):
        assert run.main([experiment, "--seeds=2", f"--runs={tmp_path}", *overrides]) == 0
        [answer] = summary.summarise(reading.read_runs(tmp_path, experiment.partition(":")[0]), metric, threshold=0.0)
        assert answer["seeds"] == 2
        return answer["final"]["iqm"]

    return train
