"""Optimisers that a configuration can name."""

import gin
import tensorflow as tf
import tf_keras

from keras_rtrl._checks import number
from keras_rtrl.agents import ObGD


class RMSprop(tf_keras.optimizers.RMSprop):
    """RMSprop as the first paper ran it (PyTorch's rule): w -= lr g / (sqrt(v) + epsilon), v <- rho v + (1 - rho) g^2.

    The one of Keras divides by sqrt(v + epsilon), which differs unless epsilon is tiny.
    """

    def __init__(self, learning_rate, rho=0.99, epsilon=0.01):
        rho, epsilon = _average("rho", rho), number("epsilon", epsilon, above=0)
        super().__init__(learning_rate, rho=rho, epsilon=epsilon, jit_compile=False)

    def update_step(self, gradient, variable):
        learning_rate = tf.cast(self.learning_rate, variable.dtype)
        v = self._velocities[self._index_dict[self._var_key(variable)]]
        v.assign(self.rho * v + (1.0 - self.rho) * tf.square(gradient))
        variable.assign_sub(learning_rate * gradient / (tf.sqrt(v) + self.epsilon))


class Adam(tf_keras.optimizers.Adam):
    """Keras' Adam; each variable's update is one operation instead of some thirty."""

    def __init__(self, learning_rate, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        beta_1, beta_2 = _average("beta_1", beta_1), _average("beta_2", beta_2)
        epsilon = number("epsilon", epsilon, above=0)
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, jit_compile=False)

    def update_step(self, gradient, variable):
        if isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable)
            return
        dtype, index = variable.dtype, self._index_dict[self._var_key(variable)]
        step = tf.cast(self.iterations + 1, dtype)
        beta_1, beta_2 = tf.constant(self.beta_1, dtype), tf.constant(self.beta_2, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=tf.pow(beta_1, step),
            beta2_power=tf.pow(beta_2, step),
            lr=tf.cast(self.learning_rate, dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=tf.constant(self.epsilon, dtype),
            grad=gradient,
        )


def _average(name, value):
    """`value` as a float, the weight of a running average's old value; below 1, since with 1 it would never change."""
    value = number(name, value, low=0, high=1)
    if value == 1:
        raise ValueError(f"{name} must be below 1, got 1")
    return value


gin.external_configurable(RMSprop, module="keras_rtrl")
gin.external_configurable(Adam, module="keras_rtrl")
gin.external_configurable(ObGD, module="keras_rtrl")
