"""Rewards scaled by how much returns vary."""

import tensorflow as tf

from keras_rtrl._checks import number
from keras_rtrl._tensors import floats, frames
from keras_rtrl.distributed.replicas import Streams, StreamVariables
from keras_rtrl.networks.normalizer import RunningNormalizer, clipped


class RewardScaler(tf.Module):
    """Divides rewards by the running standard deviation of the discounted return, and clips them.

    The return is R_t = gamma k_t R_{t-1} + r_t of each stream, k_t = 0 if an episode begins; nothing is subtracted
    from a reward (Engstrom et al. 2020).

    Args:
      gamma: discount.
      num_streams: B.
      limit: largest magnitude of a scaled reward.

    Raises:
      ValueError: a discount out of 0..1, streams that are no whole number of at least 1, a limit that is not above 0.

    Attributes:
      statistics: `RunningNormalizer` of the discounted return.
    """

    def __init__(self, gamma, num_streams, limit=10.0):
        super().__init__()
        self._gamma, self._limit = number("gamma", gamma, 0, high=1), number("limit", limit, above=0)
        self._by_stream = StreamVariables(Streams(num_streams), ["returns"], [tf.TensorSpec([], tf.float64)])
        (self._returns,) = self._by_stream.whole
        self.statistics = RunningNormalizer([])

    @property
    def scale(self):
        """What rewards are divided by, float64: the standard deviation; 1 before the second reward."""
        return tf.sqrt(self.statistics.variance + 1e-8)

    def update(self, reward, boundary):
        """Takes in rewards [B, T]; on a boundary frame [B, T] (LAST to FIRST) there is none, nor a return to count.

        Under a tf.distribute strategy called by every replica, with its own streams' rows.

        Raises:
          TypeError: rewards that are no tensor or array of floats, a boundary that is none of bool.
          ValueError: shapes that are not one, [B, T].
        """
        reward, boundary = frames(reward=reward, boundary=boundary)
        (before,) = self._by_stream.values()
        if not reward.shape.is_compatible_with([before.shape[0], None]):
            raise ValueError(f"reward must be [B, T] with num_streams={before.shape[0]} rows, got {reward.shape}")
        boundary = tf.transpose(boundary)
        returns = tf.scan(
            lambda before, step: tf.where(step[1], tf.zeros_like(before), self._gamma * before + step[0]),
            (tf.transpose(tf.cast(reward, tf.float64)), boundary),
            initializer=before,
        )
        self._by_stream.assign([returns[-1]])
        self.statistics.update(returns, ~boundary)

    def __call__(self, reward):
        """Scaled rewards in the dtype of `reward`; NaN if it is not finite. Raises TypeError if that is no float."""
        reward = floats("reward", reward)
        return clipped(reward / tf.cast(self.scale, reward.dtype), -self._limit, self._limit)

    def reset(self):
        """Forgets the returns under way, not the statistics: the streams begin again."""
        self._by_stream.reset()

    def gather(self):
        """Brings what is saved of the returns under way up to date, if several replicas have them."""
        self._by_stream.gather()

    def scatter(self):
        """Gives each replica the returns under way of its streams, as they were restored."""
        self._by_stream.scatter()

    @property
    def by_stream(self):
        """The returns under way: `StreamVariables` of one variable."""
        return self._by_stream
