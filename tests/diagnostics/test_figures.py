"""Memory lengths of decays that are known; the Jacobians behind them."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl import diagnostics
from keras_rtrl.cells import ELSTMCell, RTUCell
from keras_rtrl.testing.proofs import Case

B, T, N = 2, 13, 3


def length(J, mask=None):
    """Memory length from entries [B, T, N], or m rows of m such."""
    J = J if isinstance(J, tuple) else ((J,),)
    J = tf.nest.map_structure(lambda entry: tf.constant(np.broadcast_to(entry, (B, T, N)).astype("float32")), J)
    return diagnostics.memory_length(diagnostics.decay(J, None if mask is None else tf.constant(mask)))


@pytest.mark.parametrize("rho", [0.0, 0.3, -0.9, 0.999, 0.99999])
def test_constant_decay(rho):
    np.testing.assert_allclose(length(rho), 1 / (1 - abs(rho)), rtol=1e-2)


def test_each_unit_has_its_own():
    np.testing.assert_allclose(length(np.array([0.5, 0.9, 0.99])), [2, 10, 100], rtol=1e-3)


@pytest.mark.parametrize("rho", [1.0, 1.2])
def test_endless_memory_is_the_cap(rho):
    np.testing.assert_array_equal(length(rho), diagnostics.MEMORY_CAP)


@pytest.mark.parametrize("radius", [0.5, 0.95])
def test_turning_costs_nothing(radius):
    cos, sin = radius * np.cos(1.1), radius * np.sin(1.1)
    np.testing.assert_allclose(length(((cos, -sin), (sin, cos))), 1 / (1 - radius), rtol=1e-3)


def test_norm_is_of_the_product():
    """A matrix whose norm is 2 and whose square is zero: nothing is left after two steps."""
    np.testing.assert_allclose(length(((0.0, 2.0), (0.0, 0.0))), 1 + 2)


def test_state_replaced_now_and_then():
    rng = np.random.default_rng(0)
    J = tf.constant((rng.random((200, 64, N)) > 0.1).astype("float32"))
    np.testing.assert_allclose(diagnostics.memory_length(diagnostics.decay(((J,),))), 10, rtol=0.2)


def test_masked_steps_do_not_count():
    mask = np.arange(T) % 3 != 1
    J = np.where(mask[None, :, None], 0.9, np.nan)
    np.testing.assert_allclose(length(J, np.tile(mask, (B, 1))), 10, rtol=1e-3)
    one = np.zeros((B, T), bool)
    one[0, 5] = True
    np.testing.assert_allclose(length(0.9, one), 10, rtol=1e-3)  # one step of one stream
    assert np.isnan(length(0.9, np.zeros((B, T), bool))).all()


@pytest.mark.parametrize(
    "cell", [ELSTMCell(N), RTUCell(N, recurrence="nonlinear", activation="tanh")], ids=["elstm", "rtu"]
)
def test_jacobians_are_derivatives_of_the_states(cell):
    case = Case(cell)
    reset = tf.zeros_like(case.reset)
    states, _ = case.run(case.x, case.carry, reset, None)
    J = diagnostics.jacobians(
        cell, kernel=case.kernel, rho=case.rho, x=case.x, start=case.carry.state, states=states, reset=reset
    )
    t, step = 3, 1e-6
    before = tf.stack([s[:, t - 1] for s in states], axis=-1)
    for j in range(cell.components):
        sides = []
        for sign in (1, -1):
            moved = before + sign * step * tf.one_hot(j, cell.components, dtype=before.dtype)
            after, _ = case.run(case.x[:, t : t + 1], case.carry._replace(state=moved), reset[:, :1], None)
            sides.append(after)
        for i in range(cell.components):
            slope = (sides[0][i] - sides[1][i])[:, 0] / (2 * step)
            np.testing.assert_allclose(J[i][j][:, t], slope, rtol=1e-5, atol=1e-8)


def test_reset_is_no_part_of_a_jacobian():
    case = Case(RTUCell(N))
    states, _ = case.run(case.x, case.carry, case.reset, None)
    assert np.any(case.reset)
    J = diagnostics.jacobians(
        case.cell,
        kernel=case.kernel,
        rho=case.rho,
        x=case.x,
        start=case.carry.state,
        states=states,
        reset=case.reset,
    )
    radius = np.exp(-np.exp(case.rho["nu"]))
    lengths = diagnostics.memory_length(diagnostics.decay(J))
    np.testing.assert_allclose(lengths, 1 / (1 - radius), rtol=1e-6)
