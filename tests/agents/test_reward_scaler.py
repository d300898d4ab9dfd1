"""Scaled rewards against the deviation of returns worked out in NumPy."""

import numpy as np
import tensorflow as tf

from keras_rtrl.agents.reward_scaler import RewardScaler

GAMMA = 0.9


def returns(reward, boundary, before):
    for t in range(reward.shape[1]):
        before = np.where(boundary[:, t], 0.0, GAMMA * before + reward[:, t])
        yield before


def test_scale_is_the_deviation_of_the_discounted_returns():
    """Also those that began in the rollout before; a boundary frame counts no return."""
    rng, scaler = np.random.default_rng(0), RewardScaler(GAMMA, 2)
    before, counted = np.zeros(2), []
    for _ in range(2):
        reward, boundary = rng.normal(size=(2, 5)), rng.random((2, 5)) < 0.3
        scaler.update(tf.constant(reward, tf.float32), tf.constant(boundary))
        seen = np.stack(list(returns(reward, boundary, before)), axis=1)
        before = seen[:, -1]
        counted.append(seen[~boundary])
    np.testing.assert_allclose(scaler.scale, np.std(np.concatenate(counted)), rtol=1e-5)


def test_rewards_are_divided_by_the_scale_and_clipped_at_ten():
    scaler = RewardScaler(GAMMA, 1)
    scaler.update(tf.constant([[0.02, 0.04]]), tf.constant([[False, False]]))
    scale = np.std([0.02, GAMMA * 0.02 + 0.04])
    np.testing.assert_allclose(scaler(tf.constant([0.1, -5.0, 5.0])), [0.1 / scale, -10.0, 10.0], rtol=1e-3)


def test_reset_forgets_returns_and_not_the_statistics():
    scaler = RewardScaler(GAMMA, 1)
    scaler.update(tf.constant([[1.0, 3.0]]), tf.constant([[False, False]]))
    scale = float(scaler.scale)
    scaler.reset()
    assert float(scaler.scale) == scale
    scaler.update(tf.constant([[3.0]]), tf.constant([[False]]))
    np.testing.assert_allclose(scaler.scale, np.std([1.0, GAMMA + 3.0, 3.0]), rtol=1e-6)
