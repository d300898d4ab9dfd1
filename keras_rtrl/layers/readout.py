"""The read-out of a chunk in which there may be NaN or inf before a reset."""

import functools

import tensorflow as tf


def sound_only(read, x, states):
    """read(x, states), whose gradient leaves out steps of NaN or inf that the loss does not depend on.

    The backward pass multiplies cotangents by numbers of the forward pass, and 0 times NaN is NaN. So if there is any
    NaN or inf, `read` sees zeros at such steps. NaN is put back into their output, and into their gradient unless their
    cotangent is 0.

    Args:
      read: function of x [B, T, D] and states, m tensors [B, T, N], to an output [B, T, W]: each step alone.

    Returns:
      The output [B, T, W].
    """

    def careful():
        rows = [tf.reduce_all(tf.math.is_finite(value), -1, keepdims=True) for value in (x, *states)]
        sound = functools.reduce(tf.logical_and, rows)  # [B, T, 1]
        return _spoil(sound, read(_only(sound, x), tuple(_only(sound, s) for s in states)))

    if tf.config.get_visible_devices("GPU"):  # there the choice would wait for the device
        return careful()
    sums = [tf.reduce_sum(value) for value in (x, *states)]  # one that overflows costs nothing but care
    return tf.cond(tf.reduce_all(tf.math.is_finite(sums)), lambda: read(x, states), careful)


def _only(sound, value):
    @tf.custom_gradient
    def only(value):
        return tf.where(sound, value, tf.zeros_like(value)), lambda cotangent: cotangent

    return only(value)


def _spoil(sound, y):
    def grad(cotangent):
        return tf.where(sound | (cotangent == 0), cotangent, tf.fill(tf.shape(cotangent), _nan(cotangent)))

    @tf.custom_gradient
    def spoil(y):
        return tf.where(sound, y, tf.fill(tf.shape(y), _nan(y))), grad

    return spoil(y)


def _nan(like):
    return tf.constant(float("nan"), like.dtype)
