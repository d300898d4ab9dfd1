"""Action heads: what a policy's outputs [..., P] mean for one kind of action spec.

A head is one class that `make_actions` chooses. Actions are as the spec, log-probabilities and entropies (in nats) one
number an action, all with any leading dimensions.
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tf_agents.specs import tensor_spec

from keras_rtrl._keras import keras
from keras_rtrl.networks.normalizer import clipped

tfd = tfp.distributions


def make_actions(action_spec):
    """The head for a BoundedTensorSpec: an integer or a vector of integers from 0, or floats.

    Raises:
      ValueError: any other spec.
    """
    spec = action_spec
    if isinstance(spec, tensor_spec.BoundedTensorSpec) and spec.shape.rank is not None:
        if spec.dtype.is_integer and spec.shape.rank <= 1 and np.all(spec.minimum == 0):
            return Categorical(spec)
        if spec.dtype.is_floating:
            return Gaussian(spec)
    raise ValueError(
        "action_spec must be one BoundedTensorSpec, of an integer or a vector of integers from 0, or of floats; "
        f"got {spec}"
    )


class Categorical(tf.Module):
    """One of A actions, or a vector of k independent choices; the outputs are their logits, side by side."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        counts = np.broadcast_to(np.asarray(spec.maximum), spec.shape).astype(int) + 1
        self.width = int(counts.sum())
        self._columns = None
        if spec.shape.rank:
            # [k, largest A]: the column of each choice's logits; past its last, one that is never chosen
            starts = np.cumsum(counts) - counts
            option = np.arange(counts.max())
            self._columns = np.where(option < counts[:, None], starts[:, None] + option, self.width)

    def outputs(self, x):
        """Outputs from the policy layer's `x` [..., width]."""
        return x

    def info_spec(self):
        """Specs of `info`."""
        return {"logits": tf.TensorSpec([self.width], keras.backend.floatx(), name="logits")}

    def info(self, outputs):
        """Policy info: the distribution's parameters by name."""
        return {"logits": outputs}

    def from_info(self, info):
        """The outputs that `info` was made of."""
        return info["logits"]

    def _logits(self, outputs):
        """[..., A], or [..., k, A] padded by logits of probability 0."""
        if self._columns is None:
            return outputs
        never = tf.fill(tf.shape(outputs[..., :1]), tf.constant(-1e9, outputs.dtype))
        return tf.gather(tf.concat([outputs, never], axis=-1), self._columns, axis=-1)

    def _total(self, x):
        return x if self._columns is None else tf.reduce_sum(x, axis=-1)

    def log_probability(self, outputs, action):
        return self._total(-tf.nn.sparse_softmax_cross_entropy_with_logits(labels=action, logits=self._logits(outputs)))

    def entropy(self, outputs):
        log_pi = tf.nn.log_softmax(self._logits(outputs))
        return self._total(-tf.reduce_sum(tf.exp(log_pi) * log_pi, axis=-1))

    def sample(self, outputs, seed):
        """Actions drawn with the seed, an integer tensor [2]; the same eager and compiled."""
        return self.mode(outputs - tf.math.log(-tf.math.log(_uniform(outputs, seed))))  # Gumbel-max

    def mode(self, outputs):
        return tf.argmax(self._logits(outputs), axis=-1, output_type=self.spec.dtype)

    def features(self, action):
        """What a core sees of a last action: one-hots [..., width]."""
        if self._columns is None:
            return tf.one_hot(action, self.width, dtype=keras.backend.floatx())
        first = tf.constant(self._columns[:, 0], action.dtype)
        return tf.reduce_sum(tf.one_hot(action + first, self.width, dtype=keras.backend.floatx()), axis=-2)

    def distribution(self, outputs):
        distribution = tfd.Categorical(self._logits(outputs), dtype=self.spec.dtype)
        return distribution if self._columns is None else tfd.Independent(distribution, 1)


class Gaussian(tf.Module):
    """Independent normals; the outputs are the means, then the logarithms of the standard deviations.

    The latter are variables that no observation moves, zeros at first. Samples may lie outside the spec's bounds:
    environments clip the actions they are given.
    """

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.width = int(np.prod(spec.shape))
        self._log_std = tf.Variable(tf.zeros([self.width], keras.backend.floatx()), name="log_std")

    def outputs(self, x):
        return tf.concat([x, tf.broadcast_to(self._log_std, tf.shape(x))], axis=-1)

    def info_spec(self):
        return {name: tf.TensorSpec([self.width], keras.backend.floatx(), name=name) for name in ("mean", "log_std")}

    def info(self, outputs):
        mean, log_std = tf.split(outputs, 2, axis=-1)
        return {"mean": mean, "log_std": log_std}

    def from_info(self, info):
        return tf.concat([info["mean"], info["log_std"]], axis=-1)

    def log_probability(self, outputs, action):
        mean, log_std = tf.split(outputs, 2, axis=-1)
        scaled = (self._flat(action, outputs.dtype) - mean) * tf.exp(-log_std)
        return tf.reduce_sum(-0.5 * tf.square(scaled) - log_std - 0.5 * np.log(2 * np.pi), axis=-1)

    def entropy(self, outputs):
        _, log_std = tf.split(outputs, 2, axis=-1)
        return tf.reduce_sum(log_std + 0.5 * np.log(2 * np.pi * np.e), axis=-1)

    def sample(self, outputs, seed):
        mean, log_std = tf.split(outputs, 2, axis=-1)
        return self._shaped(mean + tf.exp(log_std) * tf.math.ndtri(_uniform(mean, seed)))

    def mode(self, outputs):
        return self._shaped(tf.split(outputs, 2, axis=-1)[0])

    def features(self, action):
        """What a core sees of a last action: floats [..., width], clipped to the spec's bounds."""
        bounds = (self.spec.minimum, self.spec.maximum)
        low, high = (np.broadcast_to(bound, self.spec.shape).ravel() for bound in bounds)
        return clipped(self._flat(action, tf.as_dtype(keras.backend.floatx())), low, high)

    def distribution(self, outputs):
        mean, log_std = tf.split(outputs, 2, axis=-1)
        shape = tf.concat([tf.shape(mean)[:-1], self.spec.shape], 0)
        normal = tfd.Normal(tf.reshape(mean, shape), tf.exp(tf.reshape(log_std, shape)))
        return tfd.Independent(normal, self.spec.shape.rank)

    def _flat(self, action, dtype):
        leading = tf.shape(action)[: action.shape.rank - self.spec.shape.rank]
        return tf.cast(tf.reshape(action, tf.concat([leading, [self.width]], 0)), dtype)

    def _shaped(self, x):
        leading = x.shape[:-1] if x.shape[:-1].is_fully_defined() else tf.unstack(tf.shape(x)[:-1])
        return tf.cast(tf.reshape(x, [*leading, *self.spec.shape]), self.spec.dtype)


def _uniform(like, seed):
    """Numbers in (0, 1) of the shape and dtype of `like`, neither end included."""
    # Philox bits are the same eager and compiled, TensorFlow's other samplers are not
    bits = tf.random.stateless_uniform(tf.shape(like), seed, None, None, tf.uint32, alg="philox")
    return (tf.cast(tf.bitwise.right_shift(bits, 9), like.dtype) + 0.5) / 2.0**23
