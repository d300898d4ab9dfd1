"""The report of runs whose figures are known."""

import contextlib
import math

import matplotlib.colors
import matplotlib.figure
import numpy as np
import pytest

from keras_rtrl.train import report
from keras_rtrl.train.study import FinishedRun, Study


def made(score, seed=1, name="mean_return", **columns):
    """A run of 20 rows with one score."""
    columns = {"seconds": "60", **columns}
    rows = [
        {"frames": str(50 * i), "updates": str(i), name: str(score), **columns, "seconds": str(6 * i)}
        for i in range(1, 21)
    ]
    return FinishedRun(seed, 1000, 7, rows)


def cells(text):
    """The rows of a table, dicts by column."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert all(len(line) == len(lines[0]) for line in lines)
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_table_compares_with_the_first_condition():
    tasks = {"a": [[1, 2, 3, 4], [3, 4, 5, 6], [9, 9]], "b": [[10, 20, 30], [0, 1, 2], [1, 1]]}
    results = {
        task: {
            condition: [made(score, seed) for seed, score in enumerate(scores)]
            for condition, scores in zip(("RTRL", "GRU", "none"), kinds, strict=True)
        }
        for task, kinds in tasks.items()
    }
    rows = cells(report.table(results))
    assert list(rows[0]) == [
        "task", "condition", "seeds", "frames", "mean return, last tenth", "better than RTRL", "recurrent parameters",
        "wall time",
    ]  # fmt: skip
    better = {(row["task"], row["condition"]): row["better than RTRL"].split(" ")[0] for row in rows}
    # 14 of 16 pairs are won on a, ties by half
    assert better == {
        ("a", "RTRL"): "", ("a", "GRU"): "0.88", ("a", "none"): "", ("b", "RTRL"): "", ("b", "GRU"): "0.00",
        ("b", "none"): "", ("2 tasks", "GRU"): "0.44",
    }  # fmt: skip
    scores = [row["mean return, last tenth"] for row in rows]
    assert scores[0].startswith("2.5 [")
    assert scores[2] == "9"  # of two seeds no interval
    assert rows[0]["wall time"] == "2.0 min"


def test_a_smaller_error_is_better():
    errors = {"name": "return_error", "mean_predictor_error": "9", "floor_error": "0.5"}
    results = {
        "a": {
            "RTRL": [made(score, **errors) for score in (1, 2, 3)],
            "instant": [made(score, **errors) for score in (4, 5, 6)],
        }
    }
    rows = cells(report.table(results))
    assert [row["better than RTRL"] for row in rows] == ["", "0.00 [0.00, 0.00]", "", ""]
    assert [row["return error, last tenth"].split(" ")[0] for row in rows] == ["2", "5", "9", "0.5"]


def test_score_is_of_the_last_tenth():
    rows = [{"frames": str(10 * i), "mean_return": "" if i < 3 else str(i)} for i in range(1, 41)]
    assert report.score(rows, "mean_return") == np.mean([37, 38, 39, 40])
    assert math.isnan(report.score(rows[:2], "mean_return"))


@pytest.mark.parametrize(("length", "streams", "rows_every"), [(52, 16, 4096), (1001, 16, 4096), (43, 4, 8000)])
def test_episodes_of_one_length_have_it_though_all_end_at_once(length, streams, rows_every):
    counted = [(frames, streams * (frames // streams // length)) for frames in range(rows_every, 320_000, rows_every)]
    rows = [{"frames": str(frames), "games": str(games)} for frames, games in counted]
    assert report.episode_frames(rows) == pytest.approx(length, rel=0.03)


def test_a_run_without_episodes_has_no_length():
    for rows in ([{"frames": "10"}] * 3, [{"frames": "10", "games": ""}] * 3, [{"frames": "10", "games": "3"}] * 3):
        assert math.isnan(report.episode_frames(rows))


def test_both_figures_are_drawn_and_times_are_processor_times_if_all_runs_have_them(tmp_path):
    with_time = {"a": {"x": [made(1, processor_seconds="30")], "y": [made(1, processor_seconds="30")]}}
    report.write(study := Study(tmp_path), with_time, report.table(with_time), "tiny")
    assert "| 2.0 min | 0.5 min |" in (tmp_path / "table.md").read_text()
    for path in (study.curves, study.curves_time):
        with open(path, "rb") as file:
            assert file.read(4) == b"\x89PNG"
    assert report.time_column(with_time) == "processor_seconds"
    assert report.time_column({"a": {**with_time["a"], "z": [made(1)]}}) == "seconds"


def test_no_two_of_many_conditions_look_the_same(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *given, **named: figures.append(self))
    results = {"a": {f"condition {i}": [made(i)] for i in range(27)}}
    with contextlib.suppress(FileNotFoundError):  # nothing is saved
        report.write(Study(tmp_path), results, report.table(results), "tiny")
    lines = figures[0].axes[0].get_lines()
    looks = {(matplotlib.colors.to_rgba(line.get_color()), line.get_linestyle()) for line in lines}
    assert len(looks) == len(lines) == 27
