"""Running normalisation against NumPy."""

import numpy as np
import tensorflow as tf

from keras_rtrl.networks.normalizer import RunningNormalizer


def test_each_feature_has_its_own_mean_and_variance():
    rng = np.random.default_rng(0)
    parts = [rng.normal([5, -3, 100], [2, 0.1, 30], size=(*shape, 3)) for shape in ((4, 7), (1,), (50,), (3, 2))]
    normalizer = RunningNormalizer([3])
    for part in parts:
        normalizer.update(tf.constant(part, tf.float32))
    seen = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float32)
    np.testing.assert_allclose(normalizer.mean, seen.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normalizer.variance, seen.var(0), rtol=1e-5)
    x = tf.constant(seen[:5])
    np.testing.assert_allclose(normalizer(x), (seen[:5] - seen.mean(0)) / seen.std(0), rtol=1e-4, atol=1e-4)
    assert normalizer(x).dtype == tf.float32


def test_nothing_is_changed_before_the_second_observation_and_all_is_clipped():
    normalizer = RunningNormalizer([2], limit=3.0)
    np.testing.assert_allclose(normalizer(tf.constant([[1.5, -8.0]])), [[1.5, -3.0]], rtol=1e-6)
    normalizer.update(tf.constant([[0.0, 0.0]]))
    np.testing.assert_allclose(normalizer(tf.constant([[1.5, -8.0]])), [[1.5, -3.0]], rtol=1e-6)


def test_a_constant_feature_stays_finite():
    normalizer = RunningNormalizer([1])
    normalizer.update(tf.ones([10, 1]))
    np.testing.assert_allclose(normalizer(tf.constant([[1.0], [1.0001]])), [[0.0], [1.0]], atol=1e-2)


def test_a_long_life_loses_no_count():
    normalizer = RunningNormalizer([1])
    normalizer.variables[0].assign(2.0**26)  # past float32's whole numbers
    before = normalizer.variables[0].numpy()
    normalizer.update(tf.ones([1, 1]))
    assert normalizer.variables[0].numpy() == before + 1


def test_no_optimiser_trains_its_statistics():
    normalizer = RunningNormalizer([2])
    assert len(normalizer.variables) == 3
    assert not normalizer.trainable_variables
