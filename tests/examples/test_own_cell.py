"""The cell in one file is exact."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.own_cell import SlowCell  # noqa: E402
from keras_rtrl.testing import check_rtrl_cell  # noqa: E402


def test_cell_is_exact():
    assert "SlowCell" in str(check_rtrl_cell(SlowCell(2)))
