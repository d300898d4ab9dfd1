"""Arguments of the chunked form; its exactness is proved in tests/conformance."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.cells import ELSTMCell
from keras_rtrl.engine import Carry, chunked
from keras_rtrl.testing.proofs import Case


@pytest.fixture(scope="module")
def case():
    return Case(ELSTMCell(3))


def test_unknown_gradient(case):
    with pytest.raises(ValueError, match="gradient must be one of"):
        case.run(case.x, case.carry, None, None, "bptt")


def test_state_alone_makes_no_traces(case):
    _, carry = case.run(case.x, Carry(case.carry.state), case.reset, case.mask)
    assert not carry.has_traces
    assert len(tf.nest.flatten(carry)) == 1


def test_traces_from_a_state_alone_start_at_zero(case):
    zero = case.zero._replace(state=case.carry.state)
    _, want = case.run(case.x, zero, case.reset, case.mask)
    _, got = chunked.run(
        case.cell, case.kernel, case.rho, case.x, Carry(zero.state), case.reset, case.mask, traces=True
    )
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_float32_agrees_with_float64(case):
    def low(value):
        return tf.cast(value, tf.float32)

    rho = {name: low(value) for name, value in case.rho.items()}
    carry = Carry(*(low(value) for value in case.carry))
    states, got = chunked.run(case.cell, low(case.kernel), rho, low(case.x), carry, case.reset, case.mask)
    wide, want = case.run(case.x, case.carry, case.reset, case.mask)
    assert states[0].dtype == got.S.dtype == tf.float32
    np.testing.assert_allclose(states[0], wide[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.S, want.S, rtol=1e-4, atol=1e-5)
