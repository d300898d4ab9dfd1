"""RTRL step by step: the definition (rtrl-math.md, section 2) against which every other form is proved."""

from collections.abc import Sequence

import tensorflow as tf

from keras_rtrl.engine.blocks import dense, times
from keras_rtrl.engine.carry import Carry
from keras_rtrl.engine.cell import ByName, RTRLCell, local_derivatives


def run(
    cell: RTRLCell,
    kernel: tf.Tensor,
    rho: ByName,
    x: tf.Tensor,
    carry: Carry,
    reset: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
) -> list[Carry]:
    """Carries after each step, traces included.

    Args:
      cell: an `RTRLCell`.
      kernel: W [D, G N].
      rho: per-unit parameters by name, each [N].
      x: inputs [B, T, D] with T known.
      carry: `Carry` before the first step, with traces.
      reset: [B, T] bool, true if a new episode starts with x_t.
      mask: [B, T] bool, false if x_t contributes nothing.

    Returns:
      T carries.
    """
    n = cell.units
    c = cell.coefficients(rho)
    steps = []
    for t in range(x.shape[1]):
        s, S, r = carry
        if reset is not None:
            s, S, r = (tf.where(_like(reset[:, t], value), tf.zeros_like(value), value) for value in (s, S, r))
        x_t = x[:, t]
        u = {gate: tf.matmul(x_t, kernel[:, i * n : (i + 1) * n]) for i, gate in enumerate(cell.gates)}
        state = tuple(tf.unstack(s, axis=-1))
        new = tf.stack(cell.phi(state, u, c), axis=-1)
        local = local_derivatives(cell, state, u, rho, c)
        J = tf.stack([tf.stack(row, axis=-1) for row in dense(local.J, state[0])], axis=-2)  # [B, N, m, m]
        a = tf.stack([tf.stack(dense(local.a[g], state[0]), axis=-1) for g in cell.stored_gates], axis=1)
        new_S = tf.einsum("bnij,bdgnj->bdgni", J, S) + tf.einsum("bgni,bd->bdgni", a, x_t)
        new_r = tf.einsum("bnij,bpnj->bpni", J, r)
        if cell.unit_names:
            new_r += tf.stack([tf.stack(dense(local.v[p], state[0]), axis=-1) for p in cell.unit_names], axis=1)
        if mask is not None:
            keep = mask[:, t]
            new, new_S, new_r = (
                tf.where(_like(keep, old), value, old) for value, old in ((new, s), (new_S, S), (new_r, r))
            )
        carry = Carry(new, new_S, new_r)
        steps.append(carry)
    return steps


def _like(flags, value):
    """flags [B] with dimensions added, so that they broadcast to `value` [B, ...]."""
    return tf.reshape(flags, (-1, *[1] * (value.shape.rank - 1)))


def gradients(cell: RTRLCell, carries: Sequence[Carry], cotangents: tf.Tensor) -> dict[str, tf.Tensor]:
    """Gradients of the loss with respect to the kernel and the per-unit parameters. A cotangent of 0 takes nothing.

    Args:
      carries: what `run` returned, T carries.
      cotangents: e [B, T, N, m], the gradient of the loss with respect to each state through its output alone.

    Returns:
      {"kernel": [D, G N], name: [N] for each per-unit parameter}.
    """
    eye = tuple(tuple(float(i == j) for j in range(cell.components)) for i in range(cell.components))
    kernel, unit = 0.0, 0.0
    for t, (_, S, r) in enumerate(carries):
        e = cotangents[:, t]
        blocks = []
        for gate in cell.gates:
            source, rotation = cell.trace_rotations.get(gate, (gate, eye))
            trace = S[:, :, cell.stored_gates.index(source)]
            turned = tf.einsum("bni,ij->bnj", e, tf.constant(rotation, S.dtype))
            blocks.append(tf.reduce_sum(times(turned[:, None], trace), (0, -1)))
        kernel += tf.concat(blocks, axis=-1)
        unit += tf.reduce_sum(times(e[:, None], r), (0, -1))
    return {"kernel": kernel, **{name: unit[i] for i, name in enumerate(cell.unit_names)}}
