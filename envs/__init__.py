"""Environments: base types and protocols, rollouts, spaces and wrappers; native JAX environments; hosts."""
