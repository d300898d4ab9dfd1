"""V-trace and the loss against numbers worked by hand."""

import numpy as np
import pytest
import tensorflow as tf
import tf_agents  # noqa: F401

from keras_rtrl.agents.r2ac import losses


def run_vtrace(rho, discount, reward, value, bootstrap, boundary=None, compiled=False):
    boundary = np.zeros_like(value, bool) if boundary is None else np.array(boundary)
    function = tf.function(losses.vtrace, jit_compile=True) if compiled else losses.vtrace
    return function(
        tf.constant(np.log(rho), tf.float32),
        tf.constant(discount, tf.float32),
        tf.constant(reward, tf.float32),
        tf.constant(value, tf.float32),
        tf.constant(bootstrap, tf.float32),
        tf.constant(boundary),
    )


@pytest.mark.parametrize("compiled", [False, True])
def test_vtrace_by_hand(compiled):
    # backward with gamma 0.5, V = 1, 2, 4, bootstrap 8, rewards 1, 0, 2; rho 2 counts as 1
    # t=2: rho 1    delta = 2 + 0.5*8 - 4 = 2            v = 6              A = 2
    # t=1: rho 0.5  delta = 0.5*(0 + 0.5*4 - 2) = 0      v = 2 + 0.25*2 = 2.5    A = 0.5*(0.5*6 - 2) = 0.5
    # t=0: rho 1    delta = 1 + 0.5*2 - 1 = 1            v = 1 + 1 + 0.5*0.5 = 2.25   A = 1 + 0.5*2.5 - 1 = 1.25
    v_t, advantage_t = run_vtrace([[1, 0.5, 2]], [[0.5] * 3], [[1, 0, 2]], [[1, 2, 4]], [8], compiled=compiled)
    np.testing.assert_allclose(v_t, [[2.25, 2.5, 6.0]], rtol=1e-6)
    np.testing.assert_allclose(advantage_t, [[1.25, 0.5, 2.0]], rtol=1e-6)


def test_on_policy_vtrace_is_the_discounted_return():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 3, 6))
    v_t, advantage_t = run_vtrace(np.ones((3, 6)), np.full((3, 6), 0.9), reward, value, np.arange(3.0))
    returns, g = np.zeros((3, 6)), np.arange(3.0)
    for t in reversed(range(6)):
        g = reward[:, t] + 0.9 * g
        returns[:, t] = g
    np.testing.assert_allclose(v_t, returns, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(advantage_t, returns - value, rtol=1e-5, atol=1e-5)


def test_termination_gives_a_zero_bootstrap_and_truncation_the_last_value():
    # frames: MID, LAST (V 3), FIRST; the environment's discount of frame 0 is 0 at a termination, 1 at a truncation
    boundary = [[False, True, False]]
    arguments = {"reward": [[1, 9, 0]], "value": [[2, 3, 5]], "bootstrap": [7], "boundary": boundary, "rho": [[1] * 3]}
    terminated = run_vtrace(discount=[[0, 0.5, 0.5]], **arguments)
    truncated = run_vtrace(discount=[[0.5, 0.5, 0.5]], **arguments)
    np.testing.assert_allclose(terminated.v_t, [[1.0, 3.0, 3.5]])
    np.testing.assert_allclose(truncated.v_t, [[2.5, 3.0, 3.5]])
    np.testing.assert_allclose(terminated.advantage_t, [[-1.0, 0.0, -1.5]])
    np.testing.assert_allclose(truncated.advantage_t, [[0.5, 0.0, -1.5]])


def test_nothing_after_a_boundary_reaches_a_target_before_it():
    rng = np.random.default_rng(1)
    boundary = np.zeros((2, 7), bool)
    boundary[0, 3] = boundary[1, 5] = True
    discount = np.full((2, 7), 0.9)
    rho, reward, value, bootstrap = rng.uniform(0.5, 2, (2, 7)), *rng.normal(size=(2, 2, 7)), rng.normal(size=2)
    before = run_vtrace(rho, discount, reward, value, bootstrap, boundary)
    for row, t in ((0, 3), (1, 5)):
        # the boundary frame's own reward, action and discount are those of the reset: they mean nothing either
        rho[row, t:], reward[row, t:], discount[row, t:] = 0.7, 1e3, 1.0
        value[row, t + 1 :] = 55.0
    after = run_vtrace(rho, discount, reward, value, bootstrap + 100, boundary)
    for row, t in ((0, 3), (1, 5)):
        np.testing.assert_array_equal(before.v_t[row, : t + 1], after.v_t[row, : t + 1])
        np.testing.assert_array_equal(before.advantage_t[row, : t + 1], after.advantage_t[row, : t + 1])
        assert np.abs(before.v_t[row, t + 1 :] - after.v_t[row, t + 1 :]).min() > 1


def test_targets_are_constants_for_the_gradient():
    value, log_rho = tf.constant([[1.0, 2.0]]), tf.constant([[-0.5, 0.5]])
    with tf.GradientTape() as tape:
        tape.watch([value, log_rho])
        ones = tf.ones([1, 2])
        targets = losses.vtrace(log_rho, ones, ones, value, value[:, -1], tf.zeros([1, 2], tf.bool))
        total = tf.reduce_sum(targets.v_t) + tf.reduce_sum(targets.advantage_t)
    assert tape.gradient(total, [value, log_rho]) == [None, None]


def test_loss_by_hand():
    # the second of three frames is a boundary and counts for nothing
    log_pi = tf.math.log([[0.25, 0.75, 0.75]])
    entropy = tf.constant([[0.5, 100.0, 0.7]])
    targets = losses.VTrace(tf.constant([[2.0, 100.0, -1.0]]), tf.constant([[3.0, 100.0, -2.0]]))
    value = tf.constant([[1.0, 0.0, 1.0]])
    terms = losses.r2ac_loss(log_pi, entropy, value, targets, tf.constant([[False, True, False]]))
    np.testing.assert_allclose(terms.policy_loss, -(3 * np.log(0.25) - 2 * np.log(0.75)), rtol=1e-6)
    np.testing.assert_allclose(terms.value_loss, 0.5 * (1 + 4), rtol=1e-6)
    np.testing.assert_allclose(terms.entropy, 0.5 + 0.7, rtol=1e-6)


def test_shapes_are_checked():
    two, three = tf.zeros([1, 2]), tf.zeros([1, 3])
    boundary = tf.zeros([1, 3], tf.bool)
    with pytest.raises(ValueError, match="reward_t"):
        losses.vtrace(three, three, two, three, tf.zeros([1]), boundary)
    with pytest.raises(ValueError, match="bootstrap_value"):
        losses.vtrace(three, three, three, three, tf.zeros([2]), boundary)
    one = tf.zeros([3])  # without a batch
    with pytest.raises(ValueError, match=r"log_rho_t must be \[B, T\]"):
        losses.vtrace(one, one, one, one, tf.zeros([1]), tf.zeros([3], tf.bool))
