"""RTRL in one pass, for loops that own their update and change the parameters at every step.

A gradient tape needs the old traces after the new ones exist. A caller that asks for the gradients itself does not:
`forward` gives the new state, from which the caller computes its losses' cotangents; `update` then advances the traces
in place and contracts them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from keras_rtrl.engine import native
from keras_rtrl.engine.blocks import dense, dot, kept, matvec_transposed, times
from keras_rtrl.engine.carry import Carry
from keras_rtrl.engine.cell import Local, RTRLCell, local_derivatives
from keras_rtrl.engine.chunked import apply_block


class Pending(NamedTuple):
    """What `forward` leaves for `update`: the new state, the step's input, and its local derivatives.

    `local` is one tensor [B, L, N] if the native op made it.
    """

    cell: RTRLCell
    state: tf.Tensor
    x: tf.Tensor
    local: Local | tf.Tensor


def forward(
    cell: RTRLCell,
    params: Mapping[str, tf.Tensor | tf.Variable],
    carry: Carry,
    x: tf.Tensor,
    reset: tf.Tensor | None = None,
    *,
    implementation: str = "auto",
) -> tuple[tf.Tensor, Pending]:
    """One step of the recurrence.

    Args:
      cell: an `RTRLCell`.
      params: {"kernel": W [D, G N], and each per-unit parameter's name: [N]}.
      carry: `Carry` before the step; variables, if `update` is to follow.
      x: inputs [B, D].
      reset: [B] bool, true if a new episode starts with x; or None.
      implementation: "auto", "tf" or "native", of this step and its `update`; see `native.choose`.

    Returns:
      The new state [B, N, m] and what `update` needs. Gradients go through the state to x alone, inside this step: what
      lies below is trained by its instantaneous gradient.
    """
    x = tf.convert_to_tensor(x)
    kernel = tf.stop_gradient(tf.convert_to_tensor(params["kernel"]))
    pending = _step(cell, params, kernel, tf.convert_to_tensor(carry.state), tf.stop_gradient(x), reset, implementation)

    @tf.custom_gradient
    def of_input(x):
        del x
        return tf.identity(pending.state), lambda cotangent: _input_gradient(pending, kernel, cotangent)

    return of_input(x), pending


def _step(cell, params, kernel, state, x, reset, implementation):
    """The pending step; its tensors are constants to any tape."""
    rho = {name: tf.stop_gradient(tf.convert_to_tensor(params[name])) for name in cell.unit_names}
    state = tf.stop_gradient(state)
    if native.choose(implementation, cell, x.dtype):
        new, local = native.streaming_forward(cell, state, x, kernel, rho, reset)
        return Pending(cell, new, x, local)
    c = cell.coefficients(rho)
    state = tuple(tf.unstack(state, axis=-1))
    k = None if reset is None else tf.cast(~reset, x.dtype)[:, None]
    state = kept(k, state)
    u = dict(zip(cell.gates, tf.split(x @ kernel, len(cell.gates), axis=-1), strict=True))
    new = tf.stack(cell.phi(state, u, c), axis=-1)
    J, a, v = local_derivatives(cell, state, u, rho, c)
    return Pending(cell, new, x, Local(kept(k, dense(J, state[0])), a, v))


def _input_gradient(pending, kernel, cotangent):
    """[B, D]: the gradient of the step's input; `cotangent` [B, N, m] is that of the new state."""
    cell, m = pending.cell, pending.cell.components
    if isinstance(pending.local, Local):
        a = pending.local.a
    else:  # J's m m rows, then those of the stored gates
        rows = tf.unstack(pending.local, axis=1)[m * m :]
        a = {gate: tuple(rows[i * m : (i + 1) * m]) for i, gate in enumerate(cell.stored_gates)}
    e = tuple(tf.unstack(cotangent, axis=-1))
    d_u = []
    for gate in cell.gates:
        source, rotation = cell.trace_rotations.get(gate, (gate, None))
        turned = e if rotation is None else matvec_transposed(rotation, e)
        d_u.append(dense(dot(turned, a[source]), e[0]))
    return tf.matmul(tf.concat(d_u, axis=-1), kernel, transpose_b=True)


def update(carry: Carry, pending: Pending, cotangents: tf.Tensor) -> dict[str, tf.Tensor]:
    """Advances the carry by the pending step, in place, and contracts the new traces.

    Args:
      carry: `Carry` of variables, as given to `forward`.
      pending: what `forward` returned.
      cotangents: [K, B, N, m], gradients of K losses with respect to the new state.

    Returns:
      The K gradients, summed over streams: {"kernel": [K, D, G N], name: [K, N] for each per-unit parameter}.
    """
    cell, state, x, local = pending
    carry.state.assign(state)
    if not isinstance(local, Local):
        d_kernel, d_rho = native.streaming_update(cell, carry.S, carry.r, x, local, tf.convert_to_tensor(cotangents))
        units = tf.unstack(d_rho, len(cell.unit_names), axis=1)
        return {"kernel": d_kernel, **dict(zip(cell.unit_names, units, strict=True))}
    J, a, v = local
    like = J[0][0]
    driven = tf.stack([tf.stack(dense(a[gate], like), axis=-1) for gate in cell.stored_gates], axis=1)  # [B, G', N, m]
    S = carry.S.assign(apply_block(J, tf.convert_to_tensor(carry.S)) + x[:, :, None, None, None] * driven[:, None])
    S = tf.convert_to_tensor(S)
    blocks = []
    for gate in cell.gates:
        source, rotation = cell.trace_rotations.get(gate, (gate, None))
        e = cotangents
        if rotation is not None:
            e = tf.stack(dense(matvec_transposed(rotation, tuple(tf.unstack(e, axis=-1))), e[..., 0]), axis=-1)
        blocks.append(_contract(e, S[:, :, cell.stored_gates.index(source)]))
    gradients = {"kernel": tf.concat(blocks, axis=-1)}
    if cell.unit_names:
        driven = tf.stack([tf.stack(dense(v[name], like), axis=-1) for name in cell.unit_names], axis=1)
        r = tf.convert_to_tensor(carry.r.assign(apply_block(J, tf.convert_to_tensor(carry.r)) + driven))
        unit = tf.unstack(_contract(cotangents, r), len(cell.unit_names), axis=1)
        gradients.update(zip(cell.unit_names, unit, strict=True))
    return gradients


def _contract(e, traces):
    """sum_b e . traces [K, D, N] of e [K, B, N, m] and traces [B, D, N, m]."""
    return tf.reduce_sum(times(e[:, :, None], traces), (1, -1))
