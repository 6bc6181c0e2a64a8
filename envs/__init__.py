"""Environments: base types and protocols, rollouts, spaces and wrappers; native JAX environments; hosts."""

import os

from envs.compiler import without_library_reductions

# Every other package imports this one, mostly before anything is computed.
without_library_reductions(os.environ)
