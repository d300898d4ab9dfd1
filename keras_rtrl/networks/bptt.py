"""Keras' LSTM and GRU over many steps at once: the baselines, trained by TBPTT.

What does not depend on the step before is computed for all T steps together: the inputs' products, and the gradients of
the weights. TensorFlow's own gradient of a loop adds up the weights' gradient at every step instead. Steps come first:
[T, B, ...]; keep [T, B, 1] is 0 if an episode begins with that step and 1 if not.
"""

import tensorflow as tf

from keras_rtrl._keras import keras


def unroll_for(cell):
    """The function (cell, x [B, T, D], reset [B, T], states) -> (y [B, T, N], states) of a cell of Keras, else None."""
    if (
        type(cell) not in _UNROLLS
        or cell.dropout
        or cell.recurrent_dropout
        or cell.compute_dtype != cell.variable_dtype
    ):
        return None
    usual = keras.activations.tanh, keras.activations.sigmoid, True
    own = cell.activation, cell.recurrent_activation, getattr(cell, "reset_after", True)
    return _UNROLLS[type(cell)] if own == usual else None


def _unroll_lstm(cell, x, reset, states):
    projected, keep = _before(cell, x, reset)
    if cell.use_bias:
        projected += cell.bias
    y, h, c = _lstm(projected, keep, *states, tf.convert_to_tensor(cell.recurrent_kernel))
    return tf.transpose(y, [1, 0, 2]), (h, c)


def _unroll_gru(cell, x, reset, states):
    projected, keep = _before(cell, x, reset)
    recurrent_bias = tf.zeros([3 * cell.units], x.dtype)
    if cell.use_bias:
        bias, recurrent_bias = tf.unstack(cell.bias)
        projected += bias
    y, h = _gru(projected, keep, *states, tf.convert_to_tensor(cell.recurrent_kernel), recurrent_bias)
    return tf.transpose(y, [1, 0, 2]), (h,)


_UNROLLS = {keras.layers.LSTMCell: _unroll_lstm, keras.layers.GRUCell: _unroll_gru}


def _before(cell, x, reset):
    """The inputs' products [T, B, K N], and keep [T, B, 1]."""
    keep = tf.cast(tf.logical_not(tf.transpose(reset)), x.dtype)[..., tf.newaxis]
    return tf.einsum("btd,dk->tbk", x, cell.kernel), keep


def _scan(step, parts, start, reverse=False):
    return tf.scan(step, parts, start, parallel_iterations=1, reverse=reverse)


def _previous(states, first):
    """States [T, B, N] before each step, of those after it."""
    return tf.concat([first[tf.newaxis], states[:-1]], axis=0)


@tf.custom_gradient
def _lstm(projected, keep, first_h, first_c, kernel):
    """(h of all steps [T, B, N], last h, last c)."""

    def step(carry, now):
        h, c, _ = carry
        projected, keep = now
        i, f, g, o = tf.split(projected + tf.matmul(h * keep, kernel), 4, axis=-1)
        gates = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        c = gates[1] * (c * keep) + gates[0] * gates[2]
        return gates[3] * tf.tanh(c), c, tf.concat(gates, axis=-1)

    h, c, gates = _scan(step, (projected, keep), (first_h, first_c, tf.zeros_like(projected[0])))

    def gradient(dy, dlast_h, dlast_c):
        before_h, before_c = _previous(h, first_h) * keep, _previous(c, first_c) * keep
        i, f, g, o = tf.split(gates, 4, axis=-1)
        squashed = tf.tanh(c)
        by_c = tf.concat([g * i * (1 - i), before_c * f * (1 - f), i * (1 - g * g)], axis=-1)

        def back(carry, now):
            dh, dc, _ = carry
            dy, keep, f, by_c, o_by_h, c_by_h = now
            dh += dy
            dc += dh * c_by_h
            dprojected = tf.concat([tf.tile(dc, [1, 3]) * by_c, dh * o_by_h], axis=-1)
            return tf.matmul(dprojected, kernel, transpose_b=True) * keep, dc * f * keep, dprojected

        parts = (dy, keep, f, by_c, squashed * o * (1 - o), o * (1 - squashed * squashed))
        dh, dc, dprojected = _scan(back, parts, (dlast_h, dlast_c, tf.zeros_like(projected[0])), reverse=True)
        return dprojected, None, dh[0], dc[0], tf.einsum("tbn,tbk->nk", before_h, dprojected)

    return (h, h[-1], c[-1]), gradient


@tf.custom_gradient
def _gru(projected, keep, first_h, kernel, bias):
    """(h of all steps [T, B, N], last h), the reset gate after the product, as cuDNN has it."""

    def step(carry, now):
        h = carry[0]
        projected, keep = now
        h *= keep
        inner = tf.split(tf.matmul(h, kernel) + bias, 3, axis=-1)
        outer = tf.split(projected, 3, axis=-1)
        z, r = tf.sigmoid(outer[0] + inner[0]), tf.sigmoid(outer[1] + inner[1])
        new = tf.tanh(outer[2] + r * inner[2])
        return z * h + (1 - z) * new, tf.concat([z, r, new, inner[2]], axis=-1)

    zeros = tf.zeros_like(projected[0])
    h, parts = _scan(step, (projected, keep), (first_h, tf.concat([zeros, zeros[:, : kernel.shape[0]]], axis=-1)))

    def gradient(dy, dlast_h):
        before = _previous(h, first_h) * keep
        z, r, new, inner = tf.split(parts, 4, axis=-1)
        z_by_h, new_by_h = (before - new) * z * (1 - z), (1 - z) * (1 - new * new)
        r_by_h = new_by_h * inner * r * (1 - r)
        inner_by_h = tf.concat([z_by_h, r_by_h, new_by_h * r], axis=-1)

        def back(carry, now):
            dy, keep, z, inner_by_h = now
            dh = carry[0] + dy
            dinner = tf.tile(dh, [1, 3]) * inner_by_h
            return (dh * z + tf.matmul(dinner, kernel, transpose_b=True)) * keep, dh

        dfirst, dh = _scan(back, (dy, keep, z, inner_by_h), (dlast_h, tf.zeros_like(dlast_h)), reverse=True)
        dh = tf.tile(dh, [1, 1, 3])
        dinner = dh * inner_by_h
        dprojected = dh * tf.concat([z_by_h, r_by_h, new_by_h], axis=-1)
        return dprojected, None, dfirst[0], tf.einsum("tbn,tbk->nk", before, dinner), tf.reduce_sum(dinner, axis=[0, 1])

    return (h, h[-1]), gradient
