"""The networks that a configuration can name as ``network.kind``."""

from __future__ import annotations

from collections.abc import Callable

from agents.networks.base import NetworkBuilder
from agents.networks.sequence import NetworkConfig
from envs.kinds import Kind

# The kind of a section ``network`` that names none.
DEFAULT_NETWORK = "sequence"

# A factory, see ``agents.networks.base.NetworkBuilder`` for what it has to return, or a ``Kind`` with ranges and needs.
NETWORKS: dict[str, Callable[..., NetworkBuilder] | Kind] = {
    "sequence": NetworkConfig,
}
