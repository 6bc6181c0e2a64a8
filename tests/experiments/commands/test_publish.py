"""Runs as folders of Hugging Face, and back; folders that are something else."""

import json
import shutil
import struct
import sys

import jax
import numpy as np
import pytest
import yaml

from experiments.api import load, restore, train
from experiments.commands import evaluate, publish, ratings, watch
from experiments.disk import read_json, write_json_atomic
from experiments.errors import UserError
from experiments.rows import reading
from experiments.training import published
from experiments.training.restored import evaluate_run


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pure"
    train(load("ppo_cartpole:native,smoke", {"iterations": 2, "evaluators.episodes.count": 8}), folder, seeds=2)
    return folder


@pytest.fixture(scope="module")
def made(pure):
    assert publish.main([str(pure), f"--out={pure.parent / 'deep' / 'model'}"]) == 0
    return pure.parent / "deep" / "model"


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def header_of(path):
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size])


def test_a_published_folder_holds_weights_configuration_rows_and_a_card(pure, made):
    names = ["README.md", "config.json", "environment.json", "metrics.jsonl", "model.safetensors"]
    assert sorted(path.name for path in made.iterdir()) == names
    assert [path.name for path in made.parent.iterdir()] == ["model"]
    assert (made / "config.json").read_bytes() == (pure / "config.json").read_bytes()
    # Plain safetensors: any reader finds the arrays under flat names.
    header = header_of(made / "model.safetensors")
    metadata = header.pop("__metadata__")
    assert json.loads(metadata["iterations"]) == {"0": 2, "1": 2} and metadata["format"] == published.FORMAT
    expected = published.flat(restore(pure, seed=1).params)
    assert {name for name in header if name.startswith("seed_1/")} == {f"seed_1/{name}" for name in expected}
    assert all(header[f"seed_1/{name}"]["shape"] == list(leaf.shape) for name, leaf in expected.items())


def test_the_card_has_the_front_matter_and_the_numbers_of_the_rows(pure, made):
    _, front, body = (made / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["tags"][:2] == ["reinforcement-learning", "sagax"] and front["library_name"] == "sagax"
    [entry] = front["model-index"]
    [result] = entry["results"]
    assert (entry["name"], result["dataset"]["name"]) == ("model", "CartPole-v1")
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    rows = reading.read_rows(pure / "metrics.jsonl")
    # The interquartile mean of two seeds is their mean.
    assert values["return"] == pytest.approx(np.mean([row["return"] for row in rows]))
    assert not any(name.startswith(("train/", "agent/", "time/")) for name in values)
    assert "seed 0 after iteration 2" in body and "ppo_cartpole" in body and "restore(" in body


def test_what_comes_back_is_what_was_trained(pure, made, capsys):
    for seed in (0, 1):
        before, after = restore(pure, seed=seed), restore(made, seed=seed)
        jax.tree.map(np.testing.assert_array_equal, before.params, after.params)
        assert jax.tree.structure(before.params) == jax.tree.structure(after.params) and after.iteration == 2
        observations = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
        assert before.act(observations)[0].tolist() == after.act(observations)[0].tolist()
    capsys.readouterr()
    assert evaluate.main([str(made), "--json", "--checkpoint=2"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == evaluate_run(pure)
    assert watch.main([str(made), f"--video={made.parent.parent / 'film.gif'}", "--steps=3"]) == 0
    # A published folder is published again, the same.
    again = made.parent.parent / "again" / "model"
    assert publish.main([str(made), f"--out={again}"]) == 0
    assert (again / "README.md").read_bytes() == (made / "README.md").read_bytes()
    assert header_of(again / "model.safetensors") == header_of(made / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights(again), weights(made))


def test_numbers_without_an_axis_come_back(tmp_path):
    for name in ("stepmix_tabular:smoke", "ofs_threshold:smoke"):
        folder, out = tmp_path / name / "run", tmp_path / name / "model"
        train(load(name, {"iterations": 2}), folder)
        assert publish.main([str(folder), f"--out={out}"]) == 0
        jax.tree.map(np.testing.assert_array_equal, restore(folder).params, restore(out).params)


def test_a_run_on_host_environments_has_a_checkpoint_per_seed(tmp_path):
    folder, out = tmp_path / "host", tmp_path / "model"
    changes = {"iterations": 2, "evaluators.episodes.count": 4, "evaluators.episodes.cut": 20, "network.hidden": (8,)}
    train(load("ppo_cartpole:smoke", changes), folder, seeds=2)
    assert publish.main([str(folder), f"--out={out}"]) == 0
    for seed in (0, 1):
        jax.tree.map(np.testing.assert_array_equal, restore(folder, seed=seed).params, restore(out, seed=seed).params)
    assert [(row["seed"], row["iteration"]) for row in evaluate_run(out)] == [
        (seed, restore(folder, seed=seed).iteration) for seed in (0, 1)
    ]


def weights(folder):
    return published._safetensors().numpy.load_file(folder / "model.safetensors")


def rewrite(folder, tensors, **changes):
    metadata = header_of(folder / "model.safetensors")["__metadata__"] | changes
    published._safetensors().numpy.save_file(tensors, folder / "model.safetensors", metadata)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def no_safetensors(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04 a pickle or something else")


def empty_file(folder):
    (folder / "model.safetensors").write_bytes(b"")


def other_shape(folder):
    tensors = weights(folder)
    name = next(name for name in sorted(tensors) if tensors[name].ndim == 2)
    rewrite(folder, tensors | {name: tensors[name][:-1]})


def other_type(folder):
    tensors = weights(folder)
    name = min(tensors)
    rewrite(folder, tensors | {name: tensors[name].astype(np.float16)})


def lacking(folder):
    tensors = weights(folder)
    del tensors[min(tensors)]
    rewrite(folder, tensors)


def foreign(folder):
    rewrite(folder, weights(folder) | {"lm_head.weight": np.zeros(2, np.float32)})


def surplus(folder):
    rewrite(folder, weights(folder) | {"seed_0/extra": np.zeros(2, np.float32)})


def other_format(folder):
    rewrite(folder, weights(folder), format="pt")


def odd_iterations(folder):
    rewrite(folder, weights(folder), iterations='{"0": "two"}')


def one_iteration(folder):
    rewrite(folder, weights(folder), iterations='{"0": 2}')


def other_configuration(folder):
    described = read_json(folder / "config.json")
    described["config"]["agent"]["learning_rate"] = 0.5
    write_json_atomic(folder / "config.json", described)


def other_config_file(folder):
    write_json_atomic(folder / "config.json", {"architectures": ["BertModel"], "hidden_size": 768})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "cannot be read as safetensors"),
        (no_safetensors, "cannot be read as safetensors"),
        (empty_file, "cannot be read as safetensors"),
        (other_shape, "expected float32["),
        (other_type, "is float16["),
        (lacking, "lacks the array 'seed_0/"),
        (foreign, "holds 'lm_head.weight', which is of no seed"),
        (surplus, "holds 'seed_0/extra', which the agent of its configuration has not"),
        (other_format, "holds no agents of sagax"),
        (odd_iterations, "holds no agents of sagax"),
        (one_iteration, "has no iteration of seed 1"),
        (other_configuration, "is of another configuration than"),
        (other_config_file, "describes no run"),
    ],
)
def test_a_folder_that_is_something_else_is_one_message(damage, words, copy, capsys):
    damage(copy)
    for main in (evaluate.main, watch.main):
        assert main([str(copy)]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.splitlines()) == 1
    with pytest.raises(UserError):
        restore(copy)


def test_what_it_does_not_hold_is_refused(pure, made, tmp_path, capsys):
    assert evaluate.main([str(made), "--checkpoint=1"]) == 2
    assert "--checkpoint=1: " in (error := capsys.readouterr().err) and "holds iteration 2 alone" in error
    assert ratings.main([str(made), f"--out={tmp_path / 'rows.jsonl'}"]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert publish.main([str(pure), f"--out={tmp_path / 'full'}"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert publish.main([str(pure), f"--out={tmp_path / 'new'}", "--checkpoint=7"]) == 2
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "file").read_text() == "mine"


def test_without_the_extra_one_message_names_it(pure, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    assert publish.main([str(pure), f"--out={tmp_path / 'new'}"]) == 2
    assert "pip install -e '.[hub]'" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert evaluate.main([str(made)]) == 2
    assert "pip install -e '.[hub]'" in capsys.readouterr().err


class Hub:
    """The client of the hub, without a network."""

    def __init__(self, error=None):
        self.calls, self._error = [], error

    def create_repo(self, repository, exist_ok):
        self.calls.append((repository, exist_ok))

    def upload_folder(self, *, repo_id, folder_path):
        if self._error:
            raise self._error
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
        return "https://example.org/me/model"


def test_uploading_needs_a_login_before_any_work(pure, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    out = tmp_path / "new"
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    for name, words in (("me/model", "there is no login"), ("model", "expected USER/NAME"), ("../x/y", "USER/NAME")):
        assert publish.main([str(pure), f"--out={out}", f"--upload={name}"]) == 2
        assert words in capsys.readouterr().err and not out.exists()
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert publish.main([str(pure), f"--out={out}", "--upload=me/model"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "https://example.org/me/model"
    assert hub.calls == [("me/model", True), ("me/model", sorted(path.name for path in out.iterdir()))]
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(ConnectionError("Bearer hf_secret")))
    assert publish.main([str(pure), f"--out={tmp_path / 'other'}", "--upload=me/model"]) == 2
    error = capsys.readouterr().err
    assert "the hub did not take it (ConnectionError)" in error and "hf_secret" not in error
