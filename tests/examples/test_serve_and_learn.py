"""Learning where a model is served: what a short run leaves, and a whole one in which only RTRL recovers."""

import csv
import json
import pathlib
import sys

import pytest

from keras_rtrl._keras import LEGACY

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples import serve_and_learn  # noqa: E402

pytestmark = pytest.mark.skipif(LEGACY, reason="once is enough: learners are tested on both Kerases")


def rows(out):
    """Rows of metrics.csv, all numbers, by process."""
    found = {}
    with open(out / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("process"), []).append({name: float(value) for name, value in row.items()})
    return found


def test_a_short_run_leaves_its_files(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--train", "100", "--steps", "150", "--change", "100", "--window", "50", "--out", str(out)]
    serve_and_learn.main(words)
    found = sorted(path.name for path in out.iterdir())
    assert found == ["config.json", "metrics.csv", "rtrl", "served.png", "tbptt"]
    assert {"train": 100, "steps": 150, "change": 100, "seed": 1}.items() <= json.loads(
        (out / "config.json").read_text()
    ).items()
    by = rows(out)
    assert list(by) == ["python", "frozen", "cut", "learning"]
    assert [row["step"] for row in by["python"]] == [50, 100]
    for name in ("frozen", "cut", "learning"):
        assert [row["step"] for row in by[name]] == [50, 100, 150]
        assert all(row["cpu_us"] > 0 and row["wall_us"] > 0 and row["resident_mib"] > 0 for row in by[name])
    assert by["learning"][0]["error"] < by["frozen"][0]["error"]  # the same streams; one of them learns
    assert "resident MiB" in capsys.readouterr().out


@pytest.mark.slow
def test_the_learner_alone_recovers(tmp_path):
    out = tmp_path / "run"
    serve_and_learn.main(["--steps", "5000", "--out", str(out)])
    by = rows(out)
    for name in ("frozen", "cut", "learning"):
        assert next(row["error"] for row in by[name] if row["step"] == 1000) < 0.02
    assert min(row["error"] for row in by["frozen"] if row["step"] > 1000) > 1.5
    assert by["cut"][-1]["error"] > 0.2
    assert by["learning"][-1]["error"] < 0.02
    assert by["learning"][-1]["resident_mib"] - by["learning"][3]["resident_mib"] < 1


def test_a_server_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_and_learn.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match="the server frozen ended with 1"):
        list(serve_and_learn.served("frozen", []))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--steps", "0"], "--steps: must be a whole number of at least 1, got 0"),
        (["--train", "many"], "--train: must be a whole number of at least 1, got many"),
        (["--window", "2.5"], "--window: must be a whole number of at least 1, got 2.5"),
        (["--seed", "-1"], "--seed"),
        (["--change", "10"], "--change: must be at least --window and below --steps, got 10"),
        (["--steps", "1000"], "--change: must be at least --window and below --steps, got 1000"),
        (["--out", "."], "--out must be a folder that does not exist yet"),
    ],
)
def test_bad_arguments(words, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        serve_and_learn.main(words)
    assert error.value.code not in (0, None)
    assert named in capsys.readouterr().err + str(error.value.code)
    assert not list(tmp_path.iterdir())
