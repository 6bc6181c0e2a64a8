"""Constraints: limits on the totals of channels, and the Lagrange multipliers that make an agent meet them."""
