"""Rewards from feedback on what happened, given by a person or a language model."""
