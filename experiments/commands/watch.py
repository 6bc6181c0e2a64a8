"""``sagax watch RUN [--video=FILE.gif]``: see a trained policy act.

RUN is a run folder, or ``NAME[:variant]`` under ``--runs``. Environments that can be drawn as text are shown in the
terminal: grids, MiniGrid, and gymnasium's environments with the render mode ``ansi``. ``--video`` writes a film of
those that can be drawn as images: grids, gymnasium's with ``rgb_array``, and most of the suites in JAX. The episodes
are drawn as those of ``sagax evaluate``: none of them trained or chose the checkpoint.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.assembly.build import TEST_SEED
from experiments.assembly.cameras import Camera, film_length, require_drawable
from experiments.commands.command_parser import CommandParser
from experiments.commands.options import add_runs_option
from experiments.errors import UserError, command
from experiments.evaluators.base import evaluator_key
from experiments.training.compilation_cache import enable_compilation_cache
from experiments.training.keys import evaluation_key
from experiments.training.restored import find_folder, restored_member
from experiments.training.videos import FRAMES_PER_SECOND, captions, require_video, summary, write_video

CLEAR = "\x1b[2J\x1b[H"
STEPS_PER_SECOND = 8.0


def parser() -> CommandParser:
    made = CommandParser(
        prog="sagax watch",
        description="See a trained policy act: in the terminal where its environment can be drawn as text, or as a "
        "film.",
    )
    made.add_argument("run", metavar="RUN", help="a run folder, or NAME[:variant]")
    add_runs_option(made)
    made.add_argument("--checkpoint", default="best", help="best of all seeds (the default), latest or an iteration")
    made.add_argument("--seed", type=int, help="which seed of the run (default: its first)")
    made.add_argument("--episodes", type=int, default=1, help="how many episodes (default: 1)")
    made.add_argument("--steps", type=int, help="of an episode at most (default: as in the evaluation)")
    acting = made.add_mutually_exclusive_group()
    acting.add_argument("--greedy", action="store_true", default=True, help="act greedily (the default)")
    acting.add_argument("--sampled", action="store_false", dest="greedy", help="sample actions")
    made.add_argument("--video", type=Path, metavar="FILE", help="write a film to a .gif or .mp4 file instead")
    made.add_argument(
        "--fps",
        type=float,
        help=f"frames per second (default: {STEPS_PER_SECOND:g} in the terminal, {FRAMES_PER_SECOND} of a film)",
    )
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Shows a policy.

    Raises:
      UserError: for anything the user can repair.
    """
    arguments = parser().parse_args(argv)
    for name in ("episodes", "steps"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: expected at least 1")
    if arguments.fps is not None and not 0 < arguments.fps <= 1000:
        raise UserError(f"--fps={arguments.fps}: expected above 0 and at most 1000")
    if arguments.video is not None:
        require_video(arguments.video)
    folder = find_folder(arguments.run, arguments.runs)
    enable_compilation_cache()
    found = restored_member(folder, arguments.checkpoint, arguments.seed)
    text = arguments.video is None
    if text:
        try:
            require_drawable(found.source, text=True)
        except UserError as error:
            raise UserError(f"{error}: expected --video=FILE.gif, or an environment that has a text") from error
    length = arguments.steps or film_length(found.config, found.source)
    settings = {"count": arguments.episodes, "length": length, "greedy": arguments.greedy}
    camera = Camera(found.source, found.agent, **settings, text=text)
    key = evaluator_key(evaluation_key(found.member.seed, TEST_SEED), 0)
    episodes = camera.film(found.params, key)
    title = f"{folder}, seed {found.member.seed}, iteration {found.iteration}"
    if not text:
        write_video(arguments.video, episodes, arguments.fps or FRAMES_PER_SECOND)
    for number, episode in enumerate(episodes, 1):
        name = f"episode {number} of {len(episodes)}"
        for frame, caption in zip(episode.frames, captions(episode), strict=True) if text else ():
            # In a file or a pipe the frames stand below each other.
            live = sys.stdout.isatty()
            print(f"{CLEAR if live else ''}{title}, {name}\n{caption}\n{frame}\n", flush=True)
            if live:
                time.sleep(1 / (arguments.fps or STEPS_PER_SECOND))
        print(f"{name}: {summary(episode)}")
    if not text:
        print(arguments.video)
    return 0
