"""What is run: configurations by name, drivers, results, statistics and figures."""

from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _refuse_shadowed_packages(names: tuple[str, ...] = ("agents", "envs", "rewards")) -> None:
    """Stops where a package of another project would be imported in place of one of this repository.

    The names are generic: the distribution openai-agents, for one, installs ``agents`` too.

    Raises:
      ImportError: if one of ``names`` is found outside this repository, or not at all.
    """
    for name in names:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        expected = ROOT / name / "__init__.py"
        if found != expected:
            raise ImportError(
                f"package {name!r} is found at {found or 'no place'}, expected {expected}: run from {ROOT}, "
                f"with its own virtual environment, and with no other package called {name!r} in it "
                "(the distribution openai-agents installs 'agents')"
            )


_refuse_shadowed_packages()
