"""The reward transforms that a configuration can name as ``rewards.NAME.kind``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from envs.kinds import Needs
from envs.ranges import DECAY, POSITIVE, SHARE, ZERO_UP, Range
from rewards.base import RewardTransform
from rewards.constraints.lagrangian import lagrangian, weighed_entries
from rewards.curiosity.count_bonus import count_bonus
from rewards.curiosity.icm import icm
from rewards.curiosity.latent_prediction import byol_explore, byol_hindsight
from rewards.curiosity.rnd import rnd
from rewards.feedback.language_feedback import language_feedback, question
from rewards.process.implicit_prm import implicit_prm
from rewards.shaping import transforms


class Kind(NamedTuple):
    """One entry of the catalogue.

    Attributes:
      factory: its keyword arguments are the keys of the section. ``spec``, ``data``, ``network_config``,
        ``continuous`` and ``initial_std`` are supplied where the factory takes them.
      reads: the parameters that name a channel which must be there before the transform, or that are sections by name
        of which each has a ``channel``.
      writes: the parameters that name a channel which the transform adds or rewrites.
      intrinsic: whether the agent makes this reward for itself. Where no entry of ``credit`` reads its channel, it is
        credited by ``INTRINSIC_CREDIT``.
      question: of a transform that learns from an annotator's labels, ``(**section) -> (size, capacity)``: how many
        messages a question is about, and how many labels the transform remembers.
      weighs: of a transform that writes credit weights, ``(**section) -> entries``: the names of those entries.
      ranges, needs: see ``envs.kinds.Kind``.
    """

    factory: Callable[..., RewardTransform]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ("channel",)
    intrinsic: bool = False
    question: Callable[..., tuple[int, int]] | None = None
    weighs: Callable[..., tuple[str, ...]] | None = None
    ranges: Mapping[str, Range] = {}
    needs: Needs = {}  # noqa: RUF012  (never written)


# A critic that is not episodic: what the next episode may still find is worth something at the end of this one.
INTRINSIC_CREDIT = {"estimator": "gae", "weight": 1.0, "discount": 0.99, "gae_lambda": 0.95, "episodic": False}

# What only BYOL-Hindsight's generator, reconstructor and critic take.
_HINDSIGHT = {"hindsight": (True,)}
_LATENT_PREDICTION = Kind(
    byol_explore,
    intrinsic=True,
    ranges={
        "learning_rate": ZERO_UP,
        "critic_learning_rate": ZERO_UP,
        "reconstruction_weight": ZERO_UP,
        "target_decay": SHARE,
        "scale_decay": DECAY,
    },
    needs=dict.fromkeys(
        ("latent_size", "noise_size", "contrast", "reconstruction_weight", "critic_learning_rate"), _HINDSIGHT
    ),
)
# What only the models with a network take.
_NETWORK = {"model": ("classification", "ranking")}

REWARDS: dict[str, Kind] = {
    "implicit_prm": Kind(
        implicit_prm,
        ranges={
            "learning_rate": ZERO_UP,
            "max_gradient_norm": POSITIVE,
            "weight_decay": ZERO_UP,
            "beta": ZERO_UP,
            "fading": ZERO_UP,
            "initial_std": POSITIVE,
            "tolerance": ZERO_UP,
            "calibration_smoothing": DECAY,
        },
        needs={"calibration_smoothing": {"calibrated": (True,)}},
    ),
    "count_bonus": Kind(count_bonus, intrinsic=True, needs={"bits": {"identify": ("hash", "projection")}}),
    "rnd": Kind(rnd, intrinsic=True, ranges={"learning_rate": ZERO_UP, "discount": SHARE, "limit": POSITIVE}),
    "icm": Kind(icm, intrinsic=True, ranges={"learning_rate": ZERO_UP, "forward_share": SHARE}),
    "byol_explore": _LATENT_PREDICTION,
    "byol_hindsight": _LATENT_PREDICTION._replace(factory=byol_hindsight),
    "language_feedback": Kind(
        language_feedback,
        question=question,
        ranges={
            "learning_rate": ZERO_UP,
            "max_gradient_norm": POSITIVE,
            "beta": ZERO_UP,
            "threshold": SHARE,
            "small": ZERO_UP,
        },
        needs={"threshold": {"model": ("classification",)}, "cutoff": {"model": ("ranking",)}}
        | dict.fromkeys(("embedding_size", "channels", "kernels", "pools", "hidden", "updates", "small"), _NETWORK)
        | dict.fromkeys(("batch_size", "learning_rate", "max_gradient_norm"), _NETWORK),
    ),
    "scale": Kind(transforms.scale, reads=("channel",)),
    "clip": Kind(transforms.clip, reads=("channel",)),
    "normalise": Kind(transforms.normalise, reads=("channel",), ranges={"minimum_std": POSITIVE, "limit": POSITIVE}),
    "normalise_by_return": Kind(
        transforms.normalise_by_return,
        reads=("channel",),
        ranges={"discount": SHARE, "minimum_std": POSITIVE, "limit": POSITIVE},
    ),
    "lagrangian": Kind(
        lagrangian,
        reads=("channel", "constraints"),
        weighs=weighed_entries,
        ranges={"smoothing": DECAY, "discount": SHARE, "tail": Range(0, 1, low_open=True)},
    ),
    "group_filter": Kind(transforms.group_filter, reads=("channel",), writes=()),
}


def channels(kind: Kind, parameters: Iterable[str], section: Mapping[str, Any]) -> set[str]:
    """The channels that ``parameters`` of ``kind.factory`` name: what ``section`` says, or else the defaults.

    A parameter that the factory does not take names none.
    """
    known = inspect.signature(kind.factory).parameters
    named = [section.get(name, known[name].default) for name in parameters if name in known]
    parts = [part.get("channel") for one in named if isinstance(one, Mapping) for part in one.values()]
    return {channel for channel in [*named, *parts] if isinstance(channel, str)}
