"""Parts that tests name by import path."""

from envs.ranges import ZERO_UP
from rewards.base import stateless
from rewards.catalogue import Kind

NOT_A_FACTORY = 3


def threshold(*, threshold: float = 0.0, channel: str = "env"):
    """A reward transform of somebody else's: 1 where the channel is above ``threshold``."""

    def relabel(trajectory):
        above = (trajectory.rewards[channel] > threshold).astype(trajectory.mask.dtype)
        return trajectory._replace(rewards=trajectory.rewards | {channel: above})

    return stateless(relabel)


THRESHOLD = Kind(threshold, reads=("channel",), ranges={"threshold": ZERO_UP})
