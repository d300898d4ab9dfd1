"""Exact RTRL over a chunk of T steps at once (rtrl-math.md, section 3).

Outputs, gradients and final traces equal those of `reference`; traces are read and written once a chunk, for any T.
Two implementations: the native op, and its twin in plain TensorFlow, which defines it.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from keras_rtrl.engine import native
from keras_rtrl.engine.blocks import dense, dot, kept, matmul, matvec, matvec_transposed, product, rows, scan, times
from keras_rtrl.engine.carry import Carry, carry_shapes
from keras_rtrl.engine.cell import ByName, RTRLCell, State, local_derivatives

GRADIENTS = ("rtrl", "tbptt", "instant")


# Long by its arguments and its docstring.
def run(
    cell: RTRLCell,
    kernel: tf.Tensor,
    rho: ByName,
    x: tf.Tensor,
    carry: Carry,
    reset: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    gradient: str = "rtrl",
    traces: bool | None = None,
    implementation: str = "auto",
) -> tuple[State, Carry]:
    """States of a chunk, differentiable with respect to `x`, `kernel` and `rho`, and the carry after it.

    Args:
      cell: an `RTRLCell`.
      kernel: W [D, G N].
      rho: per-unit parameters by name, each [N].
      x: inputs [B, T, D].
      carry: `Carry` before the chunk. Its gradient is None in every mode.
      reset: [B, T] bool, true if a new episode starts with x_t; or None.
      mask: [B, T] bool, false if x_t contributes nothing; or None.
      gradient: "rtrl" (all history carried, through the carry's traces), "tbptt" (inside the chunk), "instant"
        (inside the step).
      traces: whether the carry returned has traces; None: if the carry given has them. True with a carry that has
        none starts from zero traces.
      implementation: "auto", "tf" or "native"; see `native.choose`.

    Returns:
      The state as a tuple of m tensors [B, T, N], and the carry after step T. Cotangents of the carry's traces are
      ignored; one of its state counts as one more on the last step.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient must be one of {GRADIENTS}, got {gradient!r}.")
    traces = carry.has_traces if traces is None else traces
    old = tf.nest.map_structure(tf.stop_gradient, carry)
    names = cell.unit_names
    if implementation == "auto" and x.shape[1] == 1 and not traces:
        implementation = "tf"  # acting gains nothing from the op, and policies saved without it load anywhere
    make = _Native if native.choose(implementation, cell, x.dtype) else _Twin

    @tf.custom_gradient
    def chunk(x, kernel, *units):
        # Tapes must not record the loops inside: under nested tapes XLA cannot compile what they would make of them.
        x, kernel, *units = (tf.stop_gradient(value) for value in (x, kernel, *units))
        if mask is not None:
            x = tf.where(mask[..., None], x, tf.zeros_like(x))  # padding may hold anything
        forward = make(cell, kernel, dict(zip(names, units, strict=True)), x, old, reset, mask)
        final = forward.final_traces() if traces else ()

        @tf.custom_gradient
        def first_order(*cotangents):
            cotangents = tuple(tf.stop_gradient(e) for e in cotangents)
            gradients = forward.gradients(cotangents, gradient)
            return gradients, lambda *_: _refuse_second_order(forward.states)

        def grad(*cotangents):
            # Of the traces' cotangents nothing is used: the carry is a value.
            return first_order(*cotangents[: cell.components])

        return (*forward.states, *final), grad

    outputs = chunk(x, kernel, *(rho[name] for name in names))
    states = tuple(outputs[: cell.components])
    last = tf.stack([s[:, -1] for s in states], axis=-1)
    return states, Carry(last, *outputs[cell.components :])


def _refuse_second_order(states):
    message = "The RTRL gradient of a recurrent layer cannot itself be differentiated."
    if tf.executing_eagerly():
        raise TypeError(message)
    # TensorFlow traces this for any function under nested tapes, so only running it may fail; XLA drops assertions.
    with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
        return tuple(tf.fill(tf.shape(s), tf.constant(float("nan"), s.dtype)) for s in states)


class _Native:
    """A chunk by the native op."""

    def __init__(self, cell, kernel, rho, x, carry, reset, mask):
        self._cell, self._kernel, self._rho, self._x, self._carry = cell, kernel, rho, x, carry
        self._flags = (reset, mask)
        saved, states = native.forward(cell, carry.state, product(x, kernel), rho, reset, mask)
        # Functions under nested tapes ask for the gradients of what the backward pass takes from the forward pass.
        self._saved, self.states = tf.stop_gradient(saved), tuple(tf.stop_gradient(s) for s in states)

    def final_traces(self):
        """S and r after the chunk."""
        old = self._carry
        S, r = (old.S, old.r) if old.has_traces else (None, None)
        return native.trace(self._cell, old.state, self._x, self._saved, self.states, S, r, self._rho, *self._flags)

    def gradients(self, cotangents, gradient):
        """Gradients with respect to x, the kernel and each per-unit parameter."""
        cell, x, old = self._cell, self._x, self._carry
        du, d_rho, start, used = native.adjoint(
            cell, old.state, self._saved, self.states, cotangents, self._rho, *self._flags, gradient == "instant"
        )
        d_kernel = _kernel_gradient(x, du, used)
        if gradient == "rtrl" and old.has_traces:
            d_kernel, d_rho = native.contract(cell, start, old.S, old.r, d_kernel, d_rho)
        else:
            d_rho = tf.reduce_sum(d_rho, 0)
        d_x = product(du, self._kernel, transpose_b=True)
        return (d_x, d_kernel, *tf.unstack(d_rho, len(cell.unit_names)))


class _Twin:
    """A chunk in plain TensorFlow. Inside, arrays are time-major [T, B, N] and a state is a tuple of its components."""

    def __init__(self, cell, kernel, rho, x, carry, reset, mask):
        self._cell, self._kernel, self._rho, self._x, self._carry = cell, kernel, rho, x, carry
        self._k = None if reset is None else tf.cast(~tf.transpose(reset), x.dtype)[..., None]  # [T, B, 1]
        self._mask = None if mask is None else tf.transpose(mask)[..., None]
        u = product(tf.transpose(x, (1, 0, 2)), kernel)
        self._u = dict(zip(cell.gates, tf.split(u, len(cell.gates), axis=-1), strict=True))
        self._c = cell.coefficients(rho)
        start = tuple(tf.unstack(carry.state, axis=-1))

        def step(state, now):
            u, k, keep = now
            state = kept(k, state)
            new = cell.phi(state, u, self._c)
            if keep is not None:
                new = tuple(tf.where(keep, n, s) for n, s in zip(new, state, strict=True))
            return new, new

        _, self._states = scan(step, start, (self._u, self._k, self._mask))
        self._start = start
        self._local = None
        self.states = tuple(_swap(s) for s in self._states)

    def _derivatives(self):
        """J, a and v of every step, each entry [T, B, N], with resets applied, but not masks."""
        states = self._states
        previous = tuple(tf.concat([s0[None], s[:-1]], 0) for s0, s in zip(self._start, states, strict=True))
        J, a, v = local_derivatives(self._cell, kept(self._k, previous), self._u, self._rho, self._c)
        return kept(self._k, dense(J, states[0])), a, v

    def _unmasked(self, block):
        """`block` with zeros at masked steps."""
        return kept(None if self._mask is None else tf.cast(self._mask, self._x.dtype), block)

    @staticmethod
    def _unless_masked(keep, moved, given):
        """`moved`, what a step makes of `given`, or `given` itself at masked steps."""
        return moved if keep is None else tf.nest.map_structure(lambda m, g: tf.where(keep, m, g), moved, given)

    def final_traces(self):
        """S and r after the chunk: the suffix products Q_t backward, then one batched GEMM."""
        cell, x, old = self._cell, self._x, self._carry
        # Serves the gradient too. Without traces it is made there, in whatever graph the gradient is traced.
        self._local = J, a, v = self._derivatives()

        def step(suffix, now):
            J_t, k, keep = now
            return self._unless_masked(keep, matmul(suffix, J_t), suffix if keep is None else kept(k, suffix)), suffix

        like = self._states[0]
        one, zero = tf.ones_like(like[0]), tf.zeros_like(like[0])
        m = range(cell.components)
        identity = tuple(tuple(one if i == j else zero for j in m) for i in m)
        P, Q = scan(step, identity, (J, self._k, self._mask), reverse=True)
        Q = self._unmasked(Q)

        def stack(blocks):  # [T, B, blocks, N, m]
            return tf.stack([tf.stack(dense(matvec(Q, block), like), axis=-1) for block in blocks], axis=2)

        batch = tf.shape(x)[0]
        shapes = carry_shapes(cell, x.shape[-1])
        driven = stack([a[gate] for gate in cell.stored_gates])
        if self._k is not None and x.shape[1] != 1:  # the steps before the last reset are cut off (LiteRT: no cumprod)
            x = kept(_swap(tf.math.cumprod(self._k, exclusive=True, reverse=True)), x)
        driven = tf.reshape(driven, (tf.shape(driven)[0], batch, -1))
        S = tf.reshape(tf.matmul(x, _swap(driven), transpose_a=True), (batch, *shapes.S))
        if cell.unit_names:
            r = tf.reduce_sum(stack([v[name] for name in cell.unit_names]), axis=0)
        else:
            r = tf.zeros((batch, *shapes.r), x.dtype)
        if old.has_traces:
            S += apply_block(P, old.S)
            r += apply_block(P, old.r)
        return S, r

    def gradients(self, cotangents, gradient):
        """Gradients with respect to x, the kernel and each per-unit parameter."""
        cell, x, old = self._cell, self._x, self._carry
        J, a, v = self._derivatives() if self._local is None else self._local
        cotangents = tuple(_swap(e) for e in cotangents)
        if gradient == "instant":
            adjoint = cotangents
        else:
            # l_t = e_t + J_{t+1}' l_{t+1}; what is carried is J_{t+1}' l_{t+1}, at the end J_1' l_1.
            def step(carried, now):
                e, J_t, k, keep = now
                adjoint_t = tuple(e_i + z for e_i, z in zip(e, carried, strict=True))
                return kept(k, self._unless_masked(keep, matvec_transposed(J_t, adjoint_t), adjoint_t)), adjoint_t

            zero = tuple(tf.zeros_like(e[0]) for e in cotangents)
            start, adjoint = scan(step, zero, (cotangents, J, self._k, self._mask), reverse=True)

        adjoint = self._unmasked(adjoint)
        by_gate = dict(a)
        for gate, (source, rotation) in cell.trace_rotations.items():
            by_gate[gate] = matvec(rotation, a[source])
        zero = tf.zeros_like(adjoint[0])
        du = _swap(tf.concat([_or(dot(adjoint, by_gate[gate]), zero) for gate in cell.gates], axis=-1))  # [B, T, G N]
        used = functools.reduce(tf.logical_or, (tf.reduce_any(tf.not_equal(e, 0), -1) for e in adjoint))
        d_kernel = _kernel_gradient(x, du, tf.transpose(used))
        d_x = product(du, self._kernel, transpose_b=True)
        d_unit = [tf.reduce_sum(_or(dot(adjoint, v[name]), zero), (0, 1)) for name in cell.unit_names]
        if gradient == "rtrl" and old.has_traces:
            d_kernel += _contract(cell, start, old.S)
            q = tf.stack(start, axis=-1)
            if d_unit:
                history = tf.unstack(tf.reduce_sum(times(q[:, None], old.r), (0, -1)))
                d_unit = [d + h for d, h in zip(d_unit, history, strict=True)]
        return (d_x, d_kernel, *d_unit)


def _kernel_gradient(x, du, used):
    """x' du [D, G N] of the steps that are used [B, T]: elsewhere du is 0, and x may be NaN or infinite."""
    return tf.matmul(rows(kept(tf.cast(used, x.dtype)[..., None], x)), rows(du), transpose_a=True)


def _swap(x):
    """Batch-major from time-major and back: the first two of three dimensions."""
    return tf.transpose(x, (1, 0, 2))


def apply_block(block: Sequence[Sequence[tf.Tensor]], trace: tf.Tensor) -> tf.Tensor:
    """`block` (m rows of m tensors [B, N]) times a trace [B, ..., N, m]."""
    inner = (1,) * (trace.shape.rank - 3)
    total = 0.0
    for j in range(trace.shape[-1]):
        column = tf.stack([row[j] for row in block], axis=-1)  # [B, N, m]
        shape = tf.shape(column)
        total += times(tf.reshape(column, (shape[0], *inner, shape[1], shape[2])), trace[..., j : j + 1])
    return total


def _contract(cell, q, S):
    """sum_b q . S_0 for every gate: [D, G N]; `q` is m tensors [B, N]."""
    return tf.concat([_contract_gate(cell, gate, q, S) for gate in cell.gates], axis=-1)


def _contract_gate(cell, gate, q, S):
    source, rotation = cell.trace_rotations.get(gate, (gate, None))
    if rotation is not None:
        q = matvec_transposed(rotation, q)  # q . (M S) = (M' q) . S
    trace = S[:, :, cell.stored_gates.index(source)]  # [B, D, N, m]
    like = next(entry for entry in q if entry is not None)
    return tf.reduce_sum(times(tf.stack(dense(q, like), axis=-1)[:, None], trace), (0, -1))


def _or(value, default):
    return default if value is None else value
