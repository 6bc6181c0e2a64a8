"""Fixtures of all tests of the loop."""

import itertools
import os
from functools import partial
from unittest import mock

import pytest

from experiments.assembly import registry
from experiments.training import train
from experiments.training.host_driver import HostDriver, HostPrograms
from experiments.training.pickle_signature import STATE_VARIABLE
from experiments.training.scan_driver import ScanDriver
from experiments.training.train import PROLONGABLE


@pytest.fixture(scope="package", autouse=True)
def own_state(tmp_path_factory):
    """Keys that sign pickles are made here, and not among the user's."""
    with mock.patch.dict(os.environ, {STATE_VARIABLE: str(tmp_path_factory.mktemp("state"))}):
        yield


@pytest.fixture
def compiled_once(monkeypatch):
    """One set of compiled programs for all runs of one configuration; what holds state is made anew for each."""
    made = {}

    def shared(config, source, programs, folder=None, sweep=False):
        assert not sweep
        if source.pure is None:
            identity = registry.fingerprint(config, PROLONGABLE)
            if identity not in made:
                made[identity] = HostPrograms(config, source, {})
            members = itertools.chain(*programs)
            return [partial(HostDriver, config, source, member, folder, made[identity]) for member in members]
        makers = []
        for members in programs:
            identity = registry.fingerprint(config, PROLONGABLE), tuple(member.seed for member in members)
            if identity not in made:
                made[identity] = ScanDriver(config, source, members)
            # It holds no state but its compiled programs.
            makers.append(partial(made.get, identity))
        return makers

    monkeypatch.setattr(train, "drivers", shared)
    return shared
