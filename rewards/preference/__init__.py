"""Preferences: losses that learn from comparisons and outcome labels."""
