"""Agents: networks, action distributions, losses, credit, the agent families, and planners for known models."""
