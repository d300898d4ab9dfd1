"""A tiny T-maze run and a tiny Breakout run, each trained once for all tests."""

import pathlib
import time

import pytest
from tf_agents.agents import tf_agent as _tf_agent  # noqa: F401  TF-Agents before anything that needs it

from keras_rtrl.train import cli

TINY_TMAZE = (
    'environment.options = {"corridor": 3}',
    "environment.num_envs = 4",
    "ActorCriticNetwork.units = 8",
    "ActorCriticNetwork.head_units = ()",
    "train.rollout_length = 5",
    "train.log_updates = 10",
)


def train(*words, bindings=()):
    """Runs `keras-rtrl train` in this process and returns its exit code."""
    return cli.main(["train", *words, *(word for binding in bindings for word in ("--gin", binding))])


@pytest.fixture
def begin_importing():
    """Waits until a process of the command has begun to import what it needs: its first instructions are Python's."""

    def wait(process):
        while "numpy" not in pathlib.Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.01)

    return wait


@pytest.fixture
def tiny_tmaze():
    """Trains the tiny T-maze with further words and bindings; returns the exit code."""

    def run(*words, bindings=()):
        return train("tmaze_r2ac", *words, bindings=(*TINY_TMAZE, *bindings))

    return run


@pytest.fixture(scope="session")
def tmaze_run(tmp_path_factory):
    """The folder of a finished run: 1,000 agent steps, 50 updates."""
    path = tmp_path_factory.mktemp("runs") / "tmaze"
    rates = ["train.learning_rate = 1e-2", "train.final_learning_rate = 0.0"]
    assert train("tmaze_r2ac", "--frames", "1000", "--out", str(path), bindings=[*TINY_TMAZE, *rates]) == 0
    return path


@pytest.fixture(scope="session")
def breakout_run(tmp_path_factory):
    """The folder of a finished run on Breakout: 192 frames, 6 updates; training games are cut at 10 steps."""
    pytest.importorskip("ale_py")
    run = str(tmp_path_factory.mktemp("runs") / "breakout")
    bindings = [
        "environment.num_envs = 2",
        "environment.options = {'max_frames': 40}",
        "train.rollout_length = 4",
        "ActorCriticNetwork.units = 8",
        "train.log_updates = 2",
    ]
    assert train("atari_r2ac_cpu", "--frames", "192", "--out", run, bindings=bindings) == 0
    return run
