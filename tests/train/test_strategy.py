"""Training on several devices and in several processes, from the command line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from keras_rtrl.train import checkpoints, cli, metrics
from keras_rtrl.train.run_folder import RunFolder

BINDINGS = [
    word
    for binding in (
        "environment.name = 'CartPole-v1'",
        "environment.num_envs = 4",
        "ActorCriticNetwork.encoder = 'mlp'",
        "ActorCriticNetwork.encoder_units = (16,)",
        "ActorCriticNetwork.units = 8",
        "train.rollout_length = 10",
        "train.log_updates = 10",
    )
    for word in ("--gin", binding)
]

PROGRAM = """
import sys
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv[1]))
from keras_rtrl.train.cli import main

sys.exit(main(sys.argv[2:]))
"""


def start(devices, *words, **environment):
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", **environment}
    program = [sys.executable, "-c", PROGRAM, str(devices), "train", *words]
    return subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rows(path):
    return metrics.read(RunFolder(path).metrics)


def test_two_devices_learn_what_one_learns_and_go_on_from_its_checkpoint(tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    words = ["atari_r2ac_cpu", "--frames", "800", "--seed", "3", *BINDINGS]
    process = start(2, *words, "--out", two, "--gin", "train.strategy = 'mirrored'")
    assert cli.main(["train", *words, "--out", one]) == 0
    finish([process])
    assert len(rows(one)) == len(rows(two)) == 2
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["mean_return"] == b["mean_return"]
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
    finish([start(2, "--resume", two, "--frames", "1200")])
    assert [row["frames"] for row in rows(two)] == ["400", "800", "1200"]


def start_two(words, other_words=None):
    """Two processes that learn together."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return [
        start(1, *own, TF_CONFIG=json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}))
        for i, own in enumerate((words, other_words or words))
    ]


def finish(processes):
    try:
        for process in processes:
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0, out
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_other_and_both_go_on_from_the_checkpoint(tmp_path, victim, kind):
    run = str(tmp_path / "run")
    words = ["atari_r2ac_cpu", "--frames", "4000000", "--out", run, *BINDINGS]
    words += ["--gin", "train.checkpoint_minutes = 0.01"]
    processes = start_two([*words, "--gin", "train.strategy = 'multi_worker_mirrored'"])
    lost, other = processes[victim], processes[1 - victim]
    try:
        deadline = time.monotonic() + 300
        while len(rows(run)) < 3:
            assert other.poll() is lost.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        lost.send_signal(kind)
        out, _ = other.communicate(timeout=60)
    finally:
        lost.kill()
        other.kill()
        lost.wait()
    assert other.returncode == 1, out
    assert out.splitlines()[-2:] == [
        "keras-rtrl: training stopped: another process of train.strategy has died, or does not answer",
        f"go on with, in every process: keras-rtrl train --resume {run}",
    ]
    saved = checkpoints.saved_updates(RunFolder(run))
    assert saved >= 10
    end = (saved // 10 + 3) * 10
    finish(start_two(["--resume", run, "--frames", str(end * 40)]))
    counted = [(row["updates"], row["frames"]) for row in rows(run)]
    assert counted == [(str(10 * i), str(400 * i)) for i in range(1, end // 10 + 1)]
    assert RunFolder(run).read_record()["status"] == "finished"
    assert os.path.isfile(os.path.join(RunFolder(run).policy, "saved_model.pb"))


@pytest.mark.slow
def test_a_process_that_cannot_begin_ends_the_other(tmp_path):
    words = ["atari_r2ac_cpu", "--out", str(tmp_path / "run"), *BINDINGS]
    words += ["--gin", "train.strategy = 'multi_worker_mirrored'"]
    chief, other = start_two(words, [*words, "--gin", "environment.name = 'NoSuch-v1'"])
    out, _ = other.communicate(timeout=300)
    assert other.returncode == 2, out
    out, _ = chief.communicate(timeout=60)
    assert chief.returncode == 1, out
    assert "training stopped: another process of train.strategy has died" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker_mirrored"])
def test_actors_of_several_learners(tmp_path, strategy):
    """4 actors of 2 streams play for each process."""
    run = str(tmp_path / "run")
    words = ["atari_r2ac_cpu", "--frames", "1600", "--out", run, *BINDINGS, "--actors", "4"]
    words += ["--gin", f"train.strategy = '{strategy}'", "--gin", "environment.num_envs = 8"]
    finish([start(2, *words)] if strategy == "mirrored" else start_two(words))
    assert [row["frames"] for row in rows(run)] == ["800", "1600"]
    assert all(row["gaps"] == row["restarts"] == "0" for row in rows(run))


def test_a_tf_config_that_cannot_work(tmp_path, capsys, monkeypatch):
    words = [*BINDINGS, "--gin", "train.strategy = 'multi_worker_mirrored'"]
    for text in ("{", '{"cluster": {"worker": ["127.0.0.1:9"]}, "task": {"type": "worker", "index": 5}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        assert cli.main(["train", "atari_r2ac_cpu", "--out", str(tmp_path / "run"), *words]) == 2
        assert f"keras-rtrl: error: TF_CONFIG {text!r}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gin", "train.strategy = 'no'"], "must be None, 'mirrored' or 'multi_worker_mirrored', got 'no'"),
        (["--gin", "train.strategy = 'multi_worker_mirrored'"], "TF_CONFIG"),
        (
            ["--gin", "environment.name = 'TMaze-v0'", "--gin", "train.strategy = 'mirrored'"],
            "train.strategy must be None for TMaze-v0, which runs inside TensorFlow's graph, got 'mirrored'",
        ),
    ],
)
def test_strategies_that_cannot_work_leave_nothing_behind(tmp_path, capsys, monkeypatch, words, says):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    run = tmp_path / "run"
    assert cli.main(["train", "atari_r2ac_cpu", "--out", str(run), "--frames", "800", *BINDINGS, *words]) == 2
    assert says in capsys.readouterr().err
    assert not run.exists()
