import numpy as np
import tensorflow as tf
import tf_agents  # noqa: F401

from keras_rtrl.train.optimizers import RMSprop


def test_rmsprop_divides_by_root_plus_epsilon():
    weight = tf.Variable([1.0, -2.0])
    optimizer = RMSprop(learning_rate=0.1, rho=0.9, epsilon=0.5)
    w, v = weight.numpy(), np.zeros(2)
    for gradient in ([1.0, 2.0], [-3.0, 0.5]):
        optimizer.apply_gradients([(tf.constant(gradient), weight)])
        v = 0.9 * v + 0.1 * np.square(gradient)
        w = w - 0.1 * np.array(gradient) / (np.sqrt(v) + 0.5)
        np.testing.assert_allclose(weight.numpy(), w, rtol=1e-6)
