import os
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from keras_rtrl import environments
from keras_rtrl._tf_agents import require_legacy_keras
from keras_rtrl.environments import registry


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, True, "4"])
def test_num_envs(num_envs):
    with pytest.raises(ValueError, match="num_envs must be a whole number of at least 1"):
        environments.make("CartPole-v1", num_envs=num_envs)


@pytest.mark.parametrize("seed", [-1, 0.5, "zero", 2**63])
def test_seed(seed):
    with pytest.raises(ValueError, match="seed must be"):
        environments.make("CartPole-v1", seed=seed)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CartPoel-v1", "CartPole-v1"),
        ("CartPole-v9", "CartPole-v1"),
        ("TMaze-v1", "TMaze-v0"),
        ("Tmaze-v0", "TMaze-v0"),
    ],
)
def test_unknown_names(name, meant):
    with pytest.raises(ValueError, match=f"no environment is called '{name}'; did you mean .*{meant}"):
        environments.make(name)


def test_a_name_like_no_other():
    with pytest.raises(ValueError, match=r"no environment is called 'q'\.$"):
        environments.make("q")
    with pytest.raises(ValueError, match="name must be a string"):
        environments.make(3)


@pytest.mark.parametrize(
    "name",
    [
        "ALE/Mine-v5",
        "TMaze-Mine-v0",
        "MemoryChain-Mine-v0",
        "TraceRoute-v0",
        "popgym-Mine-v0",
        "VizdoomMine-v1",
        "MiniGrid-Mine-v0",
        "MiniGrid-Empty-5x5-v7",
    ],
)
@pytest.mark.parametrize("entry_point", ["gymnasium.envs.classic_control.cartpole:CartPoleEnv", CartPoleEnv])
def test_an_id_of_ones_own_may_begin_like_a_familys(name, entry_point, monkeypatch):
    """And needs nothing of that family's, not even its package."""
    for package in ("ale_py", "popgym", "vizdoom", "minigrid"):
        monkeypatch.setitem(sys.modules, package, None)
    assert registry.family(name) != "gymnasium_vector" or name.startswith(("T", "Mem"))
    gymnasium.register(name, entry_point, max_episode_steps=3)
    try:
        assert registry.family(name) == "gymnasium_vector"
        env = environments.make(name, num_envs=2, seed=0, max_episode_steps=5)
        assert env.reset().observation.shape == (2, 4)
        assert registry.normalized_score(name, 1.0) is None
    finally:
        del gymnasium.registry[name]


def test_an_id_of_ones_own_with_a_tasks_entry_point():
    gymnasium.register("TMaze-Mine-v0", "keras_rtrl.environments.tmaze:TMazeEnv", kwargs={"corridor": 3})
    try:
        env = environments.make("TMaze-Mine-v0", num_envs=2, seed=0)
        env.reset()
        step_types = [env.step([0, 0]).step_type.tolist() for _ in range(5)]
    finally:
        del gymnasium.registry["TMaze-Mine-v0"]
    assert step_types == [[1, 1]] * 4 + [[2, 2]]


@pytest.mark.parametrize("name", ["q" * 5000, "MiniGrid-" + "q" * 5000, "ALE/" + "q" * 5000, "dmlab:" + "q" * 5000])
def test_a_long_name_is_not_echoed_whole(name):
    with pytest.raises(ValueError, match="no environment is called") as caught:
        environments.make(name)
    assert len(str(caught.value)) < 500


def test_without_procgen(monkeypatch):
    monkeypatch.setitem(sys.modules, "procgen", None)
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"needs EnvPool \(pip install 'keras_rtrl\[envpool\]'\) or procgen2 \("):
        environments.make("procgen:chaser")


def test_a_package_that_does_not_import_is_not_called_missing(monkeypatch, tmp_path):
    """In any family: the message gives the cause."""
    for package in ("ale_py", "procgen", "popgym"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("import no_such_module")
        for module in [known for known in sys.modules if known.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("ALE/Pong-v5", "procgen:chaser", "popgym-BattleshipEasy-v0"):
        with pytest.raises(
            ImportError, match=r"which is there and cannot be imported: No module named 'no_such_module'"
        ):
            environments.make(name)


NOT_SET = "set the environment variable TF_USE_LEGACY_KERAS=1 before TensorFlow is imported"


@pytest.mark.parametrize("value", ["0", "", "yes"])
def test_legacy_keras_must_be_on(monkeypatch, value):
    require_legacy_keras()
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    with pytest.raises(ImportError, match=NOT_SET):
        require_legacy_keras()


@pytest.mark.parametrize(
    "before", ["", "import tensorflow as tf; tf.keras.layers; os.environ['TF_USE_LEGACY_KERAS'] = '1'"]
)
def test_import_without_legacy_keras(before):
    """A fresh process gets one ImportError that names the variable, also where it was set too late."""
    environ = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    code = f"import os\n{before}\nimport keras_rtrl.environments"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith(f"ImportError: {NOT_SET}")


@pytest.mark.parametrize("name", ["TMaze-v0", "MemoryChain-v0", "TraceConditioning-v0", "TracePatterning-v0"])
def test_observations_lie_in_the_bounds_of_their_spec(name):
    env = environments.make(name, num_envs=3, seed=0)
    spec = env.observation_spec()
    seen = [env.reset().observation, *(env.step(tf.zeros([3], tf.int64)).observation for _ in range(60))]
    assert np.all(seen >= spec.minimum)
    assert np.all(seen <= spec.maximum)
