"""Recall over 1000 steps, learned from chunks of 50 by `model.fit` alone.

Every step shows one of 8 symbols. The first step has a mark: the network must name its symbol when the sequence ends,
20 chunks later. All symbols in between are distractors. Only the last step counts, in the loss and in every score;
chance is 12.5 %. A held-out sequence is right if the right symbol has the largest logit. The task is solved if 99 % of
the held-out sequences are right.

To solve it, a network must learn to store the marked symbol and no other. But only the last chunk has a loss, and the
mark is in the first. Three networks see the same chunks of the same sequences; no sequence comes twice:

- rtrl: ELSTM, whose traces carry the influence of every weight from chunk to chunk.
- tbptt: the same network, with its gradient cut at the start of the chunk.
- lstm: keras.layers.LSTM(stateful=True), whose gradient is cut there too.

All three carry their state from chunk to chunk. Their forget gates start with a bias that suits the length of the
sequence, its logarithm. The LSTM's input gates start with minus that bias, so that its gates start like those of ELSTM;
with --lstm-bias keras they start with Keras' default biases.

    python examples/long_recall.py --seeds 3 --out runs/long_recall
    python examples/long_recall.py --length 50 --batches 400 --out runs/one_chunk     # one chunk: all three learn it

The three take turns, an epoch each, so that other work on the machine slows all alike. A network that has solved the
task stops. --out gets config.json, metrics.csv and learning_curve.png, which is drawn after every seed. A killed run
leaves its metrics so far; it cannot be resumed.
"""

import argparse
import csv
import json
import math
import statistics
import sys
import time
from pathlib import Path

import tensorflow as tf

from keras_rtrl.layers import ELSTM

keras = tf.keras  # Keras 3, or tf-keras with TF_USE_LEGACY_KERAS=1

STREAMS = 64
SYMBOLS = 8
EPOCH, HELD_OUT = 20, 8  # batches of STREAMS sequences
SOLVED = 0.99
MODELS = ("rtrl", "tbptt", "lstm")


def chunks(args, seed, first, batches):
    """Chunks (x [B, T, 9], symbols to name [B, T], weights [B, T]) of batches number first, first + 1, ... in order."""
    count = args.length // args.chunk

    def cut(array):  # [B, length, ...] -> [count, B, T, ...]
        split = tf.reshape(array, (STREAMS, count, args.chunk, *array.shape[2:]))
        return tf.experimental.numpy.moveaxis(split, 1, 0)

    def sequences(number):
        shape = (STREAMS, args.length)
        symbols = tf.random.stateless_uniform(shape, (seed, number), 0, SYMBOLS, tf.int64)
        place = tf.broadcast_to(tf.range(args.length), shape)
        x = tf.concat([tf.one_hot(symbols, SYMBOLS), tf.cast(place[..., None] == 0, tf.float32)], axis=-1)
        # The weight makes Keras' mean over all steps the loss of a sequence.
        weight = args.length * tf.cast(place == args.length - 1, tf.float32)
        return cut(x), cut(tf.repeat(symbols[:, :1], args.length, axis=1)), cut(weight)

    numbers = tf.data.Dataset.range(first, first + batches)
    return numbers.map(sequences).unbatch().prefetch(count)


class FreshState(keras.callbacks.Callback):
    """Zeroes the state before each batch of sequences: one execution, thanks to steps_per_execution."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def on_train_batch_begin(self, batch, logs=None):
        self.layer.reset_states()

    def on_test_batch_begin(self, batch, logs=None):
        self.layer.reset_states()


def lstm_bias(bias):
    """An initialiser of keras.layers.LSTM's bias: what the forget gate has more, the input gate has less."""

    def initial(shape, dtype=None):
        part = tf.ones(shape[0] // 4, dtype)
        return tf.concat([-bias * part, bias * part, 0 * part, 0 * part], axis=0)  # input, forget, candidate, output

    return initial


def make_model(kind, args):
    """A compiled model, and its recurrent layer."""
    common = {"stateful": True, "return_sequences": True}
    if kind != "lstm":
        layer = ELSTM(args.units, forget_bias=args.forget_bias, gradient=kind, **common)
    elif args.lstm_bias == "keras":
        layer = keras.layers.LSTM(args.units, **common)
    else:
        bias = lstm_bias(args.forget_bias)
        layer = keras.layers.LSTM(args.units, bias_initializer=bias, unit_forget_bias=False, **common)
    x = keras.Input((args.chunk, SYMBOLS + 1), STREAMS)
    model = keras.Model(x, keras.layers.Dense(SYMBOLS)(layer(x)))
    model.compile(
        keras.optimizers.Adam(args.rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        steps_per_execution=args.length // args.chunk,
    )
    return model, layer


def run(seed, args, write):
    """The models of one seed in turn, epoch by epoch; `write` receives a row for each."""
    count = args.length // args.chunk
    held_out = chunks(args, 2 * seed, 0, HELD_OUT)
    models = {}
    for kind in args.models:
        keras.utils.set_random_seed(seed)
        models[kind] = make_model(kind, args)
    for epoch in range(-(-args.batches // EPOCH)):
        for kind, (model, layer) in list(models.items()):
            print(f"seed {seed}, {kind}")
            begin, cpu = time.monotonic(), time.process_time()
            fresh = FreshState(layer)
            history = model.fit(
                chunks(args, 2 * seed + 1, epoch * EPOCH, EPOCH),
                initial_epoch=epoch,
                epochs=epoch + 1,
                steps_per_epoch=EPOCH * count,
                shuffle=False,
                callbacks=[fresh],
            )
            seconds, cpu = time.monotonic() - begin, time.process_time() - cpu
            scores = model.evaluate(held_out, steps=HELD_OUT * count, callbacks=[fresh], return_dict=True)
            row = {
                "seed": seed,
                "model": kind,
                "sequences": (epoch + 1) * EPOCH * STREAMS,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(cpu, 2),
                "loss": round(history.history["loss"][-1], 5),
                "held_out_loss": round(scores["loss"], 5),
                "held_out_accuracy": round(scores["accuracy"], 5),
            }
            write(row)
            if row["held_out_accuracy"] >= SOLVED:
                del models[kind]


def report(rows, args):
    """Lines that say, for each model, how many seeds solved it and what a sequence cost."""
    for kind in args.models:
        of_kind = [row for row in rows if row["model"] == kind]
        last = {row["seed"]: row for row in of_kind}
        later = [row for row in of_kind if row["sequences"] > EPOCH * STREAMS] or of_kind  # the first epoch traces
        accuracies = ", ".join(f"{100 * row['held_out_accuracy']:.1f} %" for row in last.values())
        costs = [statistics.median(row[name] for row in later) / EPOCH for name in ("seconds", "cpu_seconds")]
        print(
            f"{kind}: solved {sum(row['held_out_accuracy'] >= SOLVED for row in last.values())} of {len(last)};"
            f" held-out sequences right at the end {accuracies};"
            f" a batch of sequences took {costs[0]:.2f} s, {costs[1]:.2f} s of them on the CPU (medians)"
        )


def plot(rows, args):
    """Writes the learning curves: one line a seed, one colour a model."""
    from matplotlib.figure import Figure

    labels = {"rtrl": "ELSTM, RTRL", "tbptt": "ELSTM, truncated BPTT", "lstm": "keras.layers.LSTM"}
    styles = dict(zip(MODELS, ("o-", "-", "--"), strict=True))  # two of them lie on one another at chance
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for i, kind in enumerate(args.models):
        label = labels[kind]
        for seed in range(1, args.seeds + 1):
            curve = [row for row in rows if row["model"] == kind and row["seed"] == seed]
            x = [row["sequences"] for row in curve]
            y = [100 * row["held_out_accuracy"] for row in curve]
            axis.plot(x, y, styles[kind], color=f"C{i}", label=label, linewidth=1.2, markersize=3)
            label = None
    axis.axhline(100 / SYMBOLS, color="k", linewidth=0.5, linestyle=":", label="chance")
    axis.set(xlabel="training sequences", ylabel="held-out sequences right, %", ylim=(0, 102))
    axis.set_title(f"recall over {args.length} steps from chunks of {args.chunk}")
    axis.legend(loc="upper left")
    figure.savefig(args.out / "learning_curve.png", dpi=120)


def number(kind, holds, expected):
    """A type for argparse: a number of that kind for which `holds`."""

    def parse_number(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not abs(value) < float("inf") or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return value

    return parse_number


def parse(words=None):
    whole = number(int, lambda value: value >= 1, "a whole number of at least 1")
    positive = number(float, lambda value: value > 0, "a number above 0")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=MODELS, default=MODELS, help="which of the three")
    add("--length", type=whole, default=1000, help="steps of a sequence, a multiple of --chunk")
    add("--chunk", type=whole, default=50, help="steps a batch that `fit` sees")
    add("--units", type=whole, default=64, help="units of the recurrent layer")
    bias = number(float, lambda value: True, "a number")
    add("--forget-bias", type=bias, help="initial bias of the forget gates; left out: log(length)")
    add("--lstm-bias", choices=("same", "keras"), default="same", help="the LSTM's: by --forget-bias, or Keras' own")
    add("--rate", type=positive, default=1e-2, help="Adam's step size")
    add("--batches", type=whole, default=140, help=f"batches of {STREAMS} sequences, rounded up to whole epochs")
    add("--seeds", type=whole, default=1, help="number of seeds, 1, 2, ...: of weights and sequences")
    add("--out", type=Path, default=Path("runs/long_recall"), help="new folder for the results")
    args = parser.parse_args(words)
    if args.length % args.chunk:
        parser.error(f"argument --length: must be a multiple of --chunk = {args.chunk}, got {args.length}")
    if args.forget_bias is None:
        args.forget_bias = math.log(args.length)
    return args


def main(words=None):
    args = parse(words)
    try:
        args.out.mkdir(parents=True)
    except OSError as error:
        sys.exit(f"error: --out must be a folder that does not exist yet and can be made: {error}")
    config = {name: value for name, value in vars(args).items() if name != "out"}
    config |= {"streams": STREAMS, "symbols": SYMBOLS, "tensorflow": tf.__version__}
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    rows = []
    with open(args.out / "metrics.csv", "w", newline="") as file:

        def write(row):
            writer = csv.DictWriter(file, row)
            if not rows:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            rows.append(row)

        for seed in range(1, args.seeds + 1):
            run(seed, args, write)
            plot(rows, args)
    report(rows, args)


if __name__ == "__main__":
    main()
