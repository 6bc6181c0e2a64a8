"""The README's commands run, and everything that the README and the architecture page name exists."""

import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from agents.base import Agent
from experiments.__main__ import COMMANDS as COMMANDS_OF_SAGAX
from experiments.__main__ import main
from experiments.assembly import registry
from experiments.benchmarks.cases import CASES
from experiments.disk import write_json_atomic
from experiments.errors import UserError
from experiments.rows import figures, reading, run_folders
from experiments.training import sweeps

ROOT = Path(__file__).resolve().parents[1]
README, ARCHITECTURE = ROOT / "README.md", ROOT / "docs" / "architecture.md"
PACKAGES = ("agents", "envs", "experiments", "rewards")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
# Commands that take a name of an experiment, and those that take run folders.
NAMED, FOLDERS = ("run", "show", "summary", "sweep"), ("collect", "evaluate", "publish", "watch")
# Commands that are too slow for a test to run; their options are checked all the same.
TOO_LONG = ("benchmark", "sweep")


def commands(text: str) -> list[list[str]]:
    """The words of every command line in the ``bash`` fences of ``text``."""
    blocks = [body for language, body in FENCE.findall(text) if language == "bash"]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def module_of(words: list[str]) -> str:
    """``run`` of ``sagax run ...``."""
    assert words[0] == "sagax" and len(words) > 1, f"not a command of ours: {words}"
    return words[1]


COMMANDS = commands(README.read_text(encoding="utf-8"))
PYTHON = [words for words in COMMANDS if words[0] != "make"]


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([name, "--help"]) == 0
    return capsys.readouterr().out


def check(words: list[str], help_text: str) -> None:
    """Refuses a command that names an option, an experiment, a variant or a key that does not exist."""
    name, arguments = module_of(words), words[2:]
    options = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    positional = [word for word in arguments if not word.startswith("-")]
    for option in options:
        known = option.startswith((registry.PREFIX, sweeps.PREFIX)) or re.search(
            rf"(?<![\w-]){re.escape(option)}(?![\w-])", help_text
        )
        assert known, f"{name} has no option {option}"
    if name in NAMED:
        loaded = registry.load(positional[0])
        overrides = [word for word in arguments if word.startswith(registry.PREFIX)]
        registry.apply_overrides(loaded.config, registry.parse_overrides(overrides))
    if name in FOLDERS:
        for folder in positional:
            runs, experiment, variant = folder.split("/")
            assert runs == "runs"
            registry.load(f"{experiment}:{variant}")
    if name == "figures":
        figures.experiments_of(positional[0])
    if name == "benchmark":
        unknown_cases = [case for case in positional if case not in CASES]
        assert not unknown_cases, f"no benchmark case {unknown_cases}"


def test_the_readme_has_the_commands():
    targets = {words[1] for words in COMMANDS if words[0] == "make"}
    assert targets == {"run", "test"}
    assert {"list", "show", "run", "sweep", "summary", "figures", "evaluate", "benchmark"} <= set(
        map(module_of, PYTHON)
    )


def test_a_stranger_reads_it_in_five_minutes():
    assert len(README.read_text(encoding="utf-8").split()) <= 700


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "make"], ids=" ".join)
def test_a_make_target_of_the_readme_exists(words):
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("words", PYTHON, ids=lambda words: " ".join(words[1:3]))
def test_a_command_of_the_readme_names_what_exists(words, capsys):
    check(words, help_of(module_of(words), capsys))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sagax run oprl_sokoban --sedes=3", "no option --sedes"),
        ("sagax run oprl_sokobam", "unknown experiment"),
        ("sagax run oprl_sokoban:grop", "unknown variant"),
        ("sagax run oprl_sokoban --config.agent.clipp=1", "agent.clipp"),
        ("sagax collect runs/oprl_sokoban/grop --out=x", "unknown variant"),
        ("sagax benchmark fusde", "no benchmark case"),
        ("pip install sagax", "not a command of ours"),
    ],
)
def test_a_wrong_command_is_found(line, message, capsys):
    words = commands(f"```bash\n{line}\n```")[0]
    with pytest.raises((AssertionError, UserError), match=message):
        check(words, help_of(module_of(words), capsys))


def test_its_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [code] = [body for language, body in FENCE.findall(README.read_text(encoding="utf-8")) if language == "python"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    scope: dict = {}
    # Two iterations in place of twenty.
    exec(compile(code.replace('"iterations": 20', '"iterations": 2'), "README.md", "exec"), scope)
    assert scope["rows"] and int(scope["action"]) in (0, 1)


def test_the_tour_runs(tmp_path, monkeypatch, capsys):
    """Every command of the tour as it is written, on configurations of ``smoke`` size, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in registry.names():
        module, whole = registry.module_of(name), registry.module_of(name).get_config
        small = lambda variant, whole=whole: whole(f"{variant},smoke")  # noqa: E731
        monkeypatch.setattr(module, "get_config", small)
    for words in PYTHON:
        if module_of(words) not in TOO_LONG:
            status = main(words[1:])
            captured = capsys.readouterr()
            assert status == 0, f"{' '.join(words)}\n{captured.out}\n{captured.err}"
    for words in PYTHON:
        for word in words:
            if word.startswith("--out="):
                assert (tmp_path / word.removeprefix("--out=")).stat().st_size > 0


def test_the_tour_loses_no_committed_row(tmp_path, monkeypatch, capsys):
    """The commands that collect, in a copy of the repository whose runs have the tour's three seeds."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    before = {path.name: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    collecting = [words for words in PYTHON if module_of(words) == "collect"]
    assert collecting
    for words in collecting:
        for folder in (Path(word) for word in words[2:] if not word.startswith("-")):
            for file in (run_folders.CONFIG_FILE, run_folders.ENVIRONMENT_FILE):
                write_json_atomic(folder / file, {})
            rows = [{"experiment": folder.parts[1], "variant": folder.parts[2], "seed": seed} for seed in range(3)]
            lines = [reading.encode_line(row | {"env_steps": 1, "success": 0.5}) for row in rows]
            (folder / run_folders.METRICS_FILE).write_bytes(b"".join(lines))
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert {name: (tmp_path / "results" / name).read_bytes() for name in before} == before


def test_run_cards_add_to_committed_files():
    cards = [registry.module_of(name).__doc__ for name in registry.names()]
    writing = [line for card in cards for line in card.splitlines() if re.search(r"sagax \w+ .*--out=", line)]
    assert writing
    for line in writing:
        assert "--append" in line and (ROOT / re.search(r"--out=(\S+)", line)[1]).is_file(), line


def commands_of_cards() -> list[tuple[str, str]]:
    """Experiment and command, of every run card; a placeholder such as METHOD or ``[:dqn]`` stands for a variant."""
    lines = [
        (name, line.strip()) for name in registry.names() for line in registry.module_of(name).__doc__.splitlines()
    ]
    return [(name, line) for name, line in lines if line.startswith("sagax ")]


@pytest.mark.parametrize(("experiment", "line"), commands_of_cards())
def test_a_command_of_a_run_card_has_its_options_and_keys(experiment, line, capsys):
    # What follows many blanks is a remark.
    words = shlex.split(re.split(r" {3,}", line)[0].replace("...", ""))
    name, arguments = module_of(words), words[2:]
    assert name in COMMANDS_OF_SAGAX
    text = help_of(name, capsys)
    for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        known = option.startswith((registry.PREFIX, sweeps.PREFIX)) or f"{option}" in re.findall(r"--[\w-]+", text)
        assert known, f"{name} has no option {option}"
    assert any(experiment in word for word in arguments if not word.startswith("--"))
    keys = {word.partition("=")[0].split(".", 1)[1] for word in arguments if word.startswith(("--config.", "--sweep."))}
    assert keys <= registry.keys(registry.load(experiment).config).keys()


def test_the_experiments_of_the_readme_exist():
    named = re.findall(r"`([a-z]\w*(?::[\w,]+)?)`", README.read_text(encoding="utf-8"))
    known = registry.names()
    experiments = [name for name in named if name.partition(":")[0] in known]
    assert {name.partition(":")[0] for name in experiments} == set(known)
    for name in experiments:
        registry.load(name)


@pytest.mark.parametrize("page", [README, ARCHITECTURE], ids=lambda page: page.name)
def test_links_paths_and_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
    prose = FENCE.sub("", text)
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")] + [ROOT / "pyproject.toml"]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for token in CODE.findall(prose):
        top = re.split(r"[./]", token)[0]
        if re.fullmatch(r"[\w/]+/[\w.]*", token) and top in (*PACKAGES, "tests", "docs") and "NAME" not in token:
            assert (ROOT / token).exists(), f"{page.name} names the path {token}"
        elif re.fullmatch(r"\w+(\.\w+)+", token) and top in PACKAGES:
            assert _resolves(token), f"{page.name} names {token}"
        elif page == ARCHITECTURE and re.fullmatch(r"[A-Za-z]\w{3,}", token):
            assert re.search(rf"\b{token}\b", source), f"{page.name} names {token}, which is nowhere in the code"


def test_the_page_gives_the_contract_of_an_agent_in_full():
    """An agent that is written from the page has to work on every environment."""

    def signatures(text):
        """``init``, ``initial_carry``, ``act`` and ``update`` to what they take."""
        found = re.findall(r"^ *(init|initial_carry|act|update): `*\(([^)]*)\) ->", text, re.MULTILINE)
        return {name: " ".join(taken.split()) for name, taken in found}

    [page] = re.findall(r"^class Agent\(NamedTuple\):\n(.*?)^```", ARCHITECTURE.read_text(), re.MULTILINE | re.DOTALL)
    assert Agent.__doc__ is not None
    documented = signatures(Agent.__doc__)
    assert documented.keys() == {"init", "initial_carry", "act", "update"} and "action=None" in documented["act"]
    page = signatures(page)
    assert page["act"] == documented["act"] and page["initial_carry"] == documented["initial_carry"]


def _resolves(dotted: str) -> bool:
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False
