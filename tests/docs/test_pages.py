"""The code of the pages on starting, on learners and on agents runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

from keras_rtrl._keras import LEGACY

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python(page):
    blocks = re.findall(r"```python\n(.*?)```", DOCS.joinpath(page).read_text(), re.DOTALL)
    assert blocks
    return blocks


def run(page, which=lambda block: True):
    names = {"__name__": page}
    for block in filter(which, python(page)):
        exec(block, names)
    return names


def is_of_agents(block):
    return "step_type" in block


@pytest.mark.skipif(LEGACY, reason="the page is written for Keras 3")
def test_start(tmp_path, monkeypatch):
    import keras

    keras.utils.set_random_seed(0)
    monkeypatch.chdir(tmp_path)  # it saves a model
    names = run("start.md")
    losses = names["history"].history["loss"]
    assert losses[-1] < 0.03 < 0.09 < losses[0]
    assert names["loss"] < 0.03
    shapes = [tuple(names[part].shape) for part in ("state", "S", "r")]
    assert str(shapes).replace("(", "[").replace(")", "]")[1:-1] in DOCS.joinpath("start.md").read_text()
    for got, want in zip(names["again"].get_weights(), names["model"].get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.slow
@pytest.mark.skipif(LEGACY, reason="the page is written for Keras 3")
def test_start_with_the_truncated_gradient():
    import keras

    keras.utils.set_random_seed(0)
    training, *_ = python("start.md")
    names = {}
    exec(training.replace("stateful=True", 'stateful=True, gradient="tbptt"'), names)
    assert names["memory"].gradient == "tbptt"
    assert min(names["history"].history["loss"]) > 0.09


@pytest.mark.skipif(LEGACY, reason="the page is written for Keras 3")
def test_learn_where_you_serve(tmp_path, monkeypatch):
    import keras

    keras.utils.set_random_seed(0)
    monkeypatch.chdir(tmp_path)
    names = run("learn_where_you_serve.md", lambda block: not is_of_agents(block))
    assert names["taught"] < 0.2 < 0.5 < names["untaught"]
    assert names["recovered"] < 0.1 < 2.0 < names["frozen"]
    assert names["on_device"]["applied"]
    info = {name: value.numpy() for name, value in names["again"]["info"]().items()}
    assert info == {"steps": 1_998, "updates": 1_898, "skipped": 0, "held": 0, "frozen": False}


@pytest.mark.skipif(not LEGACY, reason="TF-Agents runs on tf-keras only")
def test_agents_learn_where_they_act(tmp_path, monkeypatch):
    import gin

    from keras_rtrl.train import cli

    monkeypatch.chdir(tmp_path)
    page = DOCS.joinpath("learn_where_you_serve.md").read_text()
    train, export = re.findall(r"^    keras-rtrl (.*)$", page, re.MULTILINE)
    assert cli.main([*train.replace("1000000", "11").split(), "--gin", "train.log_updates = 1"]) == 0
    assert cli.main(export.split()) == 0
    gin.clear_config()  # of that run; the next test makes a network
    names = run("learn_where_you_serve.md", is_of_agents)
    info = {name: value.numpy() for name, value in names["agent"]["info"]().items()}
    assert info == {"steps": 1_100, "updates": 1_000, "skipped": 0, "held": 0, "frozen": False}
    assert set(names["returns"]) == {-1.0, 1.0}


@pytest.mark.skipif(not LEGACY, reason="TF-Agents runs on tf-keras only")
def test_agents():
    names = run("agents.md")
    assert names["agent"].train_step_counter.numpy() == 3
