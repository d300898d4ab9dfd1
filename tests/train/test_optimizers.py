import numpy as np
import pytest
import tensorflow as tf
import tf_agents  # noqa: F401
import tf_keras

from keras_rtrl.train.optimizers import Adam, RMSprop


def test_rmsprop_divides_by_root_plus_epsilon():
    weight = tf.Variable([1.0, -2.0])
    optimizer = RMSprop(learning_rate=0.1, rho=0.9, epsilon=0.5)
    w, v = weight.numpy(), np.zeros(2)
    for gradient in ([1.0, 2.0], [-3.0, 0.5]):
        optimizer.apply_gradients([(tf.constant(gradient), weight)])
        v = 0.9 * v + 0.1 * np.square(gradient)
        w = w - 0.1 * np.array(gradient) / (np.sqrt(v) + 0.5)
        np.testing.assert_allclose(weight.numpy(), w, rtol=1e-6)


def _after_steps(optimizer, dtype, sparse):
    """Two variables after three steps of the optimizer; the gradient of the first is an IndexedSlices if `sparse`."""
    generator = np.random.default_rng(0)
    first = tf.Variable(generator.normal(size=[4, 3]), dtype=dtype)
    second = tf.Variable(generator.normal(size=[5]), dtype=dtype)
    for _ in range(3):
        gradient = tf.constant(generator.normal(size=[4, 3]), dtype)
        if sparse:
            gradient = tf.IndexedSlices(gradient[:2], tf.constant([3, 1]), tf.constant([4, 3]))
        optimizer.apply_gradients([(gradient, first), (tf.constant(generator.normal(size=[5]), dtype), second)])
    return first.numpy(), second.numpy(), [variable.numpy() for variable in optimizer.variables]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_is_that_of_keras(dtype, sparse):
    schedule = tf_keras.optimizers.schedules.PolynomialDecay(0.1, 4, 0.0)
    settings = {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}
    ours = _after_steps(Adam(schedule, **settings), dtype, sparse)
    keras = _after_steps(tf_keras.optimizers.Adam(schedule, jit_compile=False, **settings), dtype, sparse)
    tolerance = 1e-5 if dtype == "float32" else 1e-7  # the rates are float32 in Keras
    for one, other in zip(tf.nest.flatten(ours), tf.nest.flatten(keras), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def test_adam_is_the_same_compiled_and_in_a_strategy():
    def run(strategy, jit_compile):
        with strategy.scope():
            weight, optimizer = tf.Variable([1.0, -2.0]), Adam(0.1)
            optimizer.build([weight])

            @tf.function(jit_compile=jit_compile)
            def step(gradient):
                optimizer.apply_gradients([(gradient, weight)], skip_gradients_aggregation=True)

            for gradient in ([1.0, 2.0], [-3.0, 0.5]):
                strategy.run(step, (tf.constant(gradient),))
        return weight.numpy()

    plain = run(tf.distribute.get_strategy(), False)
    np.testing.assert_allclose(run(tf.distribute.get_strategy(), True), plain, rtol=1e-6)
    np.testing.assert_array_equal(run(tf.distribute.MirroredStrategy(["CPU:0"]), False), plain)
