"""Batches of environments from other libraries, and of pure ones, stepped from Python."""
