"""Exported models outside of Python's TensorFlow: LiteRT's interpreter, ONNX Runtime, TensorFlow's C API."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_rtrl import layers
from keras_rtrl._keras import keras
from keras_rtrl.export import inference_model, learner

STEPS, D = 1_000, 2
PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "serve.c"


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    core = layers.ELSTM(6, return_sequences=True, name="elstm")
    return keras.Sequential([keras.Input((None, D), name="x"), core, keras.layers.Dense(D, name="y")], name="model")


@pytest.fixture(scope="module")
def learns(model, tmp_path_factory):
    """The folder of a saved learner of one stream and one step."""
    adam = keras.optimizers.Adam(1e-2)
    folder = str(tmp_path_factory.mktemp("learner"))
    learner(model, optimizer=adam, loss="mse", batch_size=1, steps=1, max_gradient_norm=2.0).save(folder)
    return folder


def taught(learn, steps):
    """Losses and predictions of steps whose target is what a sensor said two steps ago; at some the stream is reset."""
    x = np.random.default_rng(0).choice([-1.0, 1.0], (steps + 2, 1, 1, D)).astype("float32")
    reset = np.random.default_rng(1).random(steps) < 0.03
    said = []
    for t in range(steps):
        given = {"x": x[t + 2], "targets": x[t], "sample_weight": np.ones((1, 1), "float32"), "reset": [[reset[t]]]}
        out = learn(**{name: np.asarray(value) for name, value in given.items()})
        said.append(np.append(out["y"], out["loss"]))
    return np.array(said)


def in_python(signature):
    return lambda **given: signature(**{name: tf.constant(value) for name, value in given.items()})


def test_a_learner_learns_in_lite_rt(learns):
    """By built-in operations alone: this interpreter has no Flex delegate."""
    names = ["learn", "get", "set", "freeze"]
    converter = tf.lite.TFLiteConverter.from_saved_model(learns, signature_keys=names)
    converter.experimental_enable_resource_variables = True
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    run = {name: interpreter.get_signature_runner(name) for name in names}
    start = run["get"]()
    served = tf.saved_model.load(learns).signatures
    expected = taught(in_python(served["learn"]), STEPS)
    np.testing.assert_allclose(taught(run["learn"], STEPS), expected, atol=1e-5)
    after = {name: value.numpy() for name, value in served["get"]().items()}
    for name, value in run["get"]().items():
        np.testing.assert_allclose(value, after[name], atol=1e-5, err_msg=name)
    assert after["count_updates"] > 0 < after["count_skipped"]
    run["set"](**start)
    np.testing.assert_allclose(taught(run["learn"], 50), expected[:50], atol=1e-5)
    run["freeze"]()
    assert not run["learn"](
        x=np.ones((1, 1, D), "float32"),
        targets=np.ones((1, 1, D), "float32"),
        sample_weight=np.ones((1, 1), "float32"),
        reset=np.array([[False]]),
    )["applied"]


def tensors(folder, signature):
    """Names of the tensors that a saved signature returns, by their own names."""
    message = saved_model_pb2.SavedModel()
    message.ParseFromString((Path(folder) / "saved_model.pb").read_bytes())
    outputs = message.meta_graphs[0].signature_def[signature].outputs
    return {name: tensor.name for name, tensor in outputs.items()}


@pytest.fixture(scope="module")
def answers(model, tmp_path_factory):
    """The folder of a saved inference model of one stream and one step, and the tensors that it returns."""
    folder = tmp_path_factory.mktemp("answers")
    inference_model(model, batch_size=1, steps=1).save(folder)
    return folder, tensors(folder, "serving_default")


def test_one_step_runs_in_onnx_runtime(model, answers, tmp_path):
    """tf2onnx converts the LiteRT file; tensors keep the names of the SavedModel."""
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, names = answers
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serving_default"])
    (tmp_path / "served.tflite").write_bytes(converter.convert())
    words = [sys.executable, "-m", "tf2onnx.convert", "--tflite", "served.tflite", "--output", "served.onnx"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    session = onnxruntime.InferenceSession(tmp_path / "served.onnx")
    x = np.random.default_rng(0).normal(size=(1, STEPS, D)).astype("float32")
    state, got = np.zeros((1, 6, 1), "float32"), []
    for t in range(STEPS):
        given = {"x": x[:, t : t + 1], "reset": np.array([[t == 0]]), "elstm_state": state}
        given = {f"serving_default_{name}:0": value for name, value in given.items()}
        y, state = session.run([names["y"], names["elstm_state"]], given)
        got.append(y)
    np.testing.assert_allclose(np.concatenate(got, 1), model(x), atol=1e-5)


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Runs examples/serve.c."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path, library = str(tmp_path_factory.mktemp("program") / "serve"), tf.sysconfig.get_lib()
    # To link libraries of a gigabyte takes half a minute; the loader alone finds the symbols faster.
    words = [compiler, "-Wall", "-Wextra", "-Werror", str(PROGRAM), f"-I{tf.sysconfig.get_include()}", "-o", path]
    words += ["-fPIC", "-rdynamic", "-Wl,--unresolved-symbols=ignore-all"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    environment = {**os.environ, "LD_PRELOAD": f"{library}/libtensorflow_cc.so.2"}

    def run(*words):
        done = subprocess.run([path, *map(str, words)], env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr[-2000:], np.array(done.stdout.split(), "float32")

    return run


def sensors(steps):
    """What the sensors of the program say."""
    state, said = 1, []
    for _ in range(steps * D):
        state = (state * 1664525 + 1013904223) % 2**32
        said.append(1.0 if state >> 31 else -1.0)
    return np.array(said, "float32").reshape(steps, 1, 1, D)


def test_a_c_program_teaches_a_learner(learns, serve):
    steps = 50
    code, error, losses = serve(learns, steps, "learn", f"loss={tensors(learns, 'learn')['loss']}")
    assert code == 0, error
    x, learn, expected = sensors(steps), in_python(tf.saved_model.load(learns).signatures["learn"]), []
    for t in range(steps):
        targets = x[t - 2] if t >= 2 else np.zeros_like(x[t])
        weight, reset = np.ones((1, 1), "float32"), np.array([[t == 0]])
        expected.append(learn(x=x[t], targets=targets, sample_weight=weight, reset=reset)["loss"].numpy())
    np.testing.assert_allclose(losses, expected, atol=1e-6)
    assert len(set(losses)) > 40


def test_a_c_program_hands_states_on(model, answers, serve):
    folder, names = answers
    words = [f"{name}={names[name]}" for name in ("y", "elstm_state")]
    code, error, y = serve(folder, 20, "serving_default", *words)
    assert code == 0, error
    np.testing.assert_allclose(y, model(np.moveaxis(sensors(20)[:, 0], 0, 1))[0, :, 0], atol=1e-6)


def test_a_c_program_says_what_is_wrong(answers, serve, tmp_path):
    folder, _ = answers
    code, error, _ = serve(folder, 20, "serving_default", "y=None:0")
    assert (code, "None: no such operation" in error) == (1, True)
    code, error, _ = serve(tmp_path, 20, "serving_default", "y=None:0")
    assert (code, "Could not find SavedModel" in error) == (1, True)
