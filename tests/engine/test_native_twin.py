"""The native op against its twin over random shapes, with resets and masks anywhere."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_rtrl.cells import ELSTMCell, RTUCell
from keras_rtrl.engine import chunked, native
from keras_rtrl.testing import proofs

CELLS = {
    "elstm": ELSTMCell,
    "rtu_linear": RTUCell,
    "rtu_relu": lambda units: RTUCell(units, recurrence="nonlinear"),
    "rtu_tanh": lambda units: RTUCell(units, recurrence="nonlinear", activation="tanh"),
    "rtu_identity": lambda units: RTUCell(units, recurrence="nonlinear", activation="linear"),
}

pytestmark = pytest.mark.skipif(not native.info()["built"], reason=str(native.info()["why_not"]))

some = st.one_of(st.integers(1, 9), st.integers(10, 40))


def test_every_kernel_is_tested():
    assert set(CELLS) == set(native.info()["cells"])
    assert all(make(1).native == name for name, make in CELLS.items())


@pytest.mark.parametrize("dtype", proofs.NATIVE_RTOL)
@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    batch=st.integers(0, 3),
    steps=some,
    inputs=st.one_of(st.just(0), some),
    units=st.one_of(some, st.integers(60, 70)),
    gradient=st.sampled_from(chunked.GRADIENTS),
    flags=st.booleans(),
    traces=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_equals_its_twin(name, dtype, batch, steps, inputs, units, gradient, flags, traces, seed):
    case = proofs.Case(CELLS[name](units), seed, batch, steps, inputs)
    proofs.check_native(case, dtype, gradient, flags, traces)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (2, 300, 3, 5), (1, 9, 2, 600), (4, 12, 129, 33), (0, 3, 5, 4), (2, 3, 0, 70), (0, 1, 0, 1)],
    ids=["ones", "long", "wide", "deep", "no streams", "no inputs", "nothing"],
)
def test_edges(name, dtype, shape):
    batch, steps, inputs, units = shape
    for flags in (False, True) if steps < 100 else (dtype == "float64",):
        proofs.check_native(proofs.Case(CELLS[name](units), 5, batch, steps, inputs), dtype, flags=flags)


@pytest.mark.parametrize("name", CELLS)
def test_resets_everywhere(name):
    case = proofs.Case(CELLS[name](11), 6)
    case.reset = case.reset | True
    proofs.check_native(case)


@pytest.mark.parametrize("dtype", proofs.NATIVE_RTOL)
@pytest.mark.parametrize("name", [name for name in CELLS if name.startswith("rtu")])
def test_parameters_that_ran_away(name, dtype):
    case = proofs.Case(CELLS[name](20), 7)
    unit = np.arange(20)
    case.rho["nu"] = tf.where(unit < 4, np.float64(200), case.rho["nu"])
    case.rho["vartheta"] = tf.where((unit > 1) & (unit < 6), np.float64(500), case.rho["vartheta"])
    proofs.check_native(case, dtype)


@pytest.mark.parametrize("name", CELLS)
def test_a_reset_clears_nan_and_inf(name):
    for seed in range(3):
        proofs.check_broken_past(proofs.Case(CELLS[name](11), seed), implementation="native")


def test_a_wrong_gradient_is_seen(monkeypatch):
    contract = native.contract
    monkeypatch.setattr(native, "contract", lambda cell, start, *rest: contract(cell, 1.001 * start, *rest))
    with pytest.raises(AssertionError, match="dL/dW by the native op"):
        proofs.check_native(proofs.Case(ELSTMCell(4)))


@pytest.mark.parametrize("dtype", proofs.NATIVE_RTOL)
@pytest.mark.parametrize("name", CELLS)
def test_inputs_of_every_size(name, dtype):
    """Gates saturate, and nothing overflows on the way."""
    case = proofs.Case(CELLS[name](20), 8, batch=6, steps=7)
    sizes = 10 ** np.random.default_rng(8).uniform(-2, 3.5, size=(6, 7, 1))
    case.x = case.x * sizes
    proofs.check_native(case, dtype)
    carry = case.carry.without_traces()
    states, _ = chunked.run(case.cell, case.kernel, case.rho, case.x * 1e6, carry, implementation="native")
    assert np.isfinite(states).all()
