"""Running normalisation of observations, each feature by itself."""

import tensorflow as tf

from keras_rtrl._checks import number, shown
from keras_rtrl._tensors import bools, floats
from keras_rtrl.distributed.replicas import all_sum


class RunningNormalizer(tf.Module):
    """(x - mean) / standard deviation of all that `update` has seen, clipped to [-limit, limit]; x as it is before.

    Mean and variance are kept for each feature, in float64 (Chan et al. 1979).

    Args:
      shape: of one observation.
      limit: largest magnitude of a normalised feature.

    Raises:
      ValueError: a shape that is not known in full, or a limit that is not above 0.
    """

    def __init__(self, shape, limit=10.0):
        super().__init__()
        try:
            shape = tf.TensorShape(shape).as_list()
        except (TypeError, ValueError) as error:
            raise ValueError(f"shape must be that of an observation, got {shown(shape)}") from error
        if None in shape:
            raise ValueError(f"shape must be known in full, got {shown(shape)}")
        self._limit = number("limit", limit, above=0)

        def zeros(shape, name):  # every replica of a strategy assigns the same
            same = tf.VariableAggregation.ONLY_FIRST_REPLICA
            return tf.Variable(tf.zeros(shape, tf.float64), trainable=False, name=name, aggregation=same)

        self._count = zeros([], "count")
        self._mean = zeros(shape, "mean")
        self._squares = zeros(shape, "squares")  # of deviations

    @property
    def mean(self):
        """Mean of each feature, float64."""
        return self._mean.value()

    @property
    def variance(self):
        """Variance of each feature, float64; 1 before the second observation."""
        seen = self._count > 1
        return tf.where(seen, self._squares / tf.maximum(self._count, 1), tf.ones_like(self._squares))

    def update(self, x, counted=None):
        """Takes in observations [..., shape]; those of all replicas if each calls it with its own.

        With `counted`, bool [...], only the observations that are; there may be none.

        Raises:
          TypeError: no tensors or arrays, or `counted` not of bool.
          ValueError: shapes that do not fit.
        """
        x = self._observations(x)
        shape = x.shape
        x = tf.reshape(tf.cast(x, tf.float64), [-1, *self._mean.shape])
        left_out = tf.zeros(tf.shape(x)[0], tf.bool)
        if counted is not None:
            counted = bools("counted", counted)
            if not counted.shape.concatenate(self._mean.shape).is_compatible_with(shape):
                raise ValueError(f"counted must have the shape of the observations {shape}, got {counted.shape}")
            left_out = tf.reshape(~counted, [-1])
        left_out = tf.reshape(left_out, [-1] + [1] * self._mean.shape.rank)

        def total_of(values):
            return all_sum(tf.reduce_sum(tf.where(left_out, tf.zeros_like(values), values), axis=0))

        count = all_sum(tf.reduce_sum(tf.cast(~left_out, tf.float64)))
        mean = total_of(x / tf.maximum(count, 1))
        total = self._count + count
        shift = mean - self._mean
        share = tf.math.divide_no_nan(count, total)
        self._squares.assign_add(total_of(tf.square(x - mean)) + tf.square(shift) * self._count * share)
        self._mean.assign_add(shift * share)
        self._count.assign(total)

    def __call__(self, x):
        """Normalised observations in the dtype of `x`. Raises as `update`, and TypeError unless `x` is of floats."""
        x = self._observations(floats("x", x))
        scale = tf.math.rsqrt(self.variance + 1e-8)
        x = (x - tf.cast(self._mean, x.dtype)) * tf.cast(scale, x.dtype)
        return clipped(x, -self._limit, self._limit)

    def _observations(self, x):
        """`x` as a tensor [..., shape]."""
        try:
            x = tf.convert_to_tensor(x)
        except (TypeError, ValueError) as error:
            raise TypeError(f"x must be a tensor of numbers, got {shown(x)}") from error
        rank = self._mean.shape.rank
        if not (x.dtype.is_floating or x.dtype.is_integer):
            raise TypeError(f"x must be a tensor of numbers, got {x.dtype.name}")
        if not self._mean.shape.is_compatible_with(x.shape[max((x.shape.rank or 0) - rank, 0) :]):
            raise ValueError(f"x must have a shape that ends in {self._mean.shape}, got {x.shape}")
        return x


def clipped(x, low, high):
    """`x` clipped to [low, high], but NaN if it is infinite: a fault that clipping would hide."""
    return tf.where(tf.math.is_finite(x), tf.clip_by_value(x, low, high), tf.constant(float("nan"), x.dtype))
