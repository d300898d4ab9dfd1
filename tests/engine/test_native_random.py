"""The native op against its twin on random cases with NaN, infinities, denormals, resets, masks, empty dimensions."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.cells import ELSTMCell, RTUCell
from keras_rtrl.engine import Carry, carry_shapes, chunked, native, streaming

REASON = native.info()["why_not"]
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"the native op: {REASON}")

CELLS = (
    ELSTMCell,
    RTUCell,
    *(lambda n, f=f: RTUCell(n, recurrence="nonlinear", activation=f) for f in ("relu", "tanh", "linear")),
)
WRONG = (np.nan, np.inf, -np.inf, 1e-310, 0.0)
RTOL = {"float64": 1e-12, "float32": 2e-5}
SMALLEST = {"float64": 1e-3, "float32": 1e-2}  # scale of the errors of terms that cancel, and of a gate's rest, 1 - f


class Drawn:
    """One random case: a cell, its parameters, a chunk and a carry, some of whose numbers are wrong."""

    def __init__(self, seed):
        rng = self.rng = np.random.default_rng(seed)
        self.dtype = "float32" if rng.random() < 0.3 else "float64"
        self.batch, self.steps, inputs = (
            int(rng.choice(sizes)) for sizes in ((0, 1, 2, 3), (1, 2, 5, 9), (0, 1, 3, 7))
        )
        cell = self.cell = CELLS[rng.integers(len(CELLS))](int(rng.choice((1, 3, 9, 17))))
        n, m = cell.units, cell.components
        self.gradient = chunked.GRADIENTS[rng.integers(3)]
        self.traces = bool(rng.random() < 0.8)
        self.kernel = 0.7 * self.normal(inputs, len(cell.gates) * n)
        self.rho = {name: 0.5 * self.normal(n) - 0.5 for name in cell.unit_names}
        share = rng.choice((0.0, 0.02, 0.3))
        self.x = self.spoilt(self.normal(self.batch, self.steps, inputs), share)
        self.carry = Carry(*(self.spoilt(self.normal(self.batch, *s), share) for s in carry_shapes(cell, inputs)))
        self.reset = self.mask = None
        if rng.random() < 0.8:
            self.reset = rng.random((self.batch, self.steps)) < rng.choice((0.1, 0.4))
        if rng.random() < 0.5:
            self.mask = rng.random((self.batch, self.steps)) < 0.8
        # Of the loss: nothing before some step, in some streams nothing at all, and of some states nothing.
        self.e = self.normal(self.batch, self.steps, n, m)
        self.e[:, : rng.integers(self.steps + 1)] = 0
        self.e[rng.random(self.batch) < 0.2] = 0
        self.e[rng.random(self.e.shape) < 0.1] = 0

    def normal(self, *shape):
        return self.rng.normal(size=shape)

    def spoilt(self, values, share):
        return np.where(self.rng.random(values.shape) < share, self.rng.choice(WRONG, values.shape), values)

    def run(self, implementation, dtype):
        """Everything that the chunk and the streaming step give."""
        cell = self.cell
        kernel, rho, x, carry, e = tf.nest.map_structure(
            lambda v: tf.constant(v, dtype), (self.kernel, self.rho, self.x, tuple(self.carry), self.e)
        )
        carry = Carry(*carry) if self.traces else Carry(carry[0])
        with tf.GradientTape() as tape:
            tape.watch((kernel, rho, x))
            states, new = chunked.run(
                cell, kernel, rho, x, carry, self.reset, self.mask, self.gradient, implementation=implementation
            )
        d_kernel, d_rho, d_x = tape.gradient(states, (kernel, rho, x), output_gradients=tf.unstack(e, axis=-1))
        found = {"states": tf.stack(states), **new._asdict(), "dL/dW": d_kernel, **d_rho, "dL/dx": d_x}
        if self.traces:
            own = Carry(*map(tf.Variable, carry))
            reset = None if self.reset is None else self.reset[:, 0]
            params = {"kernel": kernel, **rho}
            state, pending = streaming.forward(cell, params, own, x[:, 0], reset, implementation=implementation)
            sums = streaming.update(own, pending, tf.stack([e[:, 0], e[:, -1]]))
            found |= {f"streaming {name}": v for name, v in {"new": state, **own._asdict(), **sums}.items()}
        return {name: np.asarray(value, "float64") for name, value in found.items() if value is not None}


def check(seed):
    """The native op in the case's dtype equals the twin in float64: NaN and infinities in the same places."""
    case = Drawn(seed)
    got, want = case.run("native", case.dtype), case.run("tf", "float64")
    assert got.keys() == want.keys()
    for name, value in want.items():
        where = f"seed {seed}, {type(case.cell).__name__} in {case.dtype}: {name}"
        finite = np.isfinite(value)
        np.testing.assert_array_equal(np.isfinite(got[name]), finite, err_msg=where)
        scale = max(np.abs(value[finite]).max(initial=0.0), SMALLEST[case.dtype])
        np.testing.assert_allclose(
            got[name][finite], value[finite], rtol=0, atol=RTOL[case.dtype] * scale, err_msg=where
        )


def test_random_cases():
    for seed in range(60):
        check(seed)


@pytest.mark.slow
def test_ten_thousand_random_cases():
    for seed in range(10_000):
        check(seed)
