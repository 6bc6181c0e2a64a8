"""What people type who come from another library, and what it is called here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

# A word, in lower case with underscores, to our keys; ``*`` is the name of any entry.
KEYS: dict[str, tuple[str, ...]] = {
    "lr": ("agent.learning_rate",),
    "learning_rate": ("agent.learning_rate",),
    "gamma": ("agent.discount", "credit.*.discount"),
    "discount": ("agent.discount", "credit.*.discount"),
    "discount_factor": ("agent.discount", "credit.*.discount"),
    "lam": ("credit.*.gae_lambda", "agent.trace_decay"),
    "lambda": ("credit.*.gae_lambda", "agent.trace_decay"),
    "q_lambda": ("agent.trace_decay",),
    "gae_lambda": ("credit.*.gae_lambda",),
    "num_envs": ("data.batch",),
    "n_envs": ("data.batch",),
    "num_workers": ("data.batch",),
    "batch_size": ("agent.batch_size", "data.batch", "agent.minibatches"),
    "minibatch_size": ("agent.minibatches",),
    "num_minibatches": ("agent.minibatches",),
    "n_minibatches": ("agent.minibatches",),
    "n_steps": ("data.length", "agent.n_step"),
    "num_steps": ("data.length",),
    "unroll_length": ("data.length",),
    "rollout_length": ("data.length",),
    "rollout_steps": ("data.length",),
    "train_freq": ("data.length",),
    "total_steps": ("iterations",),
    "total_timesteps": ("iterations",),
    "num_timesteps": ("iterations",),
    "timesteps": ("iterations",),
    "max_steps": ("iterations",),
    "steps": ("iterations",),
    "num_updates": ("iterations",),
    "n_epochs": ("agent.epochs",),
    "num_epochs": ("agent.epochs",),
    "update_epochs": ("agent.epochs",),
    "gradient_steps": ("agent.updates",),
    "ent_coef": ("agent.entropy_weight",),
    "entropy_coef": ("agent.entropy_weight",),
    "entropy_cost": ("agent.entropy_weight",),
    "vf_coef": ("agent.value_weight",),
    "value_coef": ("agent.value_weight",),
    "value_loss_coef": ("agent.value_weight",),
    "clip_range": ("agent.clip",),
    "clip_coef": ("agent.clip",),
    "clip_eps": ("agent.clip",),
    "clip_epsilon": ("agent.clip",),
    "clip_range_vf": ("agent.value_clip",),
    "pop_art": ("agent.popart",),
    "use_popart": ("agent.popart",),
    "value_norm": ("agent.popart",),
    "use_valuenorm": ("agent.popart",),
    "normalize_value": ("agent.popart",),
    "max_grad_norm": ("agent.max_gradient_norm",),
    "grad_clip": ("agent.max_gradient_norm",),
    "adam_eps": ("agent.adam_epsilon",),
    "optimizer": ("agent.optimiser",),
    "optim": ("agent.optimiser",),
    "anneal": ("agent.schedule",),
    "anneal_lr": ("agent.schedule",),
    "lr_schedule": ("agent.schedule",),
    "learning_rate_schedule": ("agent.schedule",),
    "warmup_ratio": ("agent.warmup",),
    "norm_adv": ("agent.whiten",),
    "normalize_advantage": ("agent.whiten",),
    "tau": ("agent.target_rate", "agent.temperature"),
    "munchausen_alpha": ("agent.munchausen",),
    "munchausen_tau": ("agent.temperature",),
    "entropy_temperature": ("agent.temperature",),
    "polyak": ("agent.target_rate",),
    "target_update_interval": ("agent.target_period",),
    "buffer_size": ("agent.capacity",),
    "replay_size": ("agent.capacity",),
    "prioritized": ("agent.prioritised",),
    "exploration_fraction": ("agent.epsilon_steps",),
    "exploration_final_eps": ("agent.epsilon_end",),
    "eps_start": ("agent.epsilon_start",),
    "eps_end": ("agent.epsilon_end",),
    "eps_decay": ("agent.epsilon_steps",),
    "hidden_sizes": ("network.hidden",),
    "hidden_size": ("network.hidden",),
    "hidden_dim": ("network.hidden",),
    "net_arch": ("network.hidden",),
    "activation_fn": ("network.activation",),
    "env": ("environment.kind", "environment.environment_id", "environment.name", "environment.task"),
    "env_id": ("environment.environment_id", "environment.name", "environment.task", "environment.kind"),
    "env_name": ("environment.environment_id", "environment.name", "environment.task", "environment.kind"),
    "env_kwargs": ("environment.make_kwargs",),
    "max_episode_steps": ("environment.max_episode_steps", "environment.time_limit"),
    "horizon": ("environment.time_limit",),
    "group": ("data.group_size",),
    "num_generations": ("data.group_size",),
    "eval_episodes": ("evaluators.*.count",),
    "n_eval_episodes": ("evaluators.*.count",),
    "eval_freq": ("evaluate_every",),
    "eval_interval": ("evaluate_every",),
    "algo": ("agent.family",),
    "algorithm": ("agent.family",),
    "num_seeds": ("seeds",),
}
# A word to the options of a command.
OPTIONS: dict[str, tuple[str, ...]] = {
    "seed": ("--seeds", "--first-seed"),
    "num_seeds": ("--seeds",),
    "n_seeds": ("--seeds",),
    "log_dir": ("--runs",),
    "logdir": ("--runs",),
    "output": ("--runs", "--out"),
    "overwrite": ("--fresh",),
    "restart": ("--fresh",),
    "plot": ("--figure",),
}


def _word(text: str) -> str:
    return text.lower().replace("-", "_")


def meant(key: str, known: Sequence[str]) -> list[str]:
    """Which of the ``known`` dotted keys the last part of ``key`` stands for in other libraries."""
    patterns = KEYS.get(_word(key.rsplit(".", 1)[-1]), ())
    return [name for pattern in patterns for name in known if fnmatchcase(name, pattern)]


def meant_options(argument: str, options: Iterable[str], known: Sequence[str], prefix: str) -> list[str]:
    """What an ``argument`` that is no option is meant as: one of ``options``, or ``prefix`` with a ``known`` key."""
    if not argument.startswith("-"):
        return []
    word = _word(argument.partition("=")[0].lstrip("-"))
    found = [option for option in OPTIONS.get(word, ()) if option in list(options)]
    same = [key for key in known if word in (_word(key), _word(key.rsplit(".", 1)[-1]))]
    return [*found, *(f"{prefix}{key}" for key in meant(word, known) or same)]
