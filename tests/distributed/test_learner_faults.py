"""Kills of learners, and of the Ray and the machines that they depend on: training goes on from the checkpoint.

A learner is killed once, when it has saved; the slow tests kill it twenty times at random moments.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from faults import (
    ACTORS_NODE,
    BATCH,
    BINDINGS,
    GONE,
    LOG,
    PATIENCE,
    PRESET,
    ROLLOUT,
    cluster_of,
    left,
    marked,
    report,
    wait_until,
)

from keras_rtrl.train import cli, metrics
from keras_rtrl.train.run_folder import RunFolder

pytest.importorskip("ray", reason="actors need Ray, which is not installed (the extra ray)")

WORDS = [PRESET]
OPTIONS = [word for binding in BINDINGS for word in ("--gin", binding)]


class Command:
    """`keras-rtrl train` in a process of its own, which ends with the test if not before."""

    begun = []  # noqa: RUF012

    def __init__(self, *words, out):
        self.run = RunFolder(out)
        self._log = open(f"{out}.log", "a+", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "keras_rtrl_cli", "train", *words],
            stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip
        self.begun.append(self)

    def updates(self):
        """Of the last row of metrics.csv, 0 where there is none."""
        return max((int(row["updates"]) for row in metrics.read(self.run.metrics)), default=0)

    def wait_for_updates(self, updates):
        def there():
            assert self.process.poll() is None, self.log()
            return self.updates() >= updates

        return wait_until(there, what=self.log())

    def kill(self):
        self.process.kill()
        self.process.wait()

    def log(self):
        self._log.seek(0)
        return self._log.read()[-20000:]


@pytest.fixture(autouse=True)
def _commands():
    yield
    while Command.begun:
        Command.begun.pop().kill()


def saved_counters(run):
    """The counters in the newest checkpoint of a run."""
    reader = tf.train.load_checkpoint(run.checkpoints)
    return json.loads(reader.get_tensor("counters/.ATTRIBUTES/py_state"))


def check_finished(run, end):
    """Every row once, each with its frames, and the checkpoint is of the last."""
    rows = [(int(row["updates"]), int(row["frames"])) for row in metrics.read(run.metrics)]
    expected = [*range(LOG, end + 1, LOG), *([end] if end % LOG else [])]
    assert rows == [(updates, updates * BATCH * ROLLOUT) for updates in expected]
    record, counted = run.read_record(), saved_counters(run)
    assert record["status"] == "finished"
    assert (record["updates"], record["frames"]) == (counted["updates"], counted["frames"]) == rows[-1]


@pytest.mark.usefixtures("nothing_left")
def test_killed_learner(tmp_path):
    """Its actors and its own Ray end with it; training goes on from the checkpoint, without the rows after it."""
    out, others = str(tmp_path / "run"), set(marked())
    command = Command(*WORDS, "--frames", "100000000", "--out", out, "--actors", "2", *OPTIONS, out=out)
    command.wait_for_updates(LOG)
    assert len(left(others, [])) > 3  # the learner, its actors, its Ray
    command.kill()
    counted = saved_counters(command.run)
    assert counted["frames"] == counted["updates"] * BATCH * ROLLOUT
    end = counted["updates"] + 25
    words = ["--frames", str(end * BATCH * ROLLOUT), "--gin", "actors.num_actors = 0"]
    assert cli.main(["train", "--resume", out, *words]) == 0
    check_finished(command.run, end)
    wait_until(lambda: not left(others, []), GONE, "processes that are left")


@pytest.mark.slow
def test_learner_killed_twenty_times(cluster, tmp_path):
    """Each time after an even number of kills it begins a Ray of its own, else it joins the cluster."""
    kills = 20
    rng, out, others = np.random.default_rng(kills), str(tmp_path / "run"), set(marked())
    nodes = [node.all_processes["raylet"][0].process for node in cluster.list_all_nodes()]
    figures = {"updates": [], "row_after": [], "gone_after": []}
    words = [*WORDS, "--frames", "100000000", "--out", out, "--actors", "2", *OPTIONS]
    row = 0
    for i in range(kills):
        began = time.monotonic()
        command = Command(*words, out=out)
        if i and rng.random() < 0.3:
            time.sleep(rng.uniform(0, 20))  # it may still be starting
        else:
            command.wait_for_updates(row + LOG)
            figures["row_after"].append(time.monotonic() - began)
            time.sleep(rng.uniform(0, 2))
        command.kill()
        figures["gone_after"].append(wait_until(lambda: not left(others, nodes), GONE, "processes that are left"))
        counted, row = saved_counters(command.run), command.updates()
        assert counted["frames"] == counted["updates"] * BATCH * ROLLOUT
        figures["updates"].append(counted["updates"])
        row = min(row, counted["updates"])  # the rows after the checkpoint are to be dropped
        address = cluster.address if i % 2 == 0 else None
        words = ["--resume", out, "--gin", f"actors.address = {address!r}"]
    assert all(raylet.poll() is None for raylet in nodes)
    end = counted["updates"] + 25
    command = Command(*words, "--frames", str(end * BATCH * ROLLOUT), out=out)
    assert command.process.wait(PATIENCE) == 0, command.log()
    wait_until(lambda: not left(others, nodes), GONE, "processes that are left")
    check_finished(command.run, end)
    report(kills=kills, **figures)


@pytest.mark.slow
def test_killed_raylet_of_the_learner(tmp_path):
    """Ten times training ends and goes on in a new cluster. Ray may end the process before it says why."""
    rng, out = np.random.default_rng(10), str(tmp_path / "run")
    words = [*WORDS, "--frames", "100000000", "--out", out, "--actors", "2", *OPTIONS]
    figures = {"ended_after": [], "said_why": [], "updates": []}
    row = 0
    for _ in range(10):
        with cluster_of(1) as cluster:
            command = Command(*words, "--gin", f"actors.address = {cluster.address!r}", out=out)
            command.wait_for_updates(row + LOG)
            time.sleep(rng.uniform(0, 2))
            raylet = cluster.head_node.all_processes["raylet"][0].process
            raylet.kill()
            raylet.wait()
            began = time.monotonic()
            assert command.process.wait(60) == 1, command.log()
            figures["ended_after"].append(time.monotonic() - began)
        record, counted, row = command.run.read_record(), saved_counters(command.run), command.updates()
        figures["updates"].append(counted["updates"])
        assert counted["frames"] == counted["updates"] * BATCH * ROLLOUT
        log = command.log().rpartition("run folder")[2]
        assert "Traceback" not in log
        figures["said_why"].append("training stopped: Ray has failed: " in log)
        if figures["said_why"][-1]:
            assert record["status"] == "stopped"
            assert record["updates"] == counted["updates"] >= row
        else:
            assert record["status"] == "running"
        row = min(row, counted["updates"])
        words = ["--resume", out]
    end = counted["updates"] + 15
    with cluster_of(1) as cluster:
        words += ["--frames", str(end * BATCH * ROLLOUT), "--gin", f"actors.address = {cluster.address!r}"]
        command = Command(*words, out=out)
        assert command.process.wait(PATIENCE) == 0, command.log()
    rows = [int(row["updates"]) for row in metrics.read(command.run.metrics)]
    assert rows == [*range(LOG, end + 1, LOG), *([end] if end % LOG else [])]
    report(**figures)


@pytest.mark.slow
def test_no_room_for_the_actors_of_a_dead_node(cluster, tmp_path):
    """Training ends with the time-out's error, and a checkpoint of its last update."""
    out, patience = str(tmp_path / "run"), PATIENCE / 2
    settings = (*BINDINGS, "actors.cpus = 2", f"actors.timeout = {patience}", f"actors.address = {cluster.address!r}")
    bindings = [word for binding in settings for word in ("--gin", binding)]
    command = Command(PRESET, "--frames", "100000000", "--out", out, "--actors", "2", *bindings, out=out)
    command.wait_for_updates(LOG)
    node = next(iter(cluster.worker_nodes))
    raylet = node.all_processes["raylet"][0].process
    raylet.kill()
    raylet.wait()
    began = time.monotonic()
    assert command.process.wait(patience + 60) == 1
    report(ended_after=time.monotonic() - began, timeout=patience)
    assert "no rollout from actor" in command.log()
    assert saved_counters(command.run)["updates"] >= command.updates() > 0
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(**ACTORS_NODE)
