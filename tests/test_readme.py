"""The README's example runs as written, and learns."""

import re
from pathlib import Path

import numpy as np
import pytest

from keras_rtrl._keras import LEGACY, keras

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.skipif(LEGACY, reason="the example is written for Keras 3")
def test_example_runs_and_learns():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(512, 200, 3)).astype("float32")
    x[:, :, 1] = np.arange(200) == 0  # marks the first step of each sequence
    x[:, :, 2] = np.arange(200) >= 180  # asks, during the last 20 steps,
    names = {"x": x, "y": x[:, :1, :1] * x[:, :, 2:]}  # for the number that came with the first
    exec(example, names)
    losses = names["model"].history.history["loss"]
    assert losses[-1] < 0.03
    assert losses[0] > 0.09  # that of answering 0 is 0.1


def test_files_it_names_exist():
    for path in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / path).exists(), path
