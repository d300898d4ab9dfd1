"""What a step costs where a model is served: SavedModel's signature in Python, LiteRT, ONNX Runtime, and the C program.

Beside `learn` the same update as a tf.function of the layer, the loss and the optimiser, on plain TensorFlow as in the
file, and with the layer's native op.

    python -m benchmarks.serving [UNITS]

Prints a table: bytes of the files, and the median time of a step of one stream. Those in Python take turns, step by
step; the C program runs before and after them. Without a C compiler, tf2onnx or onnxruntime their rows are left out.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from benchmarks.common import ROOT, say, table
from keras_rtrl import export, layers

STEPS, WIDTH = 500, 8
NAMES = {"serving_default": ("y", "elstm_state"), "learn": ("loss",)}


def main():
    units = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    model, rows = model_of(units), []
    with tempfile.TemporaryDirectory() as folder:
        for signature in NAMES:
            path = Path(folder) / signature
            if signature == "learn":
                export.learner(model, optimizer="adam", loss="mse", batch_size=1, steps=1).save(path)
            else:
                export.inference_model(model, batch_size=1, steps=1).save(path)
            rows += measured(path, signature, units)
    print("\n".join(table(["call", "runs in", "bytes", "microseconds a step"], rows)))


def model_of(units, **given):
    core = layers.ELSTM(units, return_sequences=True, name="elstm", **given)
    return keras.Sequential([keras.Input((1, WIDTH), 1, name="x"), core, keras.layers.Dense(WIDTH, name="y")])


def python_loop(units, given, implementation):
    """A function that makes the update of `learn` as a user of Keras writes it."""
    model, optimizer = model_of(units, stateful=True, implementation=implementation), keras.optimizers.Adam()
    core, head, loss_of = *model.layers, keras.losses.MeanSquaredError()

    @tf.function
    def step(x, targets, sample_weight, reset):
        with tf.GradientTape() as tape:
            loss = loss_of(targets, head(core(x, training=True, reset=reset)), sample_weight=sample_weight)
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    return lambda: step(**{name: tf.constant(value) for name, value in given.items()})


def measured(path, signature, units):
    """Rows of one signature."""
    say(signature)
    given = {"x": np.ones((1, 1, WIDTH), "float32"), "reset": np.array([[False]])}
    if signature == "learn":
        given |= {"targets": given["x"], "sample_weight": np.ones((1, 1), "float32")}
    else:
        given |= {"elstm_state": np.zeros((1, units, 1), "float32")}
    lite = path.with_suffix(".tflite")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=[signature])
    converter.experimental_enable_resource_variables = signature == "learn"
    lite.write_bytes(converter.convert())
    run = tf.lite.Interpreter(model_path=str(lite), num_threads=1).get_signature_runner(signature)
    loaded = tf.saved_model.load(str(path)).signatures[signature]
    runners = {
        "SavedModel": lambda: loaded(**{name: tf.constant(value) for name, value in given.items()}),
        "LiteRT": lambda: run(**given),
    }
    sizes = {
        "SavedModel": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "LiteRT": lite.stat().st_size,
    }
    if signature == "learn":
        runners["Python, plain TensorFlow"] = python_loop(units, given, "tf")
        runners["Python, native op"] = python_loop(units, given, "auto")
    else:
        add_onnx(runners, sizes, lite, {f"{signature}_{name}:0": value for name, value in given.items()})
    c_times = [run_c(path, signature)]
    times = {name: [] for name in runners}
    for _ in range(STEPS):
        for name, call in runners.items():
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e6)
    rows = [[signature, name, sizes.get(name, ""), round(statistics.median(times[name]))] for name in runners]
    c_times.append(run_c(path, signature))
    return [*rows, [signature, "C", sizes["SavedModel"], " and ".join(c_times)]] if all(c_times) else rows


def add_onnx(runners, sizes, lite, given):
    try:
        import onnxruntime
        import tf2onnx.convert
    except ImportError as error:
        say(f"left out: {error}")
        return
    model = lite.with_suffix(".onnx")
    tf2onnx.convert.from_tflite(str(lite), output_path=str(model))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    runners["ONNX Runtime"], sizes["ONNX Runtime"] = lambda: session.run(None, given), model.stat().st_size


def run_c(path, signature):
    """The median that examples/serve.c says; None without a compiler."""
    compiler, library = shutil.which("cc"), tf.sysconfig.get_lib()
    if compiler is None:
        return None
    program = path.with_suffix(".program")
    words = [compiler, "-O2", str(ROOT / "examples" / "serve.c"), f"-I{tf.sysconfig.get_include()}", "-o", str(program)]
    subprocess.run([*words, "-fPIC", "-rdynamic", "-Wl,--unresolved-symbols=ignore-all"], check=True)
    message = saved_model_pb2.SavedModel()
    message.ParseFromString((path / "saved_model.pb").read_bytes())
    outputs = message.meta_graphs[0].signature_def[signature].outputs
    words = [str(program), str(path), str(STEPS), signature, *(f"{n}={outputs[n].name}" for n in NAMES[signature])]
    environment = {**os.environ, "LD_PRELOAD": f"{library}/libtensorflow_cc.so.2"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return done.stderr.split()[-4].split(".")[0]


if __name__ == "__main__":
    main()
