"""Cases of the benchmark that time where a reward comes from: curiosities, and an annotator over the network."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from experiments.annotation.chat_endpoint import MODEL, URL
from experiments.assembly.build import build_environment
from experiments.assembly.members import Member
from experiments.benchmarks.sides import Chunks, Options, loaded, scan_driver, slots_of
from experiments.benchmarks.timing import Comparison, Sample, Side, compared, in_turns
from experiments.configs import oni_minigrid
from experiments.configs._common import CURIOSITIES
from experiments.errors import UserError
from experiments.training.host_driver import HostDriver

MAZE_SEEDS = 5
# The time that a language model takes for a reply.
REPLY_SECONDS = 1.0
UNIT = "environment steps/s"


def curiosity(options: Options) -> list[Comparison]:
    """Every curiosity in the maze beside plain PPO, BYOL-Hindsight beside RND, and 5 vmapped seeds beside one.

    Whole loops are timed: environments, policy, intrinsic reward and learning. Hindsight and RND have encoders of the
    same size and take equally many optimiser steps over equally many environment steps.
    """
    tiny: dict[str, Any] = {"data__batch": 8, "data__length": 16} if options.tiny else {}
    iterations = 1 if options.tiny else 4
    methods = ("hindsight", "rnd") if options.tiny else tuple(CURIOSITIES)
    sides: dict[str, Side] = {}
    for method in ("ppo", *methods):
        config = loaded(f"curiosity_maze:{method}", **tiny)
        sides[method] = Chunks(scan_driver(config), iterations, slots_of(config))
    # The one that compiles faster, where the pieces are too small to measure anyway.
    several = "rnd" if options.tiny else "hindsight"
    config = loaded(f"curiosity_maze:{several}", **tiny)
    sides["seeds"] = Chunks(scan_driver(config, MAZE_SEEDS), iterations, slots_of(config))
    samples = in_turns(sides, options.repeats, options.say)
    return [
        *(_against_ppo(samples, "curiosity_maze", method, method, "ppo") for method in methods),
        compared(
            samples,
            "hindsight",
            "rnd",
            name="hindsight_to_rnd",
            ours="curiosity_maze:hindsight",
            reference="curiosity_maze:rnd",
            unit=UNIT,
            target=0.25,
        ),
        compared(
            samples,
            "seeds",
            several,
            name="seeds",
            ours=f"curiosity_maze:{several}, {MAZE_SEEDS} seeds vmapped",
            reference="one seed",
            unit=UNIT,
        ),
    ]


def minigrid(options: Options) -> list[Comparison]:
    """Every curiosity and every model of language feedback on MiniGrid beside plain PPO there.

    Whole loops on host environments of KeyCorridorS3R3 are timed; the labels come at once, from a script.
    """
    tiny: dict[str, Any] = {"data__batch": 2, "data__length": 8} if options.tiny else {}
    iterations = 1 if options.tiny else 4
    models = ("ranking",) if options.tiny else tuple(oni_minigrid.MODELS)
    methods = {
        "curiosity_minigrid": ("ppo", "episodic") if options.tiny else ("ppo", *CURIOSITIES),
        "oni_minigrid": ("ppo", *(model for model in models if model != "ppo")),
    }
    sides: dict[str, Side] = {}
    with contextlib.ExitStack() as stack:
        for experiment, variants in methods.items():
            for variant in variants:
                config = loaded(f"{experiment}:{variant}", **tiny)
                driver = HostDriver(config, build_environment(config), Member(0, ""))
                stack.callback(driver.close)
                sides[f"{experiment}:{variant}"] = Chunks(driver, iterations, slots_of(config))
        samples = in_turns(sides, options.repeats, options.say)
    return [
        _against_ppo(samples, experiment, variant, f"{experiment}:{variant}", f"{experiment}:ppo")
        for experiment, (_, *variants) in methods.items()
        for variant in variants
    ]


def _against_ppo(samples: dict[str, list[Sample]], experiment: str, method: str, side: str, ppo: str) -> Comparison:
    """The cost of ``method`` of ``experiment``: its side beside the one without an intrinsic reward."""
    return compared(
        samples,
        side,
        ppo,
        name=method,
        ours=f"{experiment}:{method}",
        reference=f"{experiment}:ppo, no intrinsic reward",
        unit=UNIT,
    )


def annotator(options: Options) -> list[Comparison]:
    """``oni_minigrid`` with an annotator that takes a second per reply beside one that answers at once.

    The slow annotator is a server in a process of its own that always has another request to answer; on the other side
    a script answers at once. Both sides learn from at most one label per update, with one gradient step, so that the
    ratio shows whether the learner waits.
    """
    tiny: dict[str, Any] = {"data__batch": 2, "data__length": 8} if options.tiny else {}
    iterations = 1 if options.tiny else 4
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(slow_endpoint(REPLY_SECONDS))
        stack.enter_context(mock.patch.dict(os.environ, {URL: address, MODEL: "stand-in"}))
        sides: dict[str, Side] = {}
        # Pairs never run out, and one a request keeps the annotator busy.
        asked = {"annotator__max_requests": 1_000_000, "annotator__batch": 1}
        for name, variant, settings in (("asked", "ranking,http", asked), ("scripted", "ranking", {})):
            settings = settings | tiny | {"annotator__labels": 1}
            config = loaded(f"oni_minigrid:{variant}", rewards__language__updates=1, **settings)
            driver = HostDriver(config, build_environment(config), Member(0, ""))
            stack.callback(driver.close)
            sides[name] = Chunks(driver, iterations, slots_of(config))
        samples = in_turns(sides, options.repeats, options.say)
    return [
        compared(
            samples,
            "asked",
            "scripted",
            name="waiting",
            ours=f"oni_minigrid:ranking, an annotator that takes {REPLY_SECONDS:g} s per reply",
            reference="the same, a script that answers at once",
            unit=UNIT,
            target=0.95,
        )
    ]


_ENDPOINT = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(float(sys.argv[1]))
        said = json.dumps({"choices": [{"message": {"content": "1: 1"}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *arguments):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def slow_endpoint(seconds: float) -> Iterator[str]:
    """The base URL of an annotator on this machine that likes every message, ``seconds`` after it was asked.

    Raises:
      UserError: if it does not start.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _ENDPOINT, str(seconds)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            port = (process.stdout.readline() if process.stdout else "").strip()
            if not port:
                raise UserError("the stand-in for an annotator did not start: expected a free port on 127.0.0.1")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
