import os
import subprocess
import sys

import pytest

from keras_rtrl import environments
from keras_rtrl._tf_agents import require_legacy_keras


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
