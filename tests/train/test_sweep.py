"""A sweep: what it leaves, skips, resumes and refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_rtrl.train import cli, metrics
from keras_rtrl.train.study import Study

PRESET = """
environment.name = "CartPole-v1"
ActorCriticNetwork.encoder_units = ()
ActorCriticNetwork.units = 8
train.frames = 400
train.rollout_length = 5
train.optimizer = @Adam
train.learning_rate = 1e-3
train.log_updates = 5
train.return_window = 5
train.checkpoint_minutes = 0.002
sweep.tasks = {"poles 4": ["environment.num_envs = 4"]}
sweep.conditions = {
    "eLSTM, RTRL": ["ActorCriticNetwork.gradient = 'rtrl'"],
    "eLSTM, instant": ["ActorCriticNetwork.gradient = 'instant'"],
}
"""
FILES = {"runs.csv.gz", "settings.json", "table.md", "curves.png", "curves_time.png"}


def write_preset(folder, *lines):
    (folder / "tiny.gin").write_text("\n".join([PRESET, *lines]))


def contents(path):
    return {name: (path / "out" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a whole sweep, two runs of each condition."""
    path = tmp_path_factory.mktemp("sweep")
    write_preset(path)
    assert cli.main(["sweep", str(path / "tiny.gin"), "--seeds", "2", "--jobs", "2", "--out", str(path / "out")]) == 0
    return path


def test_sweep_leaves_one_table_of_all_runs_their_settings_and_a_report(swept):
    out = swept / "out"
    assert {path.name for path in out.iterdir()} == {".runs", *FILES}
    runs = Study(out).read()
    assert list(runs) == [("poles-4", f"elstm-{kind}", seed) for kind in ("instant", "rtrl") for seed in (1, 2)]
    for (_, _, seed), run in runs.items():
        assert (run.seed, run.total_frames) == (seed, 400)
        # eLSTM: F, Z of 7 inputs and 8 + 8 of recurrence and bias each, and the output gate
        assert run.recurrent_parameters > 100
        assert [int(row["updates"]) for row in run.rows] == [5, 10, 15, 20]
        assert list(run.rows[0])[: len(metrics.COLUMNS)] == list(metrics.COLUMNS)
        assert 0 < float(run.rows[0]["processor_seconds"]) < float(run.rows[-1]["processor_seconds"])
    instant, rtrl = json.loads((out / "settings.json").read_text())
    assert (rtrl["task"], rtrl["condition"], rtrl["seeds"]) == ("poles-4", "elstm-rtrl", [1, 2])
    assert rtrl["preset"] == "tiny"
    differ = set(instant["settings"]) ^ set(rtrl["settings"])
    assert differ == {f"ActorCriticNetwork.gradient = '{kind}'" for kind in ("instant", "rtrl")}
    assert not [line for line in rtrl["settings"] if "train.seed" in line]
    assert not [path for path in (out / ".runs").rglob("*") if path.suffix != ".lock" and path.is_file()]
    table = (out / "table.md").read_text().splitlines()
    assert len(table) == 4
    assert "| poles 4 | eLSTM, RTRL | 2 | 400 |" in table[2]
    assert "| wall time | processor time |" in table[0]
    for name in ("curves.png", "curves_time.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_settings_repeat_a_run(swept, tmp_path):
    entry = json.loads((swept / "out" / "settings.json").read_text())[1]
    (tmp_path / "again.gin").write_text("\n".join(entry["settings"]))
    assert cli.main(["train", str(tmp_path / "again.gin"), "--seed", "2", "--out", str(tmp_path / "run")]) == 0
    before = Study(swept / "out").read()["poles-4", "elstm-rtrl", 2].rows
    after = metrics.read(tmp_path / "run" / "metrics.csv")
    timed = {"seconds", "processor_seconds", "frames_per_second"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in after] == [
        {k: v for k, v in row.items() if k not in timed} for row in before
    ]


def test_sweep_skips_what_is_finished(swept):
    before = contents(swept)
    assert cli.main(["sweep", str(swept / "tiny.gin"), "--seeds", "2", "--out", str(swept / "out")]) == 0
    assert contents(swept) == before


def test_sweep_goes_on_with_more_seeds(swept, tmp_path):
    out = shutil.copytree(swept / "out", tmp_path / "out")
    before = Study(out).read()
    words = ["sweep", str(swept / "tiny.gin"), "--seeds", "3", "--conditions", "elstm-rtrl", "--out", str(out)]
    assert cli.main(words) == 0
    after = Study(out).read()
    assert after.pop(("poles-4", "elstm-rtrl", 3)).rows
    assert after == before
    assert [entry["seeds"] for entry in json.loads((out / "settings.json").read_text())] == [[1, 2], [1, 2, 3]]
    table = (out / "table.md").read_text()
    assert "| eLSTM, RTRL | 3 |" in table
    assert "| eLSTM, instant | 2 |" in table


def test_report_only_trains_nothing(swept, capsys):
    (swept / "out" / "table.md").unlink()
    assert cli.main(["sweep", str(swept / "tiny.gin"), "--report-only", "--out", str(swept / "out")]) == 0
    assert capsys.readouterr().out == (swept / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--frames", "500"], "400 frames, this sweep is of 500"),
        (["--tasks", "poles-5"], "poles-4"),
        (["--conditions", "elstm-rtrl,gru"], "'gru' is none of elstm-rtrl, elstm-instant"),
    ],
)
def test_refused(swept, capsys, words, names):
    before = contents(swept)
    assert cli.main(["sweep", str(swept / "tiny.gin"), "--out", str(swept / "out"), *words]) == 2
    text = capsys.readouterr().err
    assert names in text
    assert text.count("\n") == 1
    assert contents(swept) == before


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("sweep.tasks = 3", "sweep.tasks must be a dict"),
        ("sweep.tasks = []", "sweep.tasks must be a dict"),
        ("sweep.tasks = ['TMaze-v0', 3]", "sweep.tasks must be a dict"),
        ("sweep.conditions = {'a': 'train.rollout_length = 3'}", "sweep.conditions must be a dict"),
        ("sweep.conditions = {'a b': [], 'A, b': []}", "same folder"),
        ("sweep.conditions = {'..': []}", "sweep.conditions must be a dict"),
        ("train.frames = 2.5", "train.frames"),
    ],
)
def test_bad_preset(tmp_path, capsys, line, names):
    write_preset(tmp_path, line)
    assert cli.main(["sweep", str(tmp_path / "tiny.gin"), "--out", str(tmp_path / "out")]) == 2
    assert names in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_preset_without_a_sweep(capsys):
    assert cli.main(["sweep", "tmaze_r2ac"]) == 2
    assert "sweep.tasks" in capsys.readouterr().err


def test_nothing_to_report(tmp_path, capsys):
    write_preset(tmp_path)
    assert cli.main(["sweep", str(tmp_path / "tiny.gin"), "--report-only", "--out", str(tmp_path / "out")]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_a_failing_run_stops_no_other(tmp_path, capfd):
    write_preset(tmp_path, "sweep.conditions = {'bad': ['ActorCriticNetwork.units = 0'], 'good': []}")
    words = ["sweep", str(tmp_path / "tiny.gin"), "--seeds", "1", "--jobs", "2", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 1
    text = capfd.readouterr().err
    assert "poles-4/bad/seed-1: failed with exit code 2" in text
    assert "units must be" in text
    assert list(Study(tmp_path / "out").read()) == [("poles-4", "good", 1)]
    assert "| good | 1 |" in (tmp_path / "out" / "table.md").read_text()


def start(folder, frames):
    """A sweep of one run in a process of its own."""
    script = os.path.join(os.path.dirname(sys.executable), "keras-rtrl")
    words = [script, "sweep", "tiny.gin", "--seeds", "1", "--conditions", "elstm-rtrl", "--frames", str(frames)]
    return subprocess.Popen([*words, "--out", "out"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def child_of(process):
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def updates(csv):
    return [int(row["updates"]) for row in metrics.read(csv)]


@pytest.mark.slow
def test_a_sweep_that_was_ended_goes_on(tmp_path):
    """By Ctrl-C, by a kill of all its processes, and by the end of its run's process."""
    write_preset(tmp_path)
    scratch = tmp_path / "out" / ".runs" / "poles-4" / "elstm-rtrl" / "seed-1"
    csv, frames = scratch / "metrics.csv", 400_000
    process = start(tmp_path, frames)
    wait_for(lambda: len(updates(csv)) > 20)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert not (tmp_path / "out" / "runs.csv.gz").exists()
    reached = json.loads((scratch / "run.json").read_text())
    assert reached["status"] == "stopped"
    assert 0 <= reached["updates"] - updates(csv)[-1] < 5  # a signal ends it after any update, a row is of 5
    before = csv.read_text().splitlines()

    begun = (scratch / "config.gin").stat().st_ino
    process = start(tmp_path, frames)
    wait_for(
        lambda: (scratch / "config.gin").stat().st_ino != begun and max(updates(csv), default=0) > reached["updates"]
    )
    os.kill(child_of(process), signal.SIGKILL)  # of the whole machine, as it were
    process.kill()
    assert process.wait(60) == -9

    begun = (scratch / "config.gin").stat().st_ino
    process = start(tmp_path, frames)
    wait_for(lambda: (scratch / "config.gin").stat().st_ino != begun)  # the run goes on
    os.kill(child_of(process), signal.SIGTERM)  # seen enough
    assert process.wait(60) == 1
    after = csv.read_text().splitlines()
    assert after[: len(before)] == before  # with their times: it did not begin again
    seen = updates(csv)
    assert seen == list(range(5, seen[-1] + 1, 5))


def test_two_sweeps_of_one_folder_share_their_runs(tmp_path):
    write_preset(tmp_path)
    both = [start(tmp_path, 400) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    runs = Study(tmp_path / "out").read()
    assert list(runs) == [("poles-4", "elstm-rtrl", 1)]
    assert [int(row["updates"]) for row in runs["poles-4", "elstm-rtrl", 1].rows] == [5, 10, 15, 20]
    assert not list((tmp_path / "out" / ".runs").rglob("checkpoint"))


def test_two_reports_are_written_at_once(swept):
    code = "from keras_rtrl.train import cli\nfor _ in range(2): assert cli.main(%r) == 0"
    words = ["sweep", str(swept / "tiny.gin"), "--report-only", "--out", str(swept / "out")]
    both = [subprocess.Popen([sys.executable, "-c", code % words], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    assert {path.name for path in (swept / "out").iterdir()} == {".runs", *FILES}
