"""Dynamic programming on known models, for the expected return and for functionals of the return distribution."""
