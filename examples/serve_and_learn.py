"""A model that goes on learning where it is served, and recovers from a change of its world.

Sixteen streams have nine sensors each, which read +1 or -1 at random. The model predicts, at every step, what the first
sensor said 4 steps ago; the other eight distract. It is trained in Python, exported, and served by processes that
import TensorFlow and numpy alone. Then, at step --change, the echo moves from 4 to 8 steps. Three servers begin with
the same weights:

- frozen: `freeze` keeps its weights. Its error jumps and stays.
- cut: learns, but its gradient is cut at the step: no trace says what the sensors of earlier steps did.
- learning: an update a step by RTRL. It recovers, and then goes on to --steps, at constant memory and time a step.

    python examples/serve_and_learn.py --out runs/serve_and_learn
    python examples/serve_and_learn.py --steps 5000 --out runs/serve_and_learn     # without the long run

--out gets config.json, the exported models, metrics.csv and served.png. Ctrl-C ends the long run early with a figure.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf  # and not keras_rtrl: this file is the server too

STREAMS, SENSORS, UNITS, RATE = 16, 9, 24, 1e-3
BEFORE, AFTER = 4, 8  # steps between a reading and its echo
COLUMNS = ("process", "step", "error", "cpu_us", "wall_us", "resident_mib")  # times are of a step of all streams
SERVERS = {"frozen": "rtrl", "cut": "tbptt", "learning": "rtrl"}  # and the gradient of their layer


def live(learn, args, *, seed, steps, change):
    """Gives a function (readings [B, 1, SENSORS], targets [B, 1, 1]) -> loss the streams; yields a row a window."""
    rng = np.random.default_rng(seed)
    x = np.zeros((AFTER, STREAMS, 1, SENSORS), np.float32)
    for first in range(0, steps, args.window):
        new = 2 * rng.integers(0, 2, (args.window, *x.shape[1:]), np.int8) - 1
        x = np.concatenate([x[-AFTER:], new.astype(np.float32)])
        wall, cpu, error = time.perf_counter(), time.process_time(), 0.0
        for i in range(args.window):
            echo = x[AFTER + i - (BEFORE if first + i < change else AFTER), :, :, :1]
            error += float(learn(tf.constant(x[AFTER + i]), tf.constant(echo)))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        means = [round(value / args.window, 6) for value in (error, 1e6 * cpu, 1e6 * wall)]
        yield dict(zip(COLUMNS[1:], (first + args.window, *means, round(resident / 2**20, 3)), strict=True))


def serve(name, args):
    """The server: TensorFlow alone. It prints its rows as JSON."""
    sys.modules.update(keras=None, tf_keras=None, keras_rtrl=None)  # cannot be imported
    learner = tf.saved_model.load(str(args.out / SERVERS[name])).signatures
    if name == "frozen":
        learner["freeze"]()
    ones, never = tf.ones((STREAMS, 1)), tf.zeros((STREAMS, 1), tf.bool)

    def learn(x, targets):
        return learner["learn"](x=x, targets=targets, sample_weight=ones, reset=never)["loss"]

    steps = args.steps if name == "learning" else min(args.steps, 5 * args.change)
    for row in live(learn, args, seed=args.seed + 1, steps=steps, change=args.change):
        print(json.dumps(row), flush=True)


def make_model(gradient):
    from keras_rtrl import layers

    keras = tf.keras  # Keras 3, or tf-keras with TF_USE_LEGACY_KERAS=1
    given = {"stateful": True, "return_sequences": True, "gradient": gradient, "name": "rtu"}
    parts = [layers.RTU(UNITS, activation="linear", **given), keras.layers.Dense(1, name="y")]
    model = keras.Sequential([keras.Input((1, SENSORS), batch_size=STREAMS, name="x"), *parts], name="echo")
    return model, keras.optimizers.Adam(RATE)


def train(args):
    """Trains a model in Python, by the same loop, and exports it for each gradient; yields rows."""
    from keras_rtrl import export

    tf.keras.utils.set_random_seed(args.seed)
    model, adam = make_model("rtrl")
    weights = model.trainable_variables
    adam.build(weights)

    @tf.function(jit_compile=True)
    def learn(x, targets):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(targets - model(x, training=True)))
        adam.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    yield from live(learn, args, seed=args.seed, steps=args.train, change=args.train + args.window)
    for gradient in ("rtrl", "tbptt"):
        copy, adam = make_model(gradient)
        for new, old in zip(copy.trainable_variables, weights, strict=True):
            new.assign(old)
        fixed = {"batch_size": STREAMS, "steps": 1, "jit_compile": True}
        export.learner(copy, optimizer=adam, loss="mse", max_gradient_norm=100.0, **fixed).save(args.out / gradient)


def served(name, words):
    """The rows of a server, as it prints them."""
    command = [sys.executable, __file__, *words, "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        yield from map(json.loads, server.stdout)
    if server.returncode:
        sys.exit(f"error: the server {name} ended with {server.returncode}")


def plot(rows, args):
    """Writes the figure: errors around the change; memory and time a step of the server that learns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplot_mosaic([["error", "memory"], ["error", "time"]])
    labels = {"frozen": "frozen", "cut": "learns, gradient cut at the step", "learning": "learns, RTRL"}
    for name, label in labels.items():
        curve = [row for row in rows[name] if row["step"] <= 5 * args.change]
        axes["error"].plot([row["step"] for row in curve], [row["error"] for row in curve], label=label)
    axes["error"].axvline(args.change, color="k", linewidth=0.8, linestyle=":")
    axes["error"].set(xlabel="steps served", ylabel="mean squared error", yscale="log")
    axes["error"].set_title(f"served; the echo moves from {BEFORE} to {AFTER} steps")
    axes["error"].legend(loc="upper right", bbox_to_anchor=(1, 0.77), fontsize="small")
    for place, column, label in (("memory", "resident_mib", "resident, MiB"), ("time", "cpu_us", "CPU a step, µs")):
        values = [row[column] for row in rows["learning"]]
        axes[place].plot([row["step"] for row in rows["learning"]], values, color="C2", linewidth=0.8)
        axes[place].set(xlabel="steps served", ylabel=label, ylim=(0, 2 * statistics.median(values)))
    axes["memory"].set_title("the server that learns by RTRL")
    figure.savefig(args.out / "served.png", dpi=120)


def report(rows, args):
    """Says what became of the errors, of the time and of the memory."""
    for name in SERVERS:
        before = [row["error"] for row in rows[name] if row["step"] <= args.change][-1]
        print(f"{name}: error {before:.4f} before the change, {rows[name][-1]['error']:.4f} at the end")
    times = [statistics.median(row["cpu_us"] for row in rows[name]) for name in ("python", "learning")]
    print(f"CPU µs a step, median of windows: {times[0]:.0f} in Python, {times[1]:.0f} served")
    resident = [row["resident_mib"] for row in rows["learning"]]
    print(f"resident MiB: {resident[len(resident) // 10]} after a tenth of the steps, {max(resident)} at most")


def parse(words):
    def whole(text):
        if text.isdecimal() and int(text) >= 1:
            return int(text)
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train", type=whole, default=2_000, help="steps in Python")
    add("--steps", type=whole, default=1_000_000, help="steps of the server that learns by RTRL")
    add("--change", type=whole, default=1_000, help="step at which the echo moves; the other two stop at five times it")
    add("--window", type=whole, default=250, help="steps of a row of metrics.csv; runs are rounded up to whole windows")
    add("--seed", type=whole, default=1, help="seed of weights and streams")
    add("--out", type=Path, default=Path("runs/serve_and_learn"), help="new folder for the results")
    add("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if not args.window <= args.change < args.steps:
        parser.error(f"argument --change: must be at least --window and below --steps, got {args.change}")
    return args


def main(words=None):
    words = sys.argv[1:] if words is None else words
    args = parse(words)
    if args.serve:
        return serve(args.serve, args)
    try:
        args.out.mkdir(parents=True)
    except OSError as error:
        sys.exit(f"error: --out must be a folder that does not exist yet and can be made: {error}")
    config = {name: value for name, value in vars(args).items() if name not in ("out", "serve")}
    (args.out / "config.json").write_text(json.dumps({**config, "tensorflow": tf.__version__}, indent=2) + "\n")
    rows = {name: [] for name in ("python", *SERVERS)}
    with open(args.out / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        try:
            for name, found in rows.items():
                for row in train(args) if name == "python" else served(name, words):
                    found.append(row)
                    writer.writerow({"process": name, **row})
                    file.flush()
                print(f"{name}: {found[-1]}", flush=True)
        except KeyboardInterrupt:
            if not rows["learning"]:
                raise
    plot(rows, args)
    report(rows, args)


if __name__ == "__main__":
    tf.config.threading.set_inter_op_parallelism_threads(1)  # a step is too small for more
    tf.config.threading.set_intra_op_parallelism_threads(1)
    main()
