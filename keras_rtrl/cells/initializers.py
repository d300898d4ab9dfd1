"""Initialisers of the cells' parameters: functions of (shape, dtype)."""

from collections.abc import Callable, Sequence

import tensorflow as tf


def normal(stddev: float) -> Callable[..., tf.Tensor]:
    """Normal(0, stddev) initialiser."""
    return lambda shape, dtype=None: tf.random.normal(shape, 0.0, stddev, tf.as_dtype(dtype or tf.float32))


def zeros(shape: Sequence[int], dtype: tf.DType | str | None = None) -> tf.Tensor:
    """Zero initialiser."""
    return tf.zeros(shape, tf.as_dtype(dtype or tf.float32))


def glorot_uniform(shape: Sequence[int], dtype: tf.DType | str | None = None) -> tf.Tensor:
    """Glorot uniform initialiser of a matrix."""
    limit = (6.0 / max(shape[0] + shape[1], 1)) ** 0.5
    return tf.random.uniform(shape, -limit, limit, tf.as_dtype(dtype or tf.float32))


def lecun_normal(shape: Sequence[int], dtype: tf.DType | str | None = None) -> tf.Tensor:
    """LeCun normal initialiser of a kernel [D, ...]: truncated, variance 1 / D."""
    stddev = max(shape[0], 1) ** -0.5 / 0.87962566103423978  # of a normal cut off at two deviations
    return tf.random.truncated_normal(shape, 0.0, stddev, tf.as_dtype(dtype or tf.float32))
