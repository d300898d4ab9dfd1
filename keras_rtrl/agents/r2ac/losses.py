"""V-trace and the R2AC loss (Espeholt et al. 2018; Irie et al., ICLR 2024).

All arguments are [B, T]; `_t` names the frame. Frame t holds what was seen, done and then received: reward_t and
discount_t are those of time step t + 1. A *boundary* frame is one whose step type is LAST: its action was ignored and
the next frame starts another episode.
"""

import collections

import tensorflow as tf

from keras_rtrl._checks import shown
from keras_rtrl._tensors import frames, rollouts

VTrace = collections.namedtuple("VTrace", ["v_t", "advantage_t"])
LossTerms = collections.namedtuple("LossTerms", ["policy_loss", "value_loss", "entropy"])


def vtrace(log_rho_t, discount_t, reward_t, value_t, bootstrap_value, boundary_t):
    """V-trace targets and advantages with rho-bar = c-bar = 1 and no lambda.

        delta_t = rho_t (r_t + gamma_t V_{t+1} - V_t)
        v_t     = V_t + delta_t + gamma_t c_t (v_{t+1} - V_{t+1}),     v_T = V_T = bootstrap_value
        A_t     = rho_t (r_t + gamma_t v_{t+1} - V_t),                 rho_t = c_t = min(1, pi(a_t) / mu(a_t))

    On a boundary frame delta = c = A = 0, whatever the other arguments hold there, NaN included: v is V(last
    observation) there, so a truncated episode bootstraps from it and nothing after it reaches a target before it. Where
    gamma is 0 no value counts that comes after.

    Args:
      log_rho_t: log pi(a_t) - log mu(a_t), [B, T].
      discount_t: gamma times the environment's discount, [B, T]; 0 if the episode terminates.
      reward_t: [B, T].
      value_t: V_t, [B, T].
      bootstrap_value: V of frame T, [B].
      boundary_t: bool [B, T], step type LAST at frame t.

    Returns:
      VTrace(v_t, advantage_t), [B, T] each; no gradient flows through them.

    Raises:
      TypeError: an argument that is no tensor or array, or of another dtype than the first.
      ValueError: shapes that do not fit.
    """
    log_rho_t, discount_t, reward_t, value_t, boundary_t, bootstrap_value = rollouts(
        bootstrap_value,
        log_rho_t=log_rho_t,
        discount_t=discount_t,
        reward_t=reward_t,
        value_t=value_t,
        boundary_t=boundary_t,
    )
    value_t, bootstrap_value = tf.stop_gradient(value_t), tf.stop_gradient(bootstrap_value)
    rho_t = tf.exp(tf.minimum(tf.stop_gradient(log_rho_t), 0.0))

    def played(x_t):
        return tf.where(boundary_t, tf.zeros_like(x_t), x_t)

    def towards(next_t):
        """rho_t (r_t + gamma_t next_{t+1} - V_t)."""
        next_t = tf.concat([next_t[:, 1:], bootstrap_value[:, tf.newaxis]], axis=1)
        return played(rho_t * (reward_t + tf.math.multiply_no_nan(next_t, discount_t) - value_t))

    # excess_t = v_t - V_t, backward in time; scan runs over the first axis
    excess_t = tf.scan(
        lambda excess, step: step[0] + tf.math.multiply_no_nan(excess, step[1]),
        (tf.transpose(towards(value_t)), tf.transpose(played(discount_t * rho_t))),
        initializer=tf.zeros_like(bootstrap_value),
        reverse=True,
    )
    v_t = value_t + tf.transpose(excess_t)
    return VTrace(v_t, towards(v_t))


def r2ac_loss(log_pi_t, entropy_t, value_t, vtrace_t, boundary_t):
    """The terms of the loss, summed over batch and time, boundary frames left out.

    Args:
      log_pi_t: log pi(a_t), [B, T].
      entropy_t: entropy of the policy in nats, H(pi_t), [B, T].
      value_t: V_t, [B, T].
      vtrace_t: VTrace, constant for the gradient.
      boundary_t: bool [B, T].

    Returns:
      LossTerms of scalars: policy_loss = - sum log pi(a_t) A_t, value_loss = 1/2 sum (v_t - V_t)^2,
      entropy = sum H(pi_t).

    Raises:
      TypeError: an argument that is no tensor or array, or of another dtype than the first; no VTrace.
      ValueError: shapes that do not fit.
    """
    if not isinstance(vtrace_t, VTrace):
        raise TypeError(f"vtrace_t must be a VTrace, got {shown(vtrace_t)}")
    given = {"log_pi_t": log_pi_t, "entropy_t": entropy_t, "value_t": value_t, **vtrace_t._asdict()}
    log_pi_t, entropy_t, value_t, *targets, boundary_t = frames(**given, boundary_t=boundary_t)
    vtrace_t = VTrace(*targets)

    def played(x_t):  # before anything is computed from it: the gradient of a NaN that is left out later is NaN
        return tf.where(boundary_t, tf.zeros_like(x_t), x_t)

    return LossTerms(
        policy_loss=-tf.reduce_sum(played(log_pi_t) * played(vtrace_t.advantage_t)),
        value_loss=0.5 * tf.reduce_sum(tf.square(played(vtrace_t.v_t) - played(value_t))),
        entropy=tf.reduce_sum(played(entropy_t)),
    )
