"""A study's table and settings: what goes in comes out; damaged files are named."""

import gzip
import json
import random
import subprocess
import sys

import pytest

from keras_rtrl._errors import UsageError
from keras_rtrl.train.run_folder import RunFolder
from keras_rtrl.train.study import FinishedRun, Study, finished_run


def made(seed, gradient="rtrl", **columns):
    """A run of two rows, with columns besides those that all have; None is empty."""
    values = {"mean_return": "0.5", "seconds": "1.5", **columns}
    rows = [{"frames": f, "updates": u, **values} for f, u in (("10", "1"), ("20", "2"))]
    settings = {"version": "0.1.0", "preset": "tiny", "settings": [f"ActorCriticNetwork.gradient = '{gradient}'"]}
    return FinishedRun(seed, 20, 7, rows, settings)


def test_runs_come_back_as_they_were_in_whatever_order_they_ended(tmp_path):
    errors = {"return_error": "0.25", "mean_predictor_error": "1e-3", "floor_error": ""}
    runs = {
        ("a", "x", 2): made(2),
        ("a", "x", 10): made(10, loss="3"),
        ("a", "y", 1): made(1, **errors, mean_return=""),
        ("b", "x", 1): made(1, mean_return=""),
    }
    contents = []
    for number, order in enumerate((list(runs), list(reversed(runs)))):
        study = Study(tmp_path / str(number))
        assert study.read() == {}
        for key in order:
            study.add(*key[:2], runs[key])
        contents.append([(tmp_path / str(number) / name).read_bytes() for name in ("runs.csv.gz", "settings.json")])
    assert contents[0] == contents[1]
    read = study.read()
    assert list(read) == list(runs)
    for key, run in read.items():
        assert (run.seed, run.total_frames, run.recurrent_parameters) == (key[2], 20, 7)
        assert run.rows == runs[key].rows


def test_a_run_of_the_same_seed_replaces_the_one_there_and_settings_are_kept_once(tmp_path):
    study = Study(tmp_path)
    for seed in (3, 1, 2):
        study.add("a", "x", made(seed))
    (entry,) = json.loads((tmp_path / "settings.json").read_text())
    assert entry == {"task": "a", "condition": "x", "seeds": [1, 2, 3], **made(1).settings}
    study.add("a", "x", made(2, "tbptt", mean_return="0.75"))
    entries = json.loads((tmp_path / "settings.json").read_text())
    assert [entry["seeds"] for entry in entries] == [[1, 3], [2]]
    assert "tbptt" in entries[1]["settings"][0]
    assert study.read()["a", "x", 2].rows[0]["mean_return"] == "0.75"
    assert study.read()["a", "x", 1].rows[0]["mean_return"] == "0.5"


ADD = """
import sys
from keras_rtrl.train.study import FinishedRun, Study
begin = int(sys.argv[2])
for seed in range(begin, begin + 15):
    rows = [{"frames": "10", "updates": "1", "mean_return": "0", "seconds": "1"}]
    Study(sys.argv[1]).add("a", "x", FinishedRun(seed, 10, 7, rows, {"settings": []}))
"""


def test_two_processes_lose_no_run_of_each_other(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), str(begin)]) for begin in (0, 15)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert [seed for _, _, seed in Study(tmp_path).read()] == list(range(30))
    assert json.loads((tmp_path / "settings.json").read_text())[0]["seeds"] == list(range(30))


def _repacked(change):
    return lambda content: gzip.compress(change(gzip.decompress(content).decode()).encode())


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda content: b"", "is broken"),
        (lambda content: random.Random(0).randbytes(300), "Not a gzipped file"),
        (lambda content: content[: len(content) // 2], "is broken"),
        (lambda content: bytes(len(content)), "is broken"),
        (lambda content: content[:-8] + bytes(8), "is broken"),
        (_repacked(lambda text: text.splitlines()[0] + "\n"), "has no rows"),
        (_repacked(lambda text: text.replace("task", "place")), "task, condition, seed"),
        (_repacked(lambda text: text.replace("total_frames", "x")), "total_frames"),
        (_repacked(lambda text: text.replace("seconds", "x")), "lacks seconds"),
        (_repacked(lambda text: text.replace("mean_return", "x")), "lacks mean_return"),
        (_repacked(lambda text: text.replace("1.5", "")), "lacks seconds"),
        (_repacked(lambda text: text.replace("a,x,1,", "a,x,one,")), "got seed 'one'"),
        (_repacked(lambda text: text + "a,x\n"), "line 4 has 2 values"),
    ],
)
def test_a_damaged_table_is_named(tmp_path, damage, names):
    study = Study(tmp_path)
    study.add("a", "x", made(1))
    table = tmp_path / "runs.csv.gz"
    table.write_bytes(damage(table.read_bytes()))
    for call in (study.read, lambda: study.add("a", "x", made(2))):
        with pytest.raises(UsageError, match=r"runs\.csv\.gz: ") as error:
            call()
        assert names in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '[{"task": "a", "condition": "x", "seeds": ["1"]}]'])
def test_damaged_settings_are_named_and_the_table_stays(tmp_path, text):
    study = Study(tmp_path)
    study.add("a", "x", made(1))
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError, match=r"settings\.json: "):
        study.add("a", "x", made(2))
    assert list(study.read()) == [("a", "x", 1)]


def test_a_run_without_numbers_for_the_table_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_record(seed=1, total_frames=10)
    with pytest.raises(UsageError, match=r"run\.json: recurrent_parameters must be a whole number, got None"):
        finished_run(folder)
    folder.write_record(recurrent_parameters=7)
    with pytest.raises(UsageError, match=r"metrics\.csv: has no rows"):
        finished_run(folder)
    (tmp_path / "metrics.csv").write_text("frames,updates,mean_return\n10,1,\n")
    (tmp_path / "config.gin").write_text("train.seed = 1\ntrain.frames = 10\n")
    with pytest.raises(UsageError, match=r"metrics\.csv: lacks seconds"):
        finished_run(folder)
    (tmp_path / "metrics.csv").write_text("frames,updates,mean_return,seconds\n10,1,,2\n")
    assert finished_run(folder).settings["settings"] == ["train.frames = 10"]
