"""Learning signals: reward transforms and learned reward models."""
