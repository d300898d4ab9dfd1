"""The agent in one file: a short run leaves its files, and a whole run learns what truncated BPTT does not."""

import csv
import pathlib
import sys

import pytest

from keras_rtrl._keras import LEGACY

if not LEGACY:
    pytest.skip("TF-Agents runs on tf-keras", allow_module_level=True)

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples import r2ac_tmaze  # noqa: E402


def test_a_short_run_counts_choices_and_leaves_metrics_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(r2ac_tmaze, "ROLLOUTS", 3)
    arguments = ["--corridor", "2", "--streams", "4", "--steps", "200", "--out", str(tmp_path / "run")]
    rows = r2ac_tmaze.main(arguments)
    assert [row["steps"] for row in rows] == [120, 240]
    assert all(0 <= row["right"] <= 1 for row in rows)
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == pytest.approx([row["loss"] for row in rows])
    assert (tmp_path / "run" / "learning_curve.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(("gradient", "low", "high"), [("rtrl", 0.95, 1.0), ("tbptt", 0.0, 0.6)])
def test_the_agent_learns_the_corridor_of_40_steps_by_rtrl_alone(tmp_path, gradient, low, high):
    rows = r2ac_tmaze.main(["--gradient", gradient, "--out", str(tmp_path)])
    assert low <= rows[-1]["right"] <= high
