"""Behaviour: networks, distributions, losses, credit and the agent families."""
