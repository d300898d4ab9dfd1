"""Actors on Ray, from the command line."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.distributed import fleet
from keras_rtrl.train import cli, metrics
from keras_rtrl.train.run_folder import RunFolder

ray = pytest.importorskip("ray", reason="actors need Ray, which is not installed (the extra ray)")

PPO = (
    "agent.name = 'ppo'",
    "ActorCriticNetwork.core = 'rtu'",
    "ActorCriticNetwork.normalize_observation = True",
    "PPOConfig.chunk = 5",
    "PPOConfig.num_minibatches = 2",
    "PPOConfig.num_epochs = 2",
)

STREAM_AC = (
    "agent.name = 'stream_ac'",
    "environment.num_envs = 1",
    "train.rollout_length = 1",
    "train.optimizer = @ObGD",
)


def _saved(path):
    """All tensors of the newest checkpoint by name, but those that count, or that acting alone changes."""
    reader = tf.train.load_checkpoint(RunFolder(path).checkpoints)
    others = ("_CHECKPOINTABLE_OBJECT_GRAPH", "counters", "save_counter", "collect_policy")
    names = [name for name in reader.get_variable_to_shape_map() if not any(other in name for other in others)]
    return {name: reader.get_tensor(name) for name in names}


def _frames(path):
    return [row["frames"] for row in metrics.read(RunFolder(path).metrics)]


@pytest.mark.parametrize("bindings", [pytest.param((), id="r2ac"), pytest.param(PPO, id="ppo", marks=pytest.mark.full)])
def test_one_actor_in_lock_step_gives_the_single_machines_parameters_bit_for_bit(train, tmp_path, address, bindings):
    cluster = ("--ray-address", address)
    alone, apart = str(tmp_path / "alone"), str(tmp_path / "apart")
    words = ("--frames", "800", "--seed", "3")
    assert train(*words, "--out", alone, bindings=bindings) == 0
    assert train(*words, "--out", apart, "--actors", "1", *cluster, bindings=(*bindings, "actors.queue = 1")) == 0
    expected, got = _saved(alone), _saved(apart)
    assert expected.keys() == got.keys()
    assert any(".S" in name or "carry" in name for name in got)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    rows = [metrics.read(RunFolder(path).metrics) for path in (alone, apart)]
    assert len(rows[0]) == len(rows[1]) == 2
    for one, other in zip(*rows, strict=True):
        assert [one[name] for name in ("mean_return", "loss")] == [other[name] for name in ("mean_return", "loss")]
        assert [other[name] for name in ("lag", "restarts", "gaps")] == ["0", "0", "0"]


def test_more_streams_than_a_batch_and_games_played_by_the_actors(train, tmp_path, address, capsys, monkeypatch):
    cluster = ("--ray-address", address)
    run = str(tmp_path / "run")
    # 3 actors of 2 streams; each update takes the rollouts of 2 of them
    assert train("--frames", "1200", "--out", run, "--actors", "3", *cluster) == 0
    rows = metrics.read(RunFolder(run).metrics)
    assert [row["frames"] for row in rows] == ["400", "800", "1200"]
    assert all(float(row["lag"]) <= 6 and row["gaps"] == row["restarts"] == "0" for row in rows)
    assert 0 < int(rows[-1]["object_bytes"]) < 1e5
    capsys.readouterr()
    assert cli.main(["evaluate", run, "--episodes", "5"]) == 0
    here = capsys.readouterr().out
    fetch, replies = fleet._fetch, []

    def lose_every_second(*args):
        replies.append(fetch(*args))
        return replies[-1] if len(replies) % 2 == 0 else None

    monkeypatch.setattr(fleet, "_fetch", lose_every_second)
    assert cli.main(["evaluate", run, "--episodes", "5", "--actors", "1", *cluster]) == 0
    assert capsys.readouterr().out == here
    # the cluster has 4 CPUs: the second begins when the first has ended
    cpus = ("--gin", "actors.cpus = 3")
    assert cli.main(["evaluate", run, "--episodes", "5", "--actors", "2", *cluster, *cpus]) == 0
    assert capsys.readouterr().out.count("game") == 6  # five, and the mean's line
    without = ("--frames", "1600", "--gin", "actors.num_actors = 0")
    assert cli.main(["train", "--resume", run, *without]) == 0
    rows = metrics.read(RunFolder(run).metrics)
    assert [row["frames"] for row in rows] == ["400", "800", "1200", "1600"]
    assert "lag" not in rows[0]


def test_a_ray_that_fails_ends_the_run_after_a_checkpoint(train, tmp_path, address, capsys, monkeypatch):
    run, calls, put = str(tmp_path / "run"), [], ray.put

    def broken_put(value):
        calls.append(value)
        if len(calls) > 5:  # the weights that follow the fifth update
            raise OSError("Broken pipe")
        return put(value)

    monkeypatch.setattr(ray, "put", broken_put)
    assert train("--frames", "4000", "--out", run, "--actors", "1", "--ray-address", address) == 1
    assert "training stopped: Ray has failed: OSError: Broken pipe" in capsys.readouterr().err
    record = RunFolder(run).read_record()
    assert (record["status"], record["updates"]) == ("stopped", 5)
    assert len(calls) == 6


def test_what_ray_says_of_another_version_is_said_whole(train, tmp_path, capsys, monkeypatch):
    def refuse(**_):
        raise RuntimeError("Version mismatch:\n    Ray: 2.0.0\n    Python: 3.9.1")

    monkeypatch.setattr(ray, "init", refuse)
    assert train("--out", str(tmp_path / "run"), "--actors", "2", "--ray-address", "auto") == 2
    assert "no Ray cluster at auto: Version mismatch: Ray: 2.0.0 Python: 3.9.1" in capsys.readouterr().err


def test_an_actor_that_fails_ends_the_run_after_a_checkpoint(train, tmp_path, address, capsys, monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    run = str(tmp_path / "run")
    words = ("--frames", "4000", "--out", run, "--actors", "1", "--ray-address", address)
    assert train(*words, bindings=["environment.name = 'failing:Failing-v0'"]) == 1
    assert "training stopped: actor 0: ZeroDivisionError: integer division" in capsys.readouterr().err
    assert RunFolder(run).read_record()["status"] == "stopped"
    assert RunFolder(run).holds_run()


def test_a_signal_leaves_a_checkpoint_from_which_an_actor_with_two_processes_follows(
    train, tmp_path, address, monkeypatch
):
    run = str(tmp_path / "run")
    calls = []
    from keras_rtrl.train import runners

    original = runners.Actors.run

    def interrupted(self, updates, counters):
        calls.append(counters.updates)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, updates, counters)

    monkeypatch.setattr(runners.Actors, "run", interrupted)
    words = ("--frames", "800", "--out", run, "--actors", "1", "--ray-address", address)
    assert train(*words, bindings=["environment.workers = 2"]) == 128 + signal.SIGTERM
    assert calls == list(range(7))
    assert cli.main(["train", "--resume", run]) == 0
    assert calls == list(range(20))
    assert _frames(run) == ["400", "800"]


@pytest.mark.parametrize(
    ("words", "bindings", "says"),
    [
        (["--actors", "0"], [], "must be a whole number of at least 1, got '0'"),
        (["--ray-address", "auto"], [], "--ray-address needs --actors, got only --ray-address 'auto'"),
        (["--actors", "2", "--ray-address", "127.0.0.1:9"], [], "no Ray cluster at 127.0.0.1:9: Connection refused"),
        (
            ["--actors", "2"],
            ["actors.num_streams = 3"],
            "actors.num_streams must be one of 2, 4 for environment.num_envs=4",
        ),
        (["--actors", "2"], ["actors.queue = 0"], "actors.queue must be a whole number of at least 1, got 0"),
        (["--actors", "2"], ["actors.cpus = 0"], "actors.cpus must be a whole number of at least 1, got 0"),
        (["--actors", "2"], ["actors.timeout = 0"], "actors.timeout must be a finite number above 0, got 0"),
        ([], ["actors.num_actors = -1"], "actors.num_actors must be a whole number of at least 0, got -1"),
        ([], ["actors.num_actors = 1", "actors.address = ''"], "actors.address must be None or a string"),
        (["--actors", "2"], ["environment.name = 'TMaze-v0'"], "TMaze-v0, which runs inside TensorFlow's graph"),
        (["--actors", "1"], STREAM_AC, "actors.num_actors must be 0 for a StreamACAgent"),
        (["--actors", "2"], ["environment.name = 'NoSuch-v1'"], "no environment is called 'NoSuch-v1'"),
    ],
)
def test_settings_that_cannot_work_leave_nothing_behind(train, tmp_path, capsys, words, bindings, says):
    run = tmp_path / "run"
    try:
        code = train("--out", str(run), *words, bindings=bindings)
    except SystemExit as error:  # argparse's
        code = error.code
    assert code == 2
    assert says in capsys.readouterr().err
    assert not run.exists()


def test_a_video_of_games_played_elsewhere_is_refused(train, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert train("--frames", "40", "--out", run) == 0
    assert cli.main(["evaluate", run, "--actors", "2", "--video", str(tmp_path / "game.mp4")]) == 2
    assert "leave out --video" in capsys.readouterr().err
