"""Cells, encoders and environments of a user's own, each in one file of another folder, reached by --module."""

import os
import pathlib
import shutil
import sys

import pytest

from keras_rtrl.train import cli

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = {
    "environment.num_envs": 4,
    "ActorCriticNetwork.units": 8,
    "ActorCriticNetwork.head_units": (),
    "ActorCriticNetwork.core_options": None,
    "train.rollout_length": 5,
    "train.log_updates": 10,
}
CARTPOLE = {"environment__name": "CartPole-v1", "environment__options": None}
ENCODER = """
import tensorflow as tf
import tf_keras

class Halves(tf_keras.layers.Layer):
    def call(self, x):
        return x / 2

def encoder(widths=(3,)):
    return tf_keras.Sequential([Halves(), *(tf_keras.layers.Dense(width) for width in widths)])
"""
CORES = """
import tf_keras
from keras_rtrl.layers import ELSTM, RTU, RTRLStack

def stack(units, second=2):
    return RTRLStack([ELSTM(units), RTU(second)])

def keras_cells(units):
    return tf_keras.layers.StackedRNNCells([tf_keras.layers.GRUCell(units), tf_keras.layers.LSTMCell(units)])
"""
ENVIRONMENT = """
import gymnasium
import numpy as np

class Count(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(2, self.steps / 10, np.float32), float(action), self.steps == 10, False, {}

gymnasium.register("Count-v0", Count)
"""


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder of the user's files; what --module does to this process is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    shutil.copy(ROOT / "examples" / "own_cell.py", tmp_path)
    for name, text in (("encoders", ENCODER), ("own_cores", CORES), ("own_environment", ENVIRONMENT)):
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path
    for name in ("own_cell", "encoders", "own_cores", "own_environment"):
        sys.modules.pop(name, None)


def train(folder, *words, preset="tmaze_r2ac", **bindings):
    settings = {**TINY, **{name.replace("__", "."): value for name, value in bindings.items()}}
    words = [*words, *(word for name, value in settings.items() for word in ("--gin", f"{name} = {value!r}"))]
    return cli.main(["train", preset, "--frames", "400", "--out", str(folder / "run"), *words])


def test_own_cell_trains_resumes_plays_and_is_exported(scratch, capsys):
    module = ["--module", str(scratch / "own_cell.py")]
    run = str(scratch / "run")
    cell = {"ActorCriticNetwork__core": "own_cell:SlowCell", **CARTPOLE}
    assert train(scratch, *module, **cell) == 0
    for words in (["evaluate", run], ["train", "--resume", run], ["export", run, str(scratch / "policy")]):
        assert cli.main(words) == 2
        line = capsys.readouterr().err
        assert "ActorCriticNetwork.core has 'own_cell:SlowCell'" in line
        assert "give --module own_cell if it is yours" in line
    assert cli.main(["train", "--resume", run, *module, "--frames", "800"]) == 0
    assert cli.main(["evaluate", run, *module, "--episodes", "2"]) == 0
    assert cli.main(["export", run, str(scratch / "policy"), *module]) == 0
    assert (scratch / "policy" / "saved_model.pb").exists()


def test_own_stack_learns_by_ppo_and_is_evaluated(scratch):
    module = ["--module", str(scratch / "own_cores.py")]
    ppo = {"PPOConfig__chunk": 5, "PPOConfig__num_minibatches": 2, "ActorCriticNetwork__recurrent_parameters": None}
    core = {"ActorCriticNetwork__core": "own_cores:stack", "ActorCriticNetwork__core_options": {"second": 3}}
    assert train(scratch, *module, preset="ppo_rtu_popgym", **CARTPOLE, **ppo, **core) == 0
    assert cli.main(["evaluate", str(scratch / "run"), "--episodes", "2", *module]) == 0


def test_own_encoder_below_cells_of_keras(scratch):
    modules = [word for name in ("encoders", "own_cores") for word in ("--module", str(scratch / f"{name}.py"))]
    core = {"ActorCriticNetwork__core": "own_cores:keras_cells", "ActorCriticNetwork__gradient": "tbptt"}
    encoder = {"ActorCriticNetwork__encoder": "encoders:encoder", "ActorCriticNetwork__encoder_units": (5, 4)}
    assert train(scratch, *modules, **CARTPOLE, **core, **encoder) == 0


def test_own_environment_also_in_worker_processes(scratch):
    module = ["--module", str(scratch / "own_environment.py")]
    bindings = {"environment__name": "own_environment:Count-v0", "environment__options": None}
    core = {"ActorCriticNetwork__core_options": {"forget_bias": 4.0}}
    assert train(scratch, *module, environment__workers=2, **bindings, **core) == 0
    assert cli.main(["evaluate", str(scratch / "run"), "--episodes", "2"]) == 2
    assert cli.main(["evaluate", str(scratch / "run"), "--episodes", "2", *module]) == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.py", "no such file"),
        ("no_such_module", "ModuleNotFoundError"),
        ("broken.py", "ValueError: as it is"),
        ("random.py", "there is another module random; give the file another name"),
    ],
)
def test_wrong_modules(scratch, name, says, capsys):
    (scratch / "broken.py").write_text("raise ValueError('as it is')")
    (scratch / "random.py").write_text("")
    path = str(scratch / name) if name.endswith(".py") else name
    assert train(scratch, "--module", path) == 2
    assert says in capsys.readouterr().err
