"""The guide's code runs as it stands, from its first line to the saved model."""

import re
from pathlib import Path

import numpy as np
import pytest

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "write_your_own_cell.md").read_text()


def words(text):
    """The text with all white space alike, and no number of many digits."""
    return re.sub(r"-?\d+\.\d{3,}(e[-+]\d+)?", "#", " ".join(text.split()))


@pytest.fixture(scope="module")
def names():
    found = {"__name__": "guide"}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(block, found)
    return found


def test_the_verdict_on_the_wrong_cell_is_the_one_shown(names):
    assert "It lacks the factor c['rate']" in names["verdict"]
    assert words(names["verdict"]) in words(GUIDE)


def test_the_right_cell_is_proved(names):
    assert names["report"].startswith("FastLeakyCell: exact RTRL")
    assert "Derivatives: closed forms" in names["report"]


def test_the_model_learns(names):
    losses = names["history"].history["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_the_saved_model_is_the_same(names):
    model, again = names["model"], names["again"]
    cells = [layer.cell for layer in again.layers if hasattr(layer, "cell")]
    assert [type(cell) for cell in cells] == [names["FastLeakyCell"]]
    assert cells[0].get_config() == {"units": 16, "max_tau": 100.0}
    for got, want in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)
