"""Installs sagax: four top-level packages, always editable and into the project's own virtual environment.

The package names are generic (``agents`` is also what the distribution openai-agents installs), so that sagax is never
published; ``experiments`` refuses to start where one of them resolves outside this folder.
"""

from setuptools import find_packages, setup

PACKAGES = ("agents", "envs", "rewards", "experiments")

CORE = [
    "jax>=0.10.2",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "chex>=0.1.92",
    "gymnasium[classic-control]>=1.4",
    "ml-collections>=1.1",
    "numpy>=2.2",
    "scipy>=1.15",
    "tensorboardX>=2.6.5",
    "rich>=14",
    "matplotlib>=3.10",
]

EXTRAS = {
    "minigrid": ["minigrid"],
    "fast": ["envpool"],
    # Under the GPL, and therefore never in the core.
    "atari": ["ale-py", "opencv-python-headless"],
    "box2d": ["gymnasium[box2d]>=1.4"],
    "mujoco": ["gymnasium[mujoco]>=1.4"],
    # Suites of environments in JAX.
    "gymnax": ["gymnax", "six"],  # gymnax 0.0.9 imports six and does not declare it
    "craftax": ["craftax"],
    "jumanji": ["jumanji"],
    "xminigrid": ["xminigrid"],
    # Both are large, and navix needs a nightly build of TensorFlow Probability.
    "navix": ["navix<1"],
    "playground": ["playground"],
    # Tools that researchers bring along.
    "wandb": ["wandb>=0.31"],
    # The small MLflow, and what its store in a file needs.
    "mlflow": ["mlflow-skinny>=3.17", "sqlalchemy", "alembic"],
    "sweep": ["submitit", "ray"],
    "optuna": ["optuna>=5"],
    "hub": ["safetensors", "huggingface_hub"],
    "video": ["opencv-python-headless"],
    # A language model behind HTTP as annotator.
    "annotator": ["httpx2", "tenacity"],
    "notebooks": ["nbclient", "nbformat", "jupytext", "ipykernel"],
    "docs": ["mkdocs-material", "mkdocstrings[python]"],
    "gpu": ["jax[cuda13]>=0.10.2"],
    "tpu": ["jax[tpu]>=0.10.2"],
}
# The tests use every extra that is small and runs on a CPU, so that none of them is skipped for a missing package.
OTHER_EXTRAS = ("docs", "gpu", "navix", "playground", "tpu")
CPU_EXTRAS = [package for name, packages in EXTRAS.items() if name not in OTHER_EXTRAS for package in packages]
EXTRAS["test"] = ["pytest", "pytest-cov", "pytest-xdist", "hypothesis", "ruff", "mypy", *CPU_EXTRAS]

setup(
    name="sagax",
    version="0.2.0",
    description="Sample-efficient agentic reinforcement learning in JAX: reward channels as composable pure functions",
    license="Apache-2.0",
    python_requires=">=3.11",
    entry_points={"console_scripts": ["sagax = experiments.__main__:main"]},
    packages=find_packages(include=[pattern for name in PACKAGES for pattern in (name, f"{name}.*")]),
    install_requires=CORE,
    extras_require=EXTRAS,
    classifiers=["Private :: Do Not Upload"],
)
