"""Generalised advantage estimation and the clipped loss (Schulman et al. 2016, 2017).

`_t` names the frame, arguments are [..., T]. Frame t holds what was seen, done and then received: reward_t and
discount_t are those of time step t + 1. A *boundary* frame is one whose step type is LAST: its action was ignored and
the next frame starts another episode.
"""

import collections

import tensorflow as tf

from keras_rtrl._checks import number
from keras_rtrl._tensors import frames, rollouts
from keras_rtrl.distributed.replicas import all_sum

PPOTerms = collections.namedtuple("PPOTerms", ["policy_loss", "value_loss", "entropy", "kl", "clip_fraction"])


def gae(reward_t, discount_t, value_t, bootstrap_value, boundary_t, lambda_value):
    """Advantages [B, T].

        delta_t = r_t + gamma_t V_{t+1} - V_t,    A_t = delta_t + gamma_t lambda A_{t+1},    V_T = bootstrap_value

    On a boundary frame A = 0, whatever the other arguments hold there, NaN included, and its V is that of the episode's
    last observation: a truncated episode bootstraps from it (its discount is not 0), and nothing after it reaches an
    advantage before it. Where gamma is 0 no value counts that comes after.

    Args:
      reward_t: [B, T].
      discount_t: gamma times the environment's discount, [B, T]; 0 if the episode terminates.
      value_t: V_t, [B, T].
      bootstrap_value: V of frame T, [B].
      boundary_t: bool [B, T].
      lambda_value: lambda, from 0 to 1.

    Returns:
      [B, T]; no gradient flows through it.

    Raises:
      TypeError: an argument that is no tensor or array, or of another dtype than the first.
      ValueError: shapes that do not fit, or a lambda out of range.
    """
    lambda_value = number("lambda_value", lambda_value, 0, high=1)
    reward_t, discount_t, value_t, boundary_t, bootstrap_value = rollouts(
        bootstrap_value, reward_t=reward_t, discount_t=discount_t, value_t=value_t, boundary_t=boundary_t
    )
    value_t, bootstrap_value = tf.stop_gradient(value_t), tf.stop_gradient(bootstrap_value)
    next_value_t = tf.concat([value_t[:, 1:], bootstrap_value[:, tf.newaxis]], axis=1)
    delta_t = reward_t + tf.math.multiply_no_nan(next_value_t, discount_t) - value_t
    delta_t = tf.where(boundary_t, tf.zeros_like(value_t), delta_t)
    decay_t = tf.where(boundary_t, tf.zeros_like(value_t), discount_t * lambda_value)
    # scan runs over the first axis
    advantage_t = tf.scan(
        lambda later, step: step[0] + tf.math.multiply_no_nan(later, step[1]),
        (tf.transpose(delta_t), tf.transpose(decay_t)),
        initializer=tf.zeros_like(bootstrap_value),
        reverse=True,
    )
    return tf.transpose(advantage_t)


# Long by its arguments and its docstring.
def ppo_terms(
    log_ratio_t,
    entropy_t,
    value_t,
    old_value_t,
    advantage_t,
    return_t,
    boundary_t,
    importance_ratio_clipping,
    value_clipping,
):
    """The terms of the clipped loss, means over frames that are no boundary.

        policy_loss = - mean min(q A, clip(q, 1 - e, 1 + e) A),        q = pi(a_t) / pi_old(a_t)
        value_loss  = 1/2 mean max((V - G)^2, (V_old + clip(V - V_old, -c, c) - G)^2)

    A is the advantage, normalised over the batch to mean 0 and standard deviation 1. Where every replica of a
    tf.distribute strategy calls this with its own part of a batch, what comes is its share of the whole batch's terms:
    counts, and mean and deviation of A, are the whole batch's, and the terms are the shares' sums.

    Args:
      log_ratio_t: log q.
      entropy_t: entropy of the policy, nats.
      value_t: V.
      old_value_t: V_old.
      advantage_t: A, before it is normalised.
      return_t: G.
      boundary_t: bool.
      importance_ratio_clipping, value_clipping: e and c, as `PPOConfig`.

    Returns:
      PPOTerms of scalars; kl is an estimate of KL(old || new) in nats (Schulman 2020), clip_fraction the share of
      frames whose ratio is clipped. Neither has a gradient.

    Raises:
      TypeError: an argument that is no tensor or array, or of another dtype than the first.
      ValueError: shapes that do not fit, or importance_ratio_clipping or value_clipping not above 0.
    """
    epsilon = number("importance_ratio_clipping", importance_ratio_clipping, above=0)
    value_clipping = None if value_clipping is None else number("value_clipping", value_clipping, above=0)
    log_ratio_t, entropy_t, value_t, old_value_t, advantage_t, return_t, boundary_t = frames(
        log_ratio_t=log_ratio_t,
        entropy_t=entropy_t,
        value_t=value_t,
        old_value_t=old_value_t,
        advantage_t=advantage_t,
        return_t=return_t,
        boundary_t=boundary_t,
    )
    counted = tf.cast(~boundary_t, value_t.dtype)

    def played(x):
        return tf.where(boundary_t, tf.zeros_like(x), x)

    def total(x):
        return tf.reduce_sum(played(x))

    # before anything is computed from them: the gradient of a NaN that is left out later is NaN
    log_ratio_t, entropy_t, value_t, old_value_t, advantage_t, return_t = (
        played(x) for x in (log_ratio_t, entropy_t, value_t, old_value_t, advantage_t, return_t)
    )
    count, advantages = all_sum((tf.reduce_sum(counted), total(advantage_t)))
    count = tf.maximum(count, 1)

    def mean(x):
        return total(x) / count

    centred = advantage_t - advantages / count
    advantage_t = centred / (tf.sqrt(all_sum(mean(tf.square(centred)))) + 1e-8)
    ratio_t = tf.exp(log_ratio_t)
    clipped_t = tf.clip_by_value(ratio_t, 1 - epsilon, 1 + epsilon)
    error_t = tf.square(value_t - return_t)
    if value_clipping is not None:
        near_t = old_value_t + tf.clip_by_value(value_t - old_value_t, -value_clipping, value_clipping)
        error_t = tf.maximum(error_t, tf.square(near_t - return_t))
    return PPOTerms(
        policy_loss=-mean(tf.minimum(ratio_t * advantage_t, clipped_t * advantage_t)),
        value_loss=0.5 * mean(error_t),
        entropy=mean(entropy_t),
        kl=tf.stop_gradient(mean(ratio_t - 1 - log_ratio_t)),
        clip_fraction=mean(tf.cast(tf.abs(ratio_t - 1) > epsilon, value_t.dtype)),
    )
