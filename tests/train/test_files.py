"""Run folders that two processes want, that cannot be written, or whose files are damaged."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from keras_rtrl._errors import UsageError
from keras_rtrl.train import checkpoints, cli, metrics
from keras_rtrl.train.run_folder import RunFolder

HOLD = """
import os, sys, time
from keras_rtrl.train.run_folder import RunFolder
run = RunFolder(sys.argv[1])
getattr(run, sys.argv[2])()
if os.fork() == 0:  # a child that outlives the holder does not hold the lock
    time.sleep(60)
print(os.getpid(), flush=True)
time.sleep(60)
"""
SCRIPT = os.path.join(os.path.dirname(sys.executable), "keras-rtrl")


@pytest.fixture
def run(tmaze_run, tmp_path):
    return shutil.copytree(tmaze_run, tmp_path / "run")


def refused(capsys, *words):
    capsys.readouterr()
    assert cli.main(list(map(str, words))) == 2
    text = capsys.readouterr().err
    assert text.startswith("keras-rtrl: error: ")
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("lock", ["train", "--resume", "run", "--frames", "1000"]),  # what is done
        pytest.param("lock", ["export", "run", "run/policy"], marks=pytest.mark.full),
        ("lock_evaluation", ["evaluate", "run", "--episodes", "1"]),
    ],
)
def test_a_folder_in_use_names_the_process_and_is_free_after_its_death(run, monkeypatch, capsys, lock, words):
    monkeypatch.chdir(run.parent)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, "run", lock], stdout=subprocess.PIPE, text=True)
    try:
        pid = holder.stdout.readline().strip()
        before = (run / "metrics.csv").read_text()
        assert f"process {pid} " in refused(capsys, *words)
        assert (run / "metrics.csv").read_text() == before
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert cli.main(words) == 0
    assert not list(run.glob(".*lock"))


def test_a_lock_leaves_nothing_behind(tmp_path):
    run = RunFolder(tmp_path / "a" / "b")
    run.lock()
    assert (tmp_path / "a" / "b" / ".lock").exists()
    run.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_forty_pairs_of_processes_want_one_folder(tiny_tmaze, tmp_path):
    """Each time one trains, the other gets its line, and what the first leaves agrees with itself."""
    preset = tmp_path / "tiny.gin"
    preset.write_text("include 'tmaze_r2ac.gin'\nActorCriticNetwork.units = 4\ntrain.log_updates = 5\n")
    for attempt in range(40):
        out = str(tmp_path / f"run{attempt}")
        words = [SCRIPT, "train", str(preset), "--frames", "3000", "--out", out]
        processes = []
        for _ in range(2):
            processes.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
            time.sleep(attempt % 8 * 0.4)
        errors = [process.communicate(timeout=300)[1] for process in processes]
        codes = [process.returncode for process in processes]
        assert sorted(codes) == [0, 2], errors
        winner, loser = codes.index(0), codes.index(2)
        assert f"process {processes[winner].pid} " in errors[loser] or "holds a run already" in errors[loser]
        run = RunFolder(out)
        updates = [int(row["updates"]) for row in metrics.read(run.metrics)]
        assert updates == sorted(set(updates))
        assert updates[-1] == checkpoints.saved_updates(run) == run.read_record()["updates"]


def _newest(run, suffix):
    return next(run.glob(f"checkpoints/ckpt-50.{suffix}"))


def _folder(path):
    path.unlink(missing_ok=True)
    path.mkdir()


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("run.json", lambda path: path.write_text("[1]")),
        ("run.json", lambda path: path.write_text("{")),
        ("run.json", lambda path: path.write_text('{"seed": "x"}')),
        ("run.json", lambda path: path.write_text('{"preset": "\\ud800"}')),
        ("run.json", _folder),
        ("config.gin", lambda path: path.write_text("")),
        ("config.gin", lambda path: path.write_bytes(b"\xff\0")),
        ("metrics.csv", lambda path: path.write_bytes(b"\xff\n")),
        ("metrics.csv", lambda path: path.write_text("a,b\n1,2\n")),
        ("metrics.csv", lambda path: path.write_text(path.read_text() + path.read_text())),
        ("metrics.csv", _folder),
        ("evaluation.json", _folder),
        ("policy/saved_model.pb", _pipe),
        ("checkpoints/checkpoint", lambda path: path.write_text("")),
        ("checkpoints/ckpt-50.index", lambda path: path.write_bytes(b"")),
        ("checkpoints/ckpt-50.index", _folder),
        ("checkpoints/ckpt-50.data-00000-of-00001", lambda path: os.truncate(path, 100)),
    ],
)
def test_a_damaged_file_is_named(run, capsys, name, damage):
    damage(run / name)
    assert name.split(".")[0] in refused(capsys, "train", "--resume", run, "--frames", "2000")
    if name != "metrics.csv":
        assert name.split(".")[0] in refused(capsys, "evaluate", run)


def test_a_file_in_the_place_of_a_folder_is_named(run, capsys):
    shutil.rmtree(run / "events")
    (run / "events").write_text("")
    assert "events: must be a folder" in refused(capsys, "train", "--resume", run)


def test_a_broken_checkpoint_says_which_one_is_whole(run):
    _newest(run, "index").write_bytes(b"")
    with pytest.raises(UsageError, match=r"ckpt-50.*broken.*ckpt-0 is whole"):
        checkpoints.newest(RunFolder(run))


def test_half_a_row_at_the_end_is_dropped(run):
    rows = metrics.read(run / "metrics.csv")
    with open(run / "metrics.csv", "ab") as file:
        file.write(b"1200,6\xff\0\0")
    assert metrics.read(run / "metrics.csv") == rows


# Files of this process grow no larger: writes fail as on a full disk, for every user.
FULL = """
import resource, sys
import keras_rtrl_cli
with keras_rtrl_cli.quiet():
    import keras_rtrl.train.evaluate, keras_rtrl.train.loop
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(keras_rtrl_cli.main(sys.argv[2:]))
"""


def limited(size, *words):
    words = [sys.executable, "-c", FULL, str(size), *map(str, words)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "keras-rtrl: " in done.stderr.splitlines()[-1]
    return done


@pytest.mark.full
def test_a_disk_that_is_full_after_the_games_loses_no_result(run):
    (run / "evaluation.json").unlink(missing_ok=True)
    done = limited(1, "evaluate", run, "--episodes", "1")
    assert done.returncode == 1
    assert "mean " in done.stdout
    assert "evaluation.json: File too large" in done.stderr
    assert not (run / "evaluation.json").exists()


def test_a_disk_that_gets_full_in_training_leaves_the_checkpoint(run):
    done = limited(8000, "train", "--resume", run, "--frames", "1200")  # a checkpoint is larger
    assert done.returncode == 1
    assert "training stopped: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert f"go on with: keras-rtrl train --resume {run}" in done.stdout
    assert checkpoints.saved_updates(RunFolder(run)) == 50


@pytest.mark.full
def test_a_film_on_a_full_disk_loses_no_result(breakout_run, tmp_path):
    run = shutil.copytree(breakout_run, tmp_path / "run")
    words = ["evaluate", run, "--episodes", "1", "--video", tmp_path / "film.mp4"]
    done = limited(2000, *words)
    assert done.returncode == 1
    assert "mean " in done.stdout
    assert "film.mp4: the film is not whole; is the disk full?" in done.stderr
    assert json.loads((run / "evaluation.json").read_text())["lengths"] == [10]
    assert os.listdir(tmp_path) == ["run"]


def test_an_export_goes_into_no_folder_of_other_things(run, capsys):
    (run.parent / "notes.txt").write_text("mine")
    assert "holds other things than an export" in refused(capsys, "export", run, run.parent)
    assert sorted(path.name for path in run.parent.iterdir()) == ["notes.txt", "run"]


def test_names_too_long_are_refused(run, capsys):
    long = str(run.parent / ("x" * 300))
    for words in (["train", "tmaze_r2ac", "--out", long], ["export", run, long]):
        assert "File name too long" in refused(capsys, *words)
    assert len(refused(capsys, "bench", "--out", "/".join(["y" * 200] * 30))) < 1000
    assert [path.name for path in run.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("redirection", "code"),
    [
        (">/dev/full", 1),
        (">&- 2>&-", 0),
        ("| true", 141),
        *(pytest.param(stream, 0, marks=pytest.mark.full) for stream in ("2>&-", ">&-", "2>/dev/full")),
    ],
)
def test_standard_streams_that_take_nothing(redirection, code):
    line = f"{SCRIPT} info {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_while_importing_are_silent(number, begin_importing):
    process = subprocess.Popen([SCRIPT, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begin_importing(process)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (128 + number, b"", b"")


def test_games_that_do_not_end_are_cut_off(run, capsys):
    words = ["evaluate", run, "--episodes", "17", "--max-steps", "3"]  # a game takes 5 steps
    assert cli.main(list(map(str, words))) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert result["lengths"] == [3] * 17
    assert result["cut_off"] == [True] * 17
    assert "17 of 17 games did not end within 3 steps" in capsys.readouterr().err
