"""The one-pass form against step by step."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.cells import ELSTMCell, RTUCell
from keras_rtrl.engine import Carry, native, reference, streaming
from keras_rtrl.testing.proofs import Case

CELLS = [ELSTMCell(3), RTUCell(3), RTUCell(3, recurrence="nonlinear", activation="tanh")]


@pytest.mark.parametrize("cell", CELLS, ids=["elstm", "rtu-linear", "rtu-nonlinear"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_update_equals_reference(cell, jit_compile):
    case = Case(cell)
    params = {"kernel": case.kernel, **case.rho}
    carry = Carry(*(tf.Variable(value) for value in case.carry))
    cotangents = tf.constant(np.random.default_rng(0).normal(size=(2, *case.e.shape)))  # K = 2
    steps = reference.run(cell, case.kernel, case.rho, case.x, case.carry, case.reset)

    @tf.function(jit_compile=jit_compile)
    def one(x, reset, e):
        state, pending = streaming.forward(cell, params, carry, x, reset)
        return state, streaming.update(carry, pending, e)

    for t, expected in enumerate(steps):
        state, gradients = one(case.x[:, t], case.reset[:, t], cotangents[:, :, t])
        np.testing.assert_allclose(state, expected.state, rtol=1e-10)
        for name, got, want in zip(Carry._fields, carry, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)
        for k in range(2):
            wanted = reference.gradients(cell, [expected], cotangents[k, :, t : t + 1])
            for name, want in wanted.items():
                np.testing.assert_allclose(gradients[name][k], want, rtol=1e-9, atol=1e-12, err_msg=name)


def test_forward_alone_changes_nothing():
    case = Case(CELLS[0])
    carry = Carry(*(tf.Variable(value) for value in case.carry))
    streaming.forward(case.cell, {"kernel": case.kernel, **case.rho}, carry, case.x[:, 0])
    for got, want in zip(carry, case.carry, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("cell", CELLS, ids=["elstm", "rtu-linear", "rtu-nonlinear"])
@pytest.mark.parametrize("mode", ["tf", "native", "xla"])
def test_gradient_of_the_input_is_that_of_one_step_and_the_only_one(cell, mode):
    if mode == "native" and not native.info()["built"]:
        pytest.skip("the native op is not built")
    case = Case(cell)
    kernel, rho = tf.Variable(case.kernel), {name: tf.Variable(value) for name, value in case.rho.items()}
    carry = Carry(*(tf.Variable(value) for value in case.carry))
    x, e, reset = case.x[:, 0], case.e[:, 0], tf.constant([False, True, False])

    @tf.function(jit_compile=mode == "xla")
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(x)
            state, _ = streaming.forward(
                cell, {"kernel": kernel, **rho}, carry, x, reset, implementation="native" if mode == "native" else "tf"
            )
            loss = tf.reduce_sum(state * e)
        d_x, *others = tape.gradient(loss, [x, *carry, kernel, *rho.values()])
        assert others == [None] * len(others)
        return d_x

    with tf.GradientTape() as tape:
        tape.watch(x)
        start = case.carry.state * tf.cast(~reset, tf.float64)[:, None, None]
        u = dict(zip(cell.gates, tf.split(x @ case.kernel, len(cell.gates), axis=-1), strict=True))
        new = cell.phi(tuple(tf.unstack(start, axis=-1)), u, cell.coefficients(case.rho))
        loss = tf.reduce_sum(tf.stack(new, axis=-1) * e)
    np.testing.assert_allclose(gradients(), tape.gradient(loss, x), rtol=1e-10)
