"""The experiments, one module each; the docstring of a module is its run card."""
