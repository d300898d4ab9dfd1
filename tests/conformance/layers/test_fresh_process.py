"""Files of every layer, loaded by one process that did not write them; and that process' two devices."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from keras_rtrl._keras import LEGACY, keras

B, T, D = 4, 5, 4


def inputs():
    return np.random.default_rng(1).normal(size=(B, T, D)).astype("float32")


def sequential(case):
    return keras.Sequential([keras.Input((None, D)), case.make(return_sequences=True), keras.layers.Dense(2)])


def keras_file(case, folder):
    model, x = sequential(case), inputs()
    model.save(folder / "model.keras")
    return {"x": x, "y": model(x)}


def weights(case, folder):
    model, x = sequential(case), inputs()
    (folder / "model.json").write_text(model.to_json())
    model.save_weights(folder / "model.weights.h5")
    return {"x": x, "y": model(x)}


def saved_model(case, folder):
    model, x = sequential(case), inputs()
    if LEGACY:
        model.save(folder / "model", save_format="tf")
    else:
        tf.saved_model.save(model, folder / "model")
    return {"x": x, "y": model(x)}


def export(case, folder):
    model, x = sequential(case), inputs()
    model.export(folder / "model", **({} if LEGACY else {"verbose": False}))
    return {"x": x, "y": model(x)}


def mirrored(case, folder):
    """The carry is an argument: a stateful layer has one for each stream of its own device alone."""
    layer, rng = case.make(return_sequences=True), np.random.default_rng(2)
    given = {"x": keras.Input((None, D), name="x")}
    data = {"x": inputs()}
    for i, shape in enumerate(case.carry):
        given[f"carry_{i}"] = keras.Input(shape, name=f"carry_{i}")
        data[f"carry_{i}"] = rng.normal(0, 0.3, (B, *shape)).astype("float32")
    model = keras.Model(given, layer(given["x"], initial_state=[given[f"carry_{i}"] for i in range(len(case.carry))]))
    model.save(folder / "model.keras")
    target = rng.normal(size=(B, T, case.width)).astype("float32")
    for _ in range(2):  # the steps that fit is to make
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(data) - target) ** 2)
        values = [w if LEGACY else w.value for w in model.trainable_weights]
        for value, gradient in zip(values, tape.gradient(loss, values), strict=True):
            value.assign_sub(0.1 * gradient)
    return {**data, "target": target, "y": np.concatenate([np.ravel(w) for w in model.get_weights()])}


KINDS = (keras_file, weights, saved_model, export, mirrored)


def test_files_load_in_a_fresh_process(cases_of, request, tmp_path):
    for number, kind in enumerate(KINDS):
        # these take longest, and know no layer from another
        every = 2 if kind in (saved_model, export, mirrored) and not request.config.getoption("--full") else 1
        for case in cases_of(number)[::every]:
            folder = tmp_path / f"{case.name}-{case.implementation}-{kind.__name__}"
            folder.mkdir()
            np.savez(folder / "data.npz", **kind(case, folder))
    program = pathlib.Path(__file__).with_name("fresh_process.py")
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    failed = json.loads(done.stdout.splitlines()[-1])
    assert not failed, "\n\n".join(f"{name}: {error}" for name, error in failed.items())
