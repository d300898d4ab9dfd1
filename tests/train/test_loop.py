"""What a run leaves, and how it ends: done, by signals, by a kill, by a NaN."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import imageio_ffmpeg
import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.train import cli, metrics
from keras_rtrl.train.run_folder import RunFolder


def rows(run, *names):
    """Columns of metrics.csv; by default all that do not depend on the clock."""
    kept = metrics.read(RunFolder(run).metrics)
    names = names or [name for name in (kept[0] if kept else ()) if "second" not in name]
    return [tuple(row[name] for name in names) for row in kept]


def saved(run):
    """All variables of the newest checkpoint by name."""
    reader = tf.train.load_checkpoint(os.path.join(run, "checkpoints"))
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "counters" not in name and "save_counter" not in name and "OBJECT_GRAPH" not in name
    }


def test_run_leaves_everything(tmaze_run):
    events = list((tmaze_run / "events").glob("events.out.tfevents.*"))
    assert events
    tags = {v.tag for event in tf.compat.v1.train.summary_iterator(str(events[0])) for v in event.summary.value}
    assert {"loss", "mean_return", "frames_per_second"} <= tags
    assert (tmaze_run / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmaze_run / "policy" / "saved_model.pb").exists()
    record = json.loads((tmaze_run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["frames"] == 1000
    assert record["preset"] == "tmaze_r2ac"
    config = (tmaze_run / "config.gin").read_text()
    assert "train.rollout_length = 5" in config  # a binding
    assert "R2ACConfig.value_pred_loss_coef = 0.5" in config  # a default that nobody named


def test_metrics_count_frames_updates_and_games(tmaze_run):
    counted = np.array(rows(tmaze_run, "frames", "updates", "games"), int)
    np.testing.assert_array_equal(counted[:, 1], [10, 20, 30, 40, 50])
    np.testing.assert_array_equal(counted[:, 0], counted[:, 1] * 4 * 5)
    # An episode takes corridor + 2 actions and the frame from LAST to FIRST: 250 steps of 4 streams.
    np.testing.assert_array_equal(counted[:, 2], 4 * ((counted[:, 0] // 4 + 1) // 6))


def test_learning_rate_goes_linearly_to_its_end(tmaze_run):
    rates = np.array(rows(tmaze_run, "learning_rate"), float)[:, 0]
    np.testing.assert_allclose(rates, [8e-3, 6e-3, 4e-3, 2e-3, 0.0], rtol=1e-5)


def test_interrupted_and_resumed_equals_uninterrupted(tiny_tmaze, tmaze_run, tmp_path):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    constant = ["train.final_learning_rate = 1e-3"]  # annealing goes by the run's length, which differs here
    assert tiny_tmaze("--frames", "800", "--seed", "3", "--out", whole, bindings=constant) == 0
    assert tiny_tmaze("--frames", "400", "--seed", "3", "--out", parts, bindings=constant) == 0
    assert cli.main(["train", "--resume", parts, "--frames", "800"]) == 0
    assert rows(parts) == rows(whole)
    spent = np.array(rows(parts, "processor_seconds"), float)[:, 0]
    assert 0 < spent[0] < spent[-1]
    assert (np.diff(spent) >= 0).all()  # the second session goes on with the first one's
    assert rows(whole, "loss")[0] != rows(tmaze_run, "loss")[0]  # another seed
    one, two = saved(whole), saved(parts)
    assert one.keys() == two.keys()
    assert len(one) > 20
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_rows_past_the_checkpoint_are_dropped_on_resume(tmaze_run, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tmaze_run, run)
    before = rows(run)
    lines = (run / "metrics.csv").read_text()
    last = lines.splitlines()[-1].split(",")
    with open(run / "metrics.csv", "a") as file:  # as a process killed after its last checkpoint leaves it
        file.write(",".join(["1200", "60", *last[2:]]) + "\n1400,70,")
    assert cli.main(["train", "--resume", str(run), "--frames", "1200"]) == 0
    assert rows(run)[: len(before)] == before
    updates = [int(row[1]) for row in rows(run)]
    assert updates == [10, 20, 30, 40, 50, 60]


def test_rows_of_an_earlier_version_are_filled_up(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "metrics.csv").write_text("frames,updates\n4,1\n8,2\n")
    metrics.trim(run, ("frames", "updates", "human_normalized"), 1)
    assert metrics.read(run.metrics) == [{"frames": "4", "updates": "1", "human_normalized": ""}]


def test_a_nan_stops_training_and_keeps_the_last_good_checkpoint(tiny_tmaze, tmp_path, capfd):
    run = tmp_path / "run"
    code = tiny_tmaze("--out", str(run), bindings=["train.learning_rate = 1e38", "train.final_learning_rate = 1e38"])
    assert code == 1
    text = capfd.readouterr().err
    assert "at update" in text
    assert "Traceback" not in text
    assert json.loads((run / "run.json").read_text())["status"] == "diverged"
    for name, value in saved(run).items():
        assert not np.issubdtype(value.dtype, np.floating) or np.isfinite(value).all(), name
    assert all(int(row[0]) <= checkpoint_number(str(run)) for row in rows(run, "updates"))
    assert cli.main(["evaluate", str(run), "--episodes", "2"]) == 0


CARTPOLE = (
    "environment.name = 'CartPole-v1'",
    "environment.num_envs = 4",
    "environment.options = None",
    "ActorCriticNetwork.units = 8",
    "ActorCriticNetwork.head_units = ()",
    "train.rollout_length = 5",
    "train.log_updates = 1",  # a signal ends it after any update
)


def words_of(bindings):
    return [word for binding in bindings for word in ("--gin", binding)]


def start(run, *words):
    """A training in a fresh process that would go on for hours, with checkpoints every 0.3 s."""
    script = os.path.join(os.path.dirname(sys.executable), "keras-rtrl")
    words = [*words, *words_of(["train.checkpoint_minutes = 0.005"])]
    return subprocess.Popen([script, "train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def checkpoint_number(run):
    latest = tf.train.latest_checkpoint(os.path.join(run, "checkpoints"))
    return int(latest.rpartition("-")[2]) if latest else 0


def test_killed_and_terminated_runs_go_on(tmp_path):
    run = str(tmp_path / "run")
    process = start(run, "tmaze_r2ac", "--frames", "2000000000", "--out", run, *words_of(CARTPOLE))
    wait_for(lambda: checkpoint_number(run) > 0, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    kept = checkpoint_number(run)
    assert kept > 0

    process = start(run, "--resume", run)
    wait_for(lambda: checkpoint_number(run) > kept, process)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, text
    updates = [int(row[0]) for row in rows(run, "updates")]
    assert updates == sorted(set(updates))
    assert checkpoint_number(run) == updates[-1] > kept
    assert json.loads(open(os.path.join(run, "run.json")).read())["status"] == "stopped"
    assert os.path.exists(os.path.join(run, "policy", "saved_model.pb"))


def test_interrupt_leaves_a_checkpoint(tmp_path):
    run = tmp_path / "run"

    def interrupt():
        while not rows(run, "updates"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code = cli.main(["train", "tmaze_r2ac", "--frames", "2000000000", "--out", str(run), *words_of(CARTPOLE)])
    thread.join()
    assert code == 128 + signal.SIGINT
    assert checkpoint_number(run) == int(rows(run, "updates")[-1][0])


def test_minutes_end_a_run_that_can_go_on(tmp_path):
    run = str(tmp_path / "run")
    words = ["--frames", "2000000000", "--minutes", "0.01", "--out", run]
    assert cli.main(["train", "tmaze_r2ac", *words, *words_of(CARTPOLE)]) == 0
    assert json.loads(open(os.path.join(run, "run.json")).read())["status"] == "stopped"


def test_atari_counts_four_frames_a_step(breakout_run):
    assert rows(breakout_run, "frames", "updates") == [("64", "2"), ("128", "4"), ("192", "6")]


def test_atari_scores_itself_beside_a_human(breakout_run):
    """Games of 10 steps and a FIRST, after which the mean return is known."""
    scores = rows(breakout_run, "mean_return", "human_normalized")
    assert scores[0] == ("", "")
    mean, normalized = (float(score) for score in scores[-1])
    assert normalized == pytest.approx((mean - 1.7) / (30.5 - 1.7), rel=1e-5)


def test_atari_ends_with_a_film(breakout_run):
    """Of the trained policy, by the preset's options: games of 10 steps."""
    facts, *film = imageio_ffmpeg.read_frames(os.path.join(breakout_run, "film.mp4"))
    assert facts["fps"] == 15
    assert len(film) == 10


def test_a_film_that_cannot_be_written_costs_no_run(breakout_run, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run = shutil.copytree(breakout_run, str(tmp_path / "run"))
    monkeypatch.setattr(imageio_ffmpeg, "write_frames", full)
    assert cli.main(["train", "--resume", run, "--frames", "256"]) == 0
    out, err = capsys.readouterr()
    assert "random play 1.70" in out
    assert "no film of the policy: " in err
    assert os.path.exists(os.path.join(run, "film.mp4"))  # the earlier one


@pytest.mark.full
def test_no_film(breakout_run, tmp_path, capsys):
    run = shutil.copytree(breakout_run, str(tmp_path / "run"))
    os.remove(os.path.join(run, "film.mp4"))
    assert cli.main(["train", "--resume", run, "--frames", "256", "--no-film"]) == 0
    assert not os.path.exists(os.path.join(run, "film.mp4"))


def test_atari_resumes_with_new_episodes(breakout_run, tmp_path):
    run = shutil.copytree(breakout_run, str(tmp_path / "run"))  # tests come in any order
    before = saved(run)
    assert cli.main(["train", "--resume", run, "--frames", "256"]) == 0
    assert rows(run, "frames", "updates")[-1] == ("256", "8")
    after = saved(run)
    weights = [name for name in before if name.startswith("agent/_trained")]
    assert sum((before[name] != after[name]).any() for name in weights) > len(weights) // 2


def test_evaluate_plays_whole_games_of_breakout_and_films_one(breakout_run, capsys):
    video = os.path.join(breakout_run, "game.mp4")
    whole = ["--gin", "environment.options = {}"]  # not cut short as in training
    assert cli.main(["evaluate", breakout_run, "--episodes", "2", "--video", video, *whole]) == 0
    result = json.loads(open(os.path.join(breakout_run, "evaluation.json")).read())
    assert len(result["returns"]) == 2
    assert min(result["returns"]) >= 0
    assert min(result["lengths"]) > 100  # five lives, not one
    assert result["human_normalized"] == pytest.approx((result["mean"] - 1.7) / (30.5 - 1.7))
    out = capsys.readouterr().out
    assert f"mean {result['mean']:.2f}" in out
    assert f"human-normalised {result['human_normalized']:.3f}" in out
    facts, *film = imageio_ffmpeg.read_frames(video)
    assert facts["codec"] == "h264"
    assert facts["size"] == (320, 420)
    assert len(film) == result["lengths"][0]
    first = np.frombuffer(film[0], np.uint8).reshape(420, 320, 3).astype(int)
    assert (first.max(axis=2) > first.min(axis=2) + 100).any()  # in colour
