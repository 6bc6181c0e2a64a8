"""Suites of environments that other libraries write in JAX, as pure environments."""
