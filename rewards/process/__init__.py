"""Process rewards: a reward for every step, learned from the outcomes of whole rollouts."""
