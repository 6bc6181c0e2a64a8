"""Environments in pure JAX, their exact solvers and known models."""
