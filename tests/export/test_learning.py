"""Learners: taught by a fresh process that has TensorFlow and neither Keras nor this package, and their rules."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import layers
from keras_rtrl._keras import keras
from keras_rtrl.export import learner

B, T, D, N, W = 2, 3, 4, 5, 2
STEPS, KILLED = 100, 40
PROGRAM = Path(__file__).with_name("learn.py")
SAID = ("loss", "gradient_norm", "applied", "y")
SIGNATURES = ["freeze", "get", "info", "learn", "predict", "reset", "rollback", "set", "snapshot", "thaw"]

# Of plain TensorFlow, which a learner is made of: the native op rounds otherwise, and training enlarges that.
CORES = {
    "elstm": lambda **given: layers.ELSTM(N, implementation="tf", **given),
    "rtu": lambda **given: layers.RTU(N, r_max=0.9, activation="tanh", implementation="tf", **given),
    "lru": lambda **given: layers.LRU(N, implementation="tf", **given),
    "stack": lambda **given: layers.RTRLStack(
        [
            layers.ELSTM(N, implementation="tf", name="below"),
            keras.layers.Dense(W, name="between"),
            layers.RTU(N, recurrence="nonlinear", activation="tanh", implementation="tf", name="above"),
        ],
        gate=True,
        norm=True,
        **given,
    ),
}
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.02, momentum=0.5),
    "Adam": lambda: keras.optimizers.Adam(3e-3),
    "RMSprop": lambda: keras.optimizers.RMSprop(1e-3),
}


def model_of(core, **given):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((T, D), batch_size=B, name="x"),
            CORES[core](return_sequences=True, stateful=True, name="core", **given),
            keras.layers.Dense(W, name="y"),
        ],
        name="model",
    )


def weights_of(model):
    """Its weights by the names that a learner gives them."""
    paths = [getattr(weight, "path", weight.name).removesuffix(":0") for weight in model.weights]
    return {"weight_" + path.replace("/", "_"): value for path, value in zip(paths, model.get_weights(), strict=True)}


def lessons(steps, seed=0):
    """Inputs of `learn` by name, one row a call; episodes end in the middle of calls."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(steps, B, T, D)).astype("float32"),
        "targets": rng.normal(size=(steps, B, T, W)).astype("float32"),
        "sample_weight": rng.uniform(0.5, 1.5, size=(steps, B, T)).astype("float32"),
        "reset": rng.random((steps, B, T)) < 0.03,
    }


def taught(model, optimizer, data):
    """Losses and predictions of the same lessons by Keras, on the model itself."""
    core, head, loss_of = model.get_layer("core"), model.get_layer("y"), keras.losses.MeanSquaredError()

    @tf.function
    def step(x, targets, sample_weight, reset):
        with tf.GradientTape() as tape:
            y = head(core(x, training=True, reset=reset))
            loss = loss_of(targets, y, sample_weight=sample_weight)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss, y

    rows = [step(**{name: tf.constant(value[i]) for name, value in data.items()}) for i in range(len(data["x"]))]
    return np.array([loss for loss, _ in rows]), np.array([y for _, y in rows])


def run(folder, *words):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *map(str, words)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr[-3000:]


def teach_both(folder, cases, steps, kill=None):
    """What the fresh process said, and by case the model that Keras taught, its losses and its predictions."""
    np.savez(folder / "in.npz", **lessons(steps))
    for core, optimizer in cases:
        learner(model_of(core), optimizer=OPTIMIZERS[optimizer](), loss="mse", batch_size=B).save(folder / core)
    if kill is not None:
        code, said = run(folder, "until", cases[0][0], kill)
        assert code == -signal.SIGKILL, said
    code, said = run(folder, "all", *(core for core, _ in cases))
    assert code == 0, said
    expected = {}
    for core, optimizer in cases:
        model = model_of(core)
        expected[core] = (model, *taught(model, OPTIMIZERS[optimizer](), lessons(steps)))
    return dict(np.load(folder / "out.npz")), expected


def check_equal(out, expected, atol):
    for core, (model, losses, predictions) in expected.items():
        np.testing.assert_allclose(out[f"{core}/loss"], losses, atol=3 * atol, err_msg=core)  # of many weights
        np.testing.assert_allclose(out[f"{core}/y"], predictions, atol=3 * atol, err_msg=core)
        for name, weight in weights_of(model).items():
            np.testing.assert_allclose(out[f"{core}/{name}"], weight, atol=atol, err_msg=name)


CASES = [("elstm", "Adam"), ("stack", "SGD")]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return teach_both(tmp_path_factory.mktemp("learned"), CASES, STEPS, kill=KILLED)


def test_learns_as_the_layer_the_loss_and_the_optimizer_do(learned):
    check_equal(*learned, atol=1e-6)


def test_truncated_gradients_would_be_seen(learned):
    out, _ = learned
    model = model_of("elstm", gradient="tbptt")
    taught(model, OPTIMIZERS["Adam"](), lessons(STEPS))
    assert max(np.abs(out[f"elstm/{name}"] - weight).max() for name, weight in weights_of(model).items()) > 1e-3


def test_files_hold_stock_operations(learned):
    out, _ = learned
    for core, _ in CASES:
        assert not out[f"{core}/foreign"].tolist()
        assert out[f"{core}/planted"].tolist() == ["KerasRtrlMadeUp"]
        assert out[f"{core}/signatures"].tolist() == SIGNATURES


def test_a_killed_server_goes_on_bit_for_bit(learned):
    out, _ = learned
    again = {name.partition("/")[2]: value for name, value in out.items() if name.startswith("again/")}
    assert len(again["loss"]) == STEPS - KILLED
    assert any(name.startswith("optimizer_") for name in again)
    assert "carry_core_S" in again
    for name, value in again.items():
        whole = out[f"elstm/{name}"]
        np.testing.assert_array_equal(value, whole[KILLED:] if name in SAID else whole, err_msg=name)


@pytest.mark.full
def test_other_cells_and_optimizers(tmp_path):
    check_equal(*teach_both(tmp_path, [("rtu", "RMSprop"), ("lru", "Adam")], STEPS), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [[("elstm", "Adam"), ("rtu", "RMSprop")], [("lru", "SGD"), ("stack", "SGD")]])
def test_ten_thousand_steps(cases, tmp_path):
    """An RTU with tanh: with relu one last bit of the kernel changes Keras' own losses by 0.08 or more.

    The stack learns by SGD: by RMSprop one last bit changes Keras' own weights by 7e-6, and sums differ in order.
    """
    check_equal(*teach_both(tmp_path, cases, 10_000), atol=1e-5)


@pytest.mark.slow
def test_memory_stays(tmp_path):
    np.savez(tmp_path / "in.npz", **lessons(1))
    learner(model_of("elstm"), optimizer="adam", loss="mse", batch_size=B).save(tmp_path / "elstm")
    code, said = run(tmp_path, "memory", "elstm", 200_000)
    assert code == 0, said
    assert int(re.search(r"GREW (-?\d+)", said)[1]) < 1024
