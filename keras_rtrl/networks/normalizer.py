"""Running normalisation of observations, each feature by itself."""

import tensorflow as tf

from keras_rtrl.distributed.replicas import all_sum


class RunningNormalizer(tf.Module):
    """(x - mean) / standard deviation of all that `update` has seen, clipped to [-limit, limit]; x as it is before.

    Mean and variance are kept for each feature, in float64 (Chan et al. 1979).

    Args:
      shape: of one observation.
      limit: largest magnitude of a normalised feature.
    """

    def __init__(self, shape, limit=10.0):
        super().__init__()
        self._limit = limit

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
        """Takes in observations [..., shape]; those of all replicas where each calls it with its own.

        With `counted`, bool [...], only the observations that are; there may be none.
        """
        x = tf.reshape(tf.cast(x, tf.float64), [-1, *self._mean.shape])
        left_out = tf.zeros(tf.shape(x)[0], tf.bool) if counted is None else tf.reshape(~counted, [-1])
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
        """Normalised observations in the dtype of `x`."""
        scale = tf.math.rsqrt(self.variance + 1e-8)
        x = (x - tf.cast(self._mean, x.dtype)) * tf.cast(scale, x.dtype)
        return clipped(x, -self._limit, self._limit)


def clipped(x, low, high):
    """`x` clipped to [low, high], but NaN where it is infinite: a fault that clipping would hide."""
    return tf.where(tf.math.is_finite(x), tf.clip_by_value(x, low, high), tf.constant(float("nan"), x.dtype))
