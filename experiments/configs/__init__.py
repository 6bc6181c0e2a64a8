"""Experiments by name: one module each, its docstring the run card."""
