"""Environments: types, the two environment protocols, rollouts, adapters and native JAX environments."""
