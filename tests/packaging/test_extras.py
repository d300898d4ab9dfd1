"""Where only the layers are installed, one line names what is missing. Packages are hidden, not uninstalled."""

import os
import subprocess
import sys

import pytest

from keras_rtrl._keras import LEGACY

pytestmark = pytest.mark.skipif(LEGACY, reason="the same under either Keras")

EXTRA = 'pip install "keras_rtrl[agents]"'
INSTALL = f"{EXTRA} && pip install --no-deps tf-agents==0.19.0 gym==0.26.2"


def without(package, code, **environment):
    hidden = f"import sys; sys.modules[{package!r}] = None; {code}"
    return subprocess.run(
        [sys.executable, "-c", hidden], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_agents_say_so():
    done = without("tf_agents", "import keras_rtrl.agents")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: TF-Agents is not installed: {INSTALL}"
    assert "During handling" not in done.stderr


def test_the_command_says_so():
    done = without("tf_agents", "import keras_rtrl_cli; keras_rtrl_cli.main()")
    assert done.returncode == 1
    assert done.stderr == f"keras-rtrl: error: TF-Agents is not installed: {INSTALL}\n"


def test_tf_keras_chosen_and_not_installed():
    done = without("tf_keras", "import keras_rtrl", TF_USE_LEGACY_KERAS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: TF_USE_LEGACY_KERAS is set and tf-keras is not installed: unset it for Keras 3, or {EXTRA}."
    )
