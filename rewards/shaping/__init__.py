"""Reward shaping: plain changes of a channel, and which rollouts are learned from."""
