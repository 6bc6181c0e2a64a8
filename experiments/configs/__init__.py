"""The experiments, a module each; a module's docstring is its run card."""
