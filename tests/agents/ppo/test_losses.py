"""Advantages and the clipped loss against numbers worked out by hand and in NumPy loops."""

import numpy as np
import pytest
import tensorflow as tf

from keras_rtrl.agents.ppo import losses


def constants(*values, dtype=tf.float64):
    return [tf.constant(value, dtype) for value in values]


def advantages(reward, discount, value, bootstrap, boundary, lambda_value):
    reward, discount, value, bootstrap = constants(reward, discount, value, bootstrap)
    return losses.gae(reward, discount, value, bootstrap, tf.constant(boundary), lambda_value).numpy()


def test_gae_by_hand():
    # delta = 1 + 0.5 * 2 - 1 = 1, then 0 + 0.5 * 4 - 2 = 0, then 2 + 0.5 * 6 - 4 = 1; decay 0.5 * 0.5
    got = advantages([[1, 0, 2]], [[0.5] * 3], [[1, 2, 4]], [6], [[False] * 3], 0.5)
    np.testing.assert_allclose(got, [[1 + 0.25 * (0 + 0.25), 0.25, 1]])


def test_lambda_one_gives_returns_and_lambda_zero_td_errors():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 5)), rng.normal(size=(2, 5))
    bootstrap, gamma = rng.normal(size=2), 0.9
    flat = np.full((2, 5), gamma), np.zeros((2, 5), bool)
    returns, later = np.zeros((2, 5)), bootstrap
    for t in reversed(range(5)):
        returns[:, t] = later = reward[:, t] + gamma * later
    got = advantages(reward, flat[0], value, bootstrap, flat[1], 1.0)
    np.testing.assert_allclose(got, returns - value)
    following = np.concatenate([value[:, 1:], bootstrap[:, None]], axis=1)
    got = advantages(reward, flat[0], value, bootstrap, flat[1], 0.0)
    np.testing.assert_allclose(got, reward + gamma * following - value)


def test_termination_cuts_and_truncation_bootstraps():
    # frame 2 is LAST; the step before it ended an episode: by termination (discount 0), or by truncation
    boundary = [[False, False, True, False]]
    value, reward = [[1.0, 2.0, 3.0, 4.0]], [[1.0, 1.0, 9.0, 1.0]]
    ended = advantages(reward, [[1, 0, 1, 1]], value, [5.0], boundary, 0.5)
    np.testing.assert_allclose(ended, [[1 + 2 - 1 + 0.5 * (1 - 2), 1 - 2, 0, 1 + 5 - 4]])
    truncated = advantages(reward, [[1, 1, 1, 1]], value, [5.0], boundary, 0.5)
    np.testing.assert_allclose(truncated, [[1 + 2 - 1 + 0.5 * (1 + 3 - 2), 1 + 3 - 2, 0, 1 + 5 - 4]])


def test_nothing_after_a_boundary_reaches_what_is_before():
    rng = np.random.default_rng(1)
    reward, value, boundary = rng.normal(size=(1, 6)), rng.normal(size=(1, 6)), np.arange(6)[None] == 3
    one = advantages(reward, np.full((1, 6), 0.9), value, [1.0], boundary, 0.9)
    reward[:, 3:], value[:, 4:] = 7.0, -5.0
    other = advantages(reward, np.full((1, 6), 0.9), value, [-2.0], boundary, 0.9)
    np.testing.assert_array_equal(one[:, :4], other[:, :4])
    assert np.all(one[:, 4:] != other[:, 4:])


def test_terms_in_numpy():
    rng = np.random.default_rng(2)
    log_ratio, entropy, value, old, advantage, returns = rng.normal(size=(6, 3, 4)) * 0.5
    boundary = rng.random((3, 4)) < 0.3
    assert 0 < boundary.sum() < 12
    got = losses.ppo_terms(
        *constants(log_ratio, entropy, value, old, advantage, returns), tf.constant(boundary), 0.2, 0.1
    )
    kept = ~boundary
    a = (advantage - advantage[kept].mean()) / (advantage[kept].std() + 1e-8)
    q = np.exp(log_ratio)
    policy = -np.minimum(q * a, np.clip(q, 0.8, 1.2) * a)[kept].mean()
    near = old + np.clip(value - old, -0.1, 0.1)
    error = np.maximum((value - returns) ** 2, (near - returns) ** 2)[kept].mean()
    np.testing.assert_allclose(got.policy_loss, policy)
    np.testing.assert_allclose(got.value_loss, 0.5 * error)
    np.testing.assert_allclose(got.entropy, entropy[kept].mean())
    np.testing.assert_allclose(got.kl, (q - 1 - log_ratio)[kept].mean())
    np.testing.assert_allclose(got.clip_fraction, (np.abs(q - 1) > 0.2)[kept].mean())
    free = losses.ppo_terms(
        *constants(log_ratio, entropy, value, old, advantage, returns), tf.constant(boundary), 0.2, None
    )
    np.testing.assert_allclose(free.value_loss, 0.5 * ((value - returns) ** 2)[kept].mean())


def test_shapes_that_do_not_fit():
    good = np.zeros((1, 3))
    with pytest.raises(ValueError, match="one shape"):
        advantages(good, np.zeros((1, 2)), good, [0.0], good > 0, 0.9)
    with pytest.raises(ValueError, match="bootstrap_value"):
        advantages(good, good, good, [0.0, 0.0], good > 0, 0.9)
