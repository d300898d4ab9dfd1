"""What `import keras_rtrl` brings along, what it costs, and its error under another Keras backend."""

import os
import statistics
import subprocess
import sys

import pytest

from keras_rtrl._keras import LEGACY

# Optional, or slow to import: whoever wants the layers pays for none of them, unless Keras itself imports it.
UNWANTED = {"tf_agents", "gymnasium", "gin", "matplotlib", "tensorboard", "tensorflow_probability", "pandas", "pytest"}
KERAS = "tf_keras" if LEGACY else "keras"


def python(code, **environment):
    """A fresh process: its exit status, what it said, and the CPU seconds it took."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    return process.returncode, output, usage.ru_utime + usage.ru_stime


def test_import_pulls_in_nothing_optional():
    code, output, _ = python(
        f"import sys, tensorflow, {KERAS}; keras_itself = set(sys.modules); import keras_rtrl; "
        f"print('unwanted:', *{UNWANTED} & set(sys.modules) - keras_itself)"
    )
    assert code == 0, output
    assert output.splitlines()[-1].split() == ["unwanted:"]


@pytest.mark.slow
@pytest.mark.parametrize("legacy", ["0", "1"], ids=["keras3", "tf-keras"])
def test_import_takes_less_than_1_2_times_tensorflow(legacy):
    """CPU time, since a busy machine stretches the wall time of any process; the two take turns."""
    pairs = [
        [python(f"import {module}", TF_USE_LEGACY_KERAS=legacy)[2] for module in ("tensorflow", "keras_rtrl")]
        for _ in range(5)
    ]
    tensorflow, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"tensorflow {tensorflow:.2f} s, keras_rtrl {ours:.2f} s, {ours / tensorflow:.3f} times")
    assert ours < 1.2 * tensorflow


@pytest.mark.skipif(LEGACY, reason="tf-keras has no backends")
@pytest.mark.parametrize("backend", ["jax", "torch", "numpy", "openvino", "nonsense"])
def test_another_backend_gives_one_clear_error(backend):
    code, output, _ = python("import keras_rtrl", KERAS_BACKEND=backend)
    assert code == 1
    assert output.splitlines()[-1] == (
        f"ImportError: keras_rtrl needs Keras on its TensorFlow backend, and Keras runs on {backend!r}: set the "
        "environment variable KERAS_BACKEND=tensorflow before keras is imported."
    )
    assert "During handling" not in output


@pytest.mark.skipif(LEGACY, reason="tf-keras has no backends")
def test_another_backend_in_the_configuration_file(tmp_path):
    tmp_path.joinpath("keras.json").write_text('{"backend": "nonsense"}')
    code, output, _ = python("import keras_rtrl", KERAS_HOME=str(tmp_path), KERAS_BACKEND="")
    assert code == 1
    assert output.splitlines()[-1].startswith("ImportError: keras_rtrl needs Keras on its TensorFlow backend, and")
    assert "KERAS_BACKEND=tensorflow" in output.splitlines()[-1]


@pytest.mark.skipif(not LEGACY, reason="Keras 3 has backends")
def test_tf_keras_does_not_ask_for_a_backend():
    code, output, _ = python("import keras_rtrl", KERAS_BACKEND="nonsense")
    assert code == 0, output
