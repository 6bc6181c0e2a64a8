"""The learn step, the drivers, the outer loop, checkpoints, and the rows that it writes."""
