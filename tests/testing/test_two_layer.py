"""Exact RTRL across two layers, and what a stack's gradient misses beside it."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl._keras import LEGACY, keras
from keras_rtrl.layers import ELSTM, RTU, RTRLStack
from keras_rtrl.testing import TwoLayerRTRL
from keras_rtrl.testing.finite_differences import along, numeric

B, T, D = 2, 16, 3
LAST = 3  # steps whose loss is proved alone: all else is history
LOWER, TOP = "lower", "top"


class Run:
    """A stack with random float64 weights, and its exact gradients over a sequence with a reset."""

    def __init__(self):
        keras.utils.set_random_seed(1)
        rng = np.random.default_rng(1)
        layers = [
            ELSTM(2, dtype="float64"),
            keras.layers.Dense(3, dtype="float64"),
            RTU(2, activation="tanh", r_min=0.8, dtype="float64"),
        ]
        options = dict(norm=True, gate=True, residual=True, return_sequences=True, return_state=True)
        self.stack = RTRLStack(layers, dtype="float64", **options)
        self.stack.build((None, None, D))
        self.variables = [w if LEGACY else w.value for w in self.stack.trainable_weights]
        for variable in self.variables:
            variable.assign(variable + 0.5 * rng.normal(size=variable.shape))
        self.x, self.e = rng.normal(size=(B, T, D)), rng.normal(size=(B, T, D))
        self.reset = np.zeros((B, T), bool)
        self.reset[1, 4] = True
        # The top layer and what follows it. Its norm comes before its recurrence, so it is among the lower.
        top = (layers[-1].name, "value_2", "gate_2")
        names = [(w.name if LEGACY else w.path).split("/") for w in self.stack.trainable_weights]
        self.where = [TOP if any(name in top for name in path) else LOWER for path in names]

        exact = self.exact = TwoLayerRTRL(self.stack, B)
        exact.step(3 * self.x[:, 0])
        exact.reset()  # forgets that step, or every test below fails
        self.outputs, self.gradients = [], []
        for t in range(T):
            self.outputs.append(exact.step(self.x[:, t], self.reset[:, t]))
            self.gradients.append(exact.gradients(self.e[:, t]))
        self.chunk = tf.function(self._chunk)

    def loss(self, first):
        y, *_ = self.stack(self.x, reset=self.reset)
        return tf.reduce_sum((y * self.e)[:, first:])

    def _chunk(self, x, reset, e, carry):
        with tf.GradientTape() as tape:
            y, *carry = self.stack(x, initial_state=carry, reset=reset)
            loss = tf.reduce_sum(y * e)
        return tape.gradient(loss, self.variables), carry

    def of_chunks(self, length):
        """The stack's own gradient, summed over chunks of `length` steps with the carry handed on."""
        carry, total = list(self.stack.get_initial_state(B, traces=True)), 0
        for lo in range(0, T, length):
            part = (v[:, lo : lo + length] for v in (self.x, self.reset, self.e))
            gradients, carry = self.chunk(*map(tf.constant, part), carry)
            total = [np.array(g) + (total[i] if total else 0) for i, g in enumerate(gradients)]
        return total

    def apart(self, got, want, where):
        """Relative distance of two gradients over the weights of `where`."""
        pick = [i for i, w in enumerate(self.where) if w == where]
        difference = sum(np.sum((np.array(got[i]) - want[i]) ** 2) for i in pick)
        return (difference / sum(np.sum(np.array(want[i]) ** 2) for i in pick)) ** 0.5


@pytest.fixture(scope="module")
def run():
    return Run()


def summed(gradients):
    return [sum(np.array(g) for g in each) for each in zip(*gradients, strict=True)]


@pytest.mark.parametrize("first", [0, T - LAST])
def test_exact_gradient_is_bptt_through_the_whole_history(run, first):
    with tf.GradientTape() as tape:
        y, *_ = run.stack(run.x, reset=run.reset)  # one call from zero: nothing is dropped
        loss = tf.reduce_sum((y * run.e)[:, first:])
    np.testing.assert_allclose(tf.stack(run.outputs, 1), y, rtol=1e-10)
    for got, want in zip(summed(run.gradients[first:]), tape.gradient(loss, run.variables), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12)


def test_exact_gradient_is_that_of_finite_differences(run):
    differences, directions = numeric(run.variables, tf.function(lambda: run.loss(T - LAST)))
    np.testing.assert_allclose(along(summed(run.gradients[T - LAST :]), directions), differences, rtol=1e-5, atol=1e-9)


def test_own_traces_are_the_stacks_and_the_cross_layer_trace_is_not_zero(run):
    _, _, S_1, _, _, S_2, _ = run.stack(run.x, reset=run.reset)
    named = {id(w): i for i, w in enumerate(run.stack.trainable_weights)}
    lower, top = run.stack.layers[0], run.stack.layers[-1]
    d_s1, d_s2 = run.exact.traces(named[id(lower.kernel)])
    assert d_s1.shape == (B, 2, 1, D, 4)
    assert d_s2.shape == (B, 2, 2, D, 4)
    own = tf.reshape(d_s1, (B, 2, 1, D, 2, 2))  # [b, n, m, d, gate, n']
    np.testing.assert_allclose(tf.einsum("bnmdgn->bdgnm", own), S_1, rtol=1e-9, atol=1e-12)
    assert np.abs(d_s2).max() > 1e-2
    d_s1, d_s2 = run.exact.traces(named[id(top.kernel)])
    assert not np.any(d_s1)
    stored = tf.einsum("bnmdgn->bdgnm", tf.reshape(d_s2, (B, 2, 2, 3, 2, 2)))[:, :, :1]
    np.testing.assert_allclose(stored, S_2, rtol=1e-9, atol=1e-12)


def test_the_stacks_lower_gradient_becomes_exact_as_the_chunk_grows(run):
    want = summed(run.gradients)
    lengths = (1, 2, 4, 8, T)
    found = {length: run.of_chunks(length) for length in lengths}
    for length in lengths:
        assert run.apart(found[length], want, TOP) < 1e-10
    missed = [run.apart(found[length], want, LOWER) for length in lengths]
    assert missed[0] > 0.1
    assert run.where.count(TOP) == 7
    assert missed[0] > missed[2] > missed[3] > 1e-3
    assert missed[-1] < 1e-10


@pytest.mark.slow
def test_the_program_of_the_docs_prints_what_they_say(capsys):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "exactness.md").read_text()
    program, printed = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(compile(program, "exactness.md", "exec"), {})
    *got, last = capsys.readouterr().out.splitlines()
    *want, rounding = printed.splitlines()
    assert got == want
    assert float(last.split()[-1]) < 1e-13
    assert float(rounding.split()[-1]) < 1e-13


def test_a_reset_clears_what_is_not_finite(run):
    """After a reset streams go on as if there had been no NaN."""
    found = []
    for before in (np.nan, 1.0):
        exact = TwoLayerRTRL(run.stack, B)
        exact.step(np.full((B, D), before))
        y = exact.step(run.x[:, 1], np.ones(B, bool))
        found.append([y, *exact.gradients(run.e[:, 1])])
    for got, want in zip(*found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


BAD = {
    "reset": (lambda run: run.exact.step(run.x[:, 0], np.zeros(B)), TypeError, "reset must be bool, got float64"),
    "one": (lambda run: TwoLayerRTRL(RTRLStack([ELSTM(2)]), B), ValueError, "two RTRL layers, got 1"),
    "unbuilt": (lambda run: TwoLayerRTRL(RTRLStack([ELSTM(2), ELSTM(2)]), B), ValueError, "stack must be built"),
    "no step": (lambda run: TwoLayerRTRL(run.stack, B).gradients(run.e[:, 0]), ValueError, "There is no step yet"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_it_cannot_do_gets_one_clear_error(run, bad):
    make, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        make(run)
