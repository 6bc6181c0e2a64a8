"""Loggers: sinks of the rows of a run, such as TensorBoard events, Weights & Biases and MLflow."""
