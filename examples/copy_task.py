"""The copy task, learned online: see a pattern of bits, store it, and repeat it when it has ended.

A sequence holds t bits, t uniform on 1..L, then t blanks. During the blanks the network must repeat the bits in their
order. Only these answers count, in the loss and in every score. A network that only counts the length scores chance,
half of the bits. The task is that of Irie, Gopalakrishnan and Schmidhuber (ICLR 2024): batches of 128, Adam (0.9,
0.995) with epsilon 1e-9, and gradients clipped at a global norm of 1. State and traces are zeroed when a sequence
starts. The weights are updated at every time step (--chunk 1), with traces kept through the updates, or after every
chunk of steps.

The 128 streams have no gaps: when a sequence ends the next begins, by `reset`. So no step is padding. And an update
sees streams at all positions of their sequences; in a padded batch all streams would listen, then all would answer.

--curriculum trains on short patterns first. The held-out sequences always have t on 1..L.

--gradient tbptt trains the same network on the same chunks, but cuts the gradient at the start of the chunk. It shows
what can be learned without traces.

    python examples/copy_task.py --curriculum --out runs/copy-rtrl
    python examples/copy_task.py --curriculum --gradient tbptt --out runs/copy-tbptt

--out gets config.json, metrics.csv and learning_curve.png. A killed run leaves its metrics, and cannot be resumed.
"""

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_rtrl.layers import ELSTM, LRU, RTU

keras = tf.keras  # Keras 3, or tf-keras with TF_USE_LEGACY_KERAS=1

STREAMS = 128
BLANK = 2  # the third token, after the bits 0 and 1
HELD_OUT = 4 * STREAMS  # sequences
BLOCK = 1000  # time steps between two looks at the clock
EVALUATE = 5  # blocks between two evaluations
FIRST, MASTERED = 5, 0.95  # --curriculum: the longest pattern at first, and the share of right bits that lengthens it


class CopyStreams:
    """Copy sequences without end, `streams` at a time, one after another in each stream.

    Args:
      streams: B.
      length: L, the longest pattern; attribute `longest`, at most L, bounds the sequences that begin from then on.
      rng: a numpy Generator.
    """

    def __init__(self, streams, length, rng):
        self.longest, self._length, self._rng = length, length, rng
        self._bits = np.zeros((streams, length), np.int32)
        self._t = np.zeros(streams, np.int64)
        self._position = np.zeros(streams, np.int64)

    def take(self, steps):
        """The next time steps: tokens (0, 1 or BLANK), reset (a sequence starts), bits to repeat, asked (they count).

        Each array is [B, steps], int32 or bool.
        """
        shape = (len(self._t), steps)
        tokens, bits = np.empty(shape, np.int32), np.empty(shape, np.int32)
        reset, asked = np.empty(shape, bool), np.empty(shape, bool)
        rows = np.arange(len(self._t))
        for i in range(steps):
            ended = self._position == 2 * self._t
            count = np.count_nonzero(ended)
            self._t[ended] = self._rng.integers(1, self.longest + 1, count)
            self._bits[ended] = self._rng.integers(0, 2, (count, self._length))
            self._position[ended] = 0
            reset[:, i] = ended
            asked[:, i] = self._position >= self._t
            bits[:, i] = self._bits[rows, self._position - self._t * asked[:, i]]
            tokens[:, i] = np.where(asked[:, i], BLANK, bits[:, i])
            self._position += 1
        return tokens, reset, bits, asked


def held_out(sequences, length, rng):
    """Whole sequences, one a row, as `CopyStreams.take`: what follows the first of each stream is not asked."""
    tokens, reset, bits, asked = CopyStreams(sequences, length, rng).take(2 * length)
    return tokens, reset, bits, asked & (np.cumsum(reset, axis=1) == 1)


def scores(logits, bits, asked):
    """(share of the bits asked for that are right, share of the rows in which all are); every argument [B, T]."""
    right = (np.asarray(logits) > 0) == (np.asarray(bits) == 1)
    return right[asked].mean(), (right | ~asked).all(axis=1).mean()


def make_core(args):
    """The recurrent layer; without traces it is TBPTT's."""
    common = {"gradient": args.gradient, "return_sequences": True, "return_state": True}
    if args.layer == "elstm":
        return ELSTM(args.units, forget_bias=args.forget_bias, **common)
    # Phases past pi would mirror those below it: the inputs are real.
    ring = {"r_min": args.radii[0], "r_max": args.radii[1], "max_phase": math.pi}
    if args.layer == "rtu":
        return RTU(args.units, activation="linear", **ring, **common)
    return LRU(args.units, **ring, **common)


class Copier(tf.Module):
    """The recurrent layer and its read-out.

    What to recall of the state depends on how long the pattern was: features of the read-out are values, linear in the
    state, times gates, which a hidden layer works out.
    """

    def __init__(self, args):
        super().__init__()
        self.core = make_core(args)
        self.value = keras.layers.Dense(args.hidden)
        self.hidden = keras.layers.Dense(args.hidden, "gelu")
        self.gate = keras.layers.Dense(args.hidden, "sigmoid")
        self.head = keras.layers.Dense(1)
        self.core.build((None, None, 3))
        self.value.build((None, None, self.core.output_size))
        self.hidden.build((None, None, self.core.output_size))
        self.gate.build((None, None, args.hidden))
        self.head.build((None, None, args.hidden))
        layers = (self.core, self.value, self.hidden, self.gate, self.head)
        self.weights = [weight for layer in layers for weight in layer.trainable_weights]

    def __call__(self, tokens, reset, carry):
        """Logits [B, T] of the bit being 1, and the carry after the last step."""
        y, *carry = self.core(tf.one_hot(tokens, 3), initial_state=carry, reset=reset)
        y *= tf.math.rsqrt(tf.reduce_mean(tf.square(y), axis=-1, keepdims=True) + 1e-6)  # long memories add up much
        return self.head(self.value(y) * self.gate(self.hidden(y)))[..., 0], tuple(carry)


def make_training(copier, rate, chunk, updates=None):
    """A function of a block of time steps and the carry before it, that makes an update after every chunk.

    The step size falls linearly to 0 over `updates`, if they are given.

    It returns the mean loss, the share of bits right (each before its own update) and the carry after the block.
    """
    if updates is not None:
        rate = keras.optimizers.schedules.PolynomialDecay(rate, updates, end_learning_rate=0.0)
    optimizer = keras.optimizers.Adam(rate, beta_1=0.9, beta_2=0.995, epsilon=1e-9, global_clipnorm=1.0)
    optimizer.build(copier.weights)

    @tf.function
    def train(tokens, reset, bits, asked, carry):
        def cut(array):  # [updates, B, chunk]
            return tf.transpose(tf.reshape(array, (STREAMS, -1, chunk)), (1, 0, 2))

        tokens, reset, bits, asked = cut(tokens), cut(reset), cut(bits), cut(asked)
        total = said = right = 0.0
        for i in tf.range(tf.shape(tokens)[0]):
            with tf.GradientTape() as tape:
                logits, carry = copier(tokens[i], reset[i], carry)
                errors = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(bits[i], tf.float32), logits)
                weights = tf.cast(asked[i], tf.float32)
                loss = tf.math.divide_no_nan(tf.reduce_sum(weights * errors), tf.reduce_sum(weights))
            gradients = tape.gradient(loss, copier.weights)
            optimizer.apply_gradients(zip(gradients, copier.weights, strict=True))
            total += loss
            said += tf.reduce_sum(weights)
            right += tf.reduce_sum(weights * tf.cast((logits > 0) == (bits[i] == 1), tf.float32))
        return total / tf.cast(tf.shape(tokens)[0], tf.float32), right / said, carry

    return train


def train(args, report=print):
    """One run; returns the rows of its metrics."""
    train_seed, test_seed = np.random.SeedSequence(args.seed).spawn(2)
    keras.utils.set_random_seed(args.seed)
    streams = CopyStreams(STREAMS, args.length, np.random.default_rng(train_seed))
    tokens, reset, bits, asked = held_out(HELD_OUT, args.length, np.random.default_rng(test_seed))
    copier = Copier(args)
    update = make_training(copier, args.rate, args.chunk, -(-args.steps // args.chunk) if args.anneal else None)
    carry = copier.core.get_initial_state(STREAMS, traces=args.gradient == "rtrl")
    answer = tf.function(lambda *inputs: copier(*inputs, copier.core.get_initial_state(STREAMS))[0])
    block = -(-BLOCK // args.chunk) * args.chunk
    if args.steps is not None:
        block = min(block, -(-args.steps // args.chunk) * args.chunk)

    if args.curriculum:
        streams.longest = min(FIRST, args.length)
    rows, losses, step = [], [], 0
    begin = time.monotonic()
    over = False
    with open(args.out / "metrics.csv", "w", newline="") as file:
        while not over:
            longest = streams.longest
            loss, right, carry = update(*streams.take(block), carry)
            losses.append(float(loss))
            if right >= MASTERED:
                streams.longest = min(longest + max(1, longest // 10), args.length)
            step += block
            seconds = time.monotonic() - begin
            over = step >= args.steps if args.steps is not None else seconds >= 60 * args.minutes
            if not over and len(losses) < EVALUATE:
                continue
            parts = [slice(i, i + STREAMS) for i in range(0, HELD_OUT, STREAMS)]  # bounds the memory it takes
            logits = np.concatenate([answer(tokens[part], reset[part]) for part in parts])
            of_bits, of_sequences = scores(logits, bits, asked)
            row = {
                "step": step,
                "updates": step // args.chunk,
                "seconds": round(seconds, 1),
                "longest": longest,
                "loss": round(float(np.mean(losses)), 5),
                "bit_accuracy": round(float(of_bits), 5),
                "sequence_accuracy": round(float(of_sequences), 5),
            }
            if not rows:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            report("  ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.items()))
            rows.append(row)
            losses = []
    return rows


def plot(rows, args):
    """Writes the learning curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    for name in ("bit_accuracy", "sequence_accuracy"):
        axis.plot([row["step"] for row in rows], [100 * row[name] for row in rows], label=name.replace("_", " "))
    axis.axhline(50, color="k", linewidth=0.5, linestyle=":", label="bits, chance")
    axis.set(xlabel=f"time steps, {STREAMS} streams", ylabel="held-out sequences, %", ylim=(0, 102))
    axis.set_title(f"copy, L = {args.length}: {args.layer}, {args.gradient}, chunk {args.chunk}")
    axis.legend()
    figure.savefig(args.out / "learning_curve.png", dpi=120)


def number(kind, holds, expected):
    """A type for argparse: a number of that kind for which `holds`."""

    def parse_number(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not math.isfinite(value) or not holds(value):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text}")
        return value

    return parse_number


def parse(words=None):
    whole = number(int, lambda value: value >= 1, "a whole number of at least 1")
    positive = number(float, lambda value: value > 0, "a number above 0")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--layer", choices=("elstm", "rtu", "lru"), default="rtu")
    add("--gradient", choices=("rtrl", "tbptt"), default="rtrl")
    add("--length", type=whole, default=50, help="L, the longest pattern, bits; the paper: 50 and 500")
    add("--chunk", type=whole, default=10, help="time steps an update; 1: an update at every step")
    add("--units", type=whole, default=128, help="units of the recurrent layer")
    add("--hidden", type=whole, default=256, help="features of the read-out")
    bias = number(float, lambda value: True, "a number")
    add("--forget-bias", type=bias, default=3.0, help="eLSTM: initial bias of its forget gate")
    radius = number(float, lambda value: 0 <= value <= 1, "between 0 and 1")
    add("--radii", type=radius, nargs=2, default=(0.98, 1.0), metavar=("LOW", "HIGH"), help="RTU, LRU: initial radii")
    add("--rate", type=positive, default=3e-3, help="Adam's step size")
    add("--anneal", action="store_true", help="let the step size fall to 0 over --steps")
    seed = number(int, lambda value: 0 <= value < 2**32, "a whole number of at least 0 and below 2**32")
    add("--curriculum", action="store_true", help=f"start with patterns of {FIRST} bits, and lengthen them")
    add("--seed", type=seed, default=1, help="seed of weights, training and held-out sequences")
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument("--steps", type=whole, help="time steps of each stream, rounded up to whole blocks")
    bound.add_argument("--minutes", type=positive, default=15.0, help="wall time, without --steps")
    add("--out", type=Path, default=Path("runs/copy_task"), help="new folder for the results")
    args = parser.parse_args(words)
    if args.anneal and args.steps is None:
        parser.error("argument --anneal: needs --steps, over which the step size falls")
    if args.radii[0] >= args.radii[1]:
        parser.error(f"argument --radii: LOW must be below HIGH, got {args.radii[0]} and {args.radii[1]}")
    return args


def main(words=None):
    args = parse(words)
    try:
        args.out.mkdir(parents=True)
    except OSError as error:
        sys.exit(f"error: --out must be a folder that does not exist yet and can be made: {error}")
    config = {name: value for name, value in vars(args).items() if name != "out"}
    config |= {"streams": STREAMS, "tensorflow": tf.__version__}
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    plot(train(args), args)


if __name__ == "__main__":
    main()
