"""Curiosity: intrinsic rewards for what is new, rare or hard to predict."""
